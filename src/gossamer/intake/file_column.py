"""A column of samples that stays in a file: one sample is read at a time."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from gossamer.errors import DataError, OutputError


@dataclass(frozen=True, eq=False)
class FileColumn(Sequence[np.ndarray]):
    """Arrays of one type that lie in an open file. Reading leaves no page mapped, so memory stays O(one sample).

    Attributes:
        file: open for reading until this column is collected.
        dtype: of every sample.
        starts: (N,) byte offset of each sample.
        shapes: the shape of each sample, or one shape that all share.
    """

    file: BinaryIO
    dtype: np.dtype
    starts: np.ndarray
    shapes: tuple[int, ...] | list[tuple[int, ...]]

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]  # slices are not needed
        shape = self.shapes[row] if isinstance(self.shapes, list) else self.shapes
        if 0 in shape:
            return np.empty(shape, self.dtype)
        sample, start = np.empty(shape, self.dtype), int(self.starts[row])
        if hasattr(os, "preadv"):  # takes a seventh of the time that mapping does
            into = sample.reshape(-1).view(np.uint8).data
            if os.preadv(self.file.fileno(), [into], start) == sample.nbytes:
                return sample
        return np.array(np.memmap(self.file, self.dtype, "r", start, shape))

    def whole(self) -> np.ndarray:
        """All samples as one array in memory (N, ...); they must share one shape.

        Raises:
            DataError: they do not.
        """
        if isinstance(self.shapes, list):
            raise DataError("labels have entries of differing shapes; they need one array (N, ...)")
        if not len(self):
            return np.empty((0, *self.shapes), self.dtype)
        return np.stack([self[row] for row in range(len(self))])


class Spool:
    """Samples of one input as they come, appended to an unnamed temporary file that vanishes with the process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype: np.dtype | None = None
        self._file: BinaryIO = tempfile.TemporaryFile()  # handed to the column
        self._starts: list[int] = []
        self._shapes: list[tuple[int, ...]] = []
        self._end = 0

    def append(self, batch: np.ndarray) -> None:
        """Add the samples of (B, ...)."""
        self.dtype = batch.dtype
        try:
            self._file.write(np.ascontiguousarray(batch).data)
        except OSError as error:
            raise OutputError(
                f"cannot keep input {self.name!r} in {tempfile.gettempdir()}: {error.strerror or error}; "
                "free some space or set TMPDIR to a larger disk"
            ) from error
        step = batch.nbytes // len(batch)
        self._starts += range(self._end, self._end + batch.nbytes, step) if step else [self._end] * len(batch)
        self._shapes += [batch.shape[1:]] * len(batch)
        self._end += batch.nbytes

    def close(self) -> None:
        """Give the temporary file up, when no column will come."""
        self._file.close()

    def column(self) -> FileColumn:
        """What was appended, to be read."""
        self._file.flush()
        same = len(set(self._shapes)) == 1
        shapes = self._shapes[0] if same else self._shapes
        return FileColumn(self._file, self.dtype or np.dtype("float32"), np.array(self._starts, np.int64), shapes)
