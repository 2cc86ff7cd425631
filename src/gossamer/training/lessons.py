"""What a module learns from: samples, and beside them what a teacher gives for each. Memory is O(one step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gossamer.measuring.batches import ahead
from gossamer.nouns.samples import Samples

Taught = Callable[[np.ndarray, Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
"""Rows of the samples' columns and their inputs -> what the teacher gives, one array (B, ...) an output."""

READERS = 2  # threads that fetch the next steps, where samples are read or made on demand


class Piece(NamedTuple):
    """Samples of equal shapes that go through the module together.

    Attributes:
        inputs: one (B, ...) an input, in the module's order.
        taught: the teacher's outputs, (B, ...) each; empty without a teacher.
        labels: (B, ...), or None.
    """

    inputs: tuple[Tensor, ...]
    taught: tuple[Tensor, ...]
    labels: Tensor | None

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.inputs[0])


@dataclass(frozen=True)
class Lessons:
    """Samples with or without a teacher.

    Attributes:
        samples: bound to the model: its columns are the module's inputs, in order.
        taught: what the teacher gives for them.
        fixed_batch: how many samples the module insists on; what is missing is made up by the same samples again.
    """

    samples: Samples
    taught: Taught | None = None
    fixed_batch: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def all_labels(self) -> Tensor:
        """The labels of all samples of this set, in order."""
        labels = self.samples.labels
        return torch.empty(0) if labels is None else _tensor(labels[self.samples.rows])

    def pieces(self, positions: np.ndarray, most: int) -> list[Piece]:
        """The samples at these positions, those of equal shapes together, at most so many in a piece."""
        return list(self._pieces(self.samples.rows[positions], self.fixed_batch or most))

    def in_turn(self, steps: Sequence[np.ndarray], most: int) -> Iterator[list[Piece]]:
        """The pieces of one step after the other; what comes from files or a live teacher is fetched ahead."""
        at_hand = all(isinstance(column, np.ndarray) for column in self.samples.columns.values())
        workers = 1 if at_hand else READERS
        for _, pieces in ahead(lambda step: self.pieces(step, most), steps, workers):
            yield pieces

    def _pieces(self, rows: np.ndarray, most: int) -> Iterator[Piece]:
        for group, stacked in self._stacked(rows):
            for part in _parts(len(group), most, self.fixed_batch):
                yield self._piece(group[part], {name: array[part] for name, array in stacked.items()})

    def _stacked(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Rows of equal shapes, in order, and their inputs (B, ...) by name."""
        columns = self.samples.columns
        if all(isinstance(column, np.ndarray) and column.dtype != object for column in columns.values()):
            yield rows, {name: np.asarray(column)[rows] for name, column in columns.items()}
            return
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[int, list[np.ndarray]]]] = {}
        for row in rows:
            arrays = [np.asarray(column[int(row)]) for column in columns.values()]
            groups.setdefault(tuple(array.shape for array in arrays), []).append((int(row), arrays))
        for members in groups.values():
            by_input = zip(*(arrays for _, arrays in members), strict=True)
            stacked = {name: np.stack(arrays) for name, arrays in zip(columns, by_input, strict=True)}
            yield np.array([row for row, _ in members]), stacked

    def _piece(self, rows: np.ndarray, feeds: dict[str, np.ndarray]) -> Piece:
        taught = () if self.taught is None else self.taught(rows, feeds)
        labels = None if self.samples.labels is None else _tensor(self.samples.labels[rows])
        return Piece(tuple(map(_tensor, feeds.values())), tuple(map(_tensor, taught)), labels)


def _parts(count: int, most: int, fixed_batch: int | None) -> Iterator[slice | np.ndarray]:
    """Parts of equal size, none of them a small rest; or of a fixed size, the last one filled up."""
    size = fixed_batch or -(-count // -(-count // most))
    for start in range(0, count, size):
        short = fixed_batch is not None and start + size > count
        yield np.resize(np.arange(start, count), size) if short else slice(start, start + size)


def _tensor(array: np.ndarray) -> Tensor:
    """In memory of its own, in a type that torch computes with."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C", copy=not array.flags.owndata or not array.flags.writeable))
