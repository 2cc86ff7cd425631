"""Samples: where data comes from. Labels are optional, inputs have names, shapes may differ from sample to sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from gossamer.errors import DataError


class Batch(NamedTuple):
    """Consecutive samples of equal shapes, stacked on a new first axis."""

    feeds: dict[str, np.ndarray]  # input name -> (B, ...)
    labels: np.ndarray | None  # (B, ...)


@dataclass(frozen=True)
class Samples:
    """A finite, re-readable set of samples.

    Attributes:
        columns: input name -> something indexable by sample that yields an array without the batch axis:
            an array (N, ...), a memory map, a list of arrays of any shapes, or a folder read on demand.
        labels: (N, ...) or None.
        rows: which samples of the columns this set holds, in order.
        source: for messages and the record.
    """

    columns: Mapping[str, Sequence[np.ndarray] | np.ndarray]
    labels: np.ndarray | None = None
    rows: np.ndarray = field(default_factory=lambda: np.arange(0))
    source: str = "memory"

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Samples:
        """The samples at these positions of this set."""
        return replace(self, rows=self.rows[rows])

    def first(self, count: int) -> Samples:
        """At most so many, from the beginning of this set."""
        return replace(self, rows=self.rows[:count])

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` samples; a change of shape starts a new batch (ragged data is fine)."""
        pending: list[dict[str, np.ndarray]] = []
        rows: list[int] = []
        for row in self.rows:
            sample = {name: np.asarray(column[row]) for name, column in self.columns.items()}
            if pending and (len(pending) == size or _shapes(sample) != _shapes(pending[0])):
                yield self._stack(pending, rows)
                pending, rows = [], []
            pending.append(sample)
            rows.append(int(row))
        if pending:
            yield self._stack(pending, rows)

    def digest(self) -> str:
        """SHA-256 over every input and label of this set, in order."""
        sha = hashlib.sha256()
        for feeds, labels in self.batches(1):
            for name in sorted(feeds):
                array = np.ascontiguousarray(feeds[name])
                sha.update(f"{name} {array.dtype.str} {array.shape} ".encode())
                sha.update(array.tobytes())
            if labels is not None:
                sha.update(np.ascontiguousarray(labels).tobytes())
        return sha.hexdigest()

    def _stack(self, pending: list[dict[str, np.ndarray]], rows: list[int]) -> Batch:
        feeds = {name: np.stack([sample[name] for sample in pending]) for name in pending[0]}
        return Batch(feeds, None if self.labels is None else self.labels[rows])


def samples_from_arrays(
    inputs: Mapping[str, Sequence[np.ndarray] | np.ndarray], labels: np.ndarray | None = None, source: str = "memory"
) -> Samples:
    """Samples over arrays or lists of arrays that share their length.

    Raises:
        DataError: no input, no sample, or lengths that differ.
    """
    lengths = {name: len(column) for name, column in inputs.items()}
    if labels is not None:
        lengths["labels"] = len(labels)
    if not inputs:
        raise DataError(f"{source}: no input arrays; give at least one array whose first axis counts the samples")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(f"{source}: {listed} samples; every input and the labels need the same number")
    count = next(iter(lengths.values()))
    if count == 0:
        raise DataError(f"{source}: the data set is empty; give at least one sample")
    return Samples(inputs, labels, np.arange(count), source)


def _shapes(sample: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.values()]
