"""What each integer of a model's weights would take in an archive: for training that is to make the file small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gossamer.archive.contexts import Choice, family
from gossamer.archive.reader import INTEGERS
from gossamer.archive.symbols import Symbols, centred
from gossamer.archive.tables import OPTIONS, code_lengths, smoothed, written

UNSEEN = 0.01  # of the mean count of a table's symbols: what is added to each


class Lengths(NamedTuple):
    """Of one tensor.

    Attributes:
        bits_CV: what the integer low + v takes in class c, float32 (C, V).
        classes: of each integer, by how large numbers of its row and column are; int64, the tensor's shape.
        low: the first integer.
    """

    bits_CV: np.ndarray
    classes: np.ndarray
    low: int

    def of(self, integers: np.ndarray) -> np.ndarray:
        """The bits of each integer, in the tensor's shape."""
        return np.asarray(self.bits_CV[self.classes, integers.astype(np.int64) - self.low])


def lengths(tensors: Sequence[np.ndarray], bits: int) -> list[Lengths]:
    """The code that `pack` would choose for some tensors, with a length for every integer that there could be.

    Rows are what lies along the first axis, and have scales, as columns have; filters of kernels are left out. What
    tables and scales take themselves is not counted.

    Args:
        tensors: signed integers of any shape.
        bits: 2 to 8, that each of them is stored in.
    """
    half = 1 << (bits - 1)
    planes = [_plane(tensor, bits) for tensor in tensors]
    found = family(planes)
    counts = smoothed(found.tables, OPTIONS[1])
    bits_TV = np.stack([_code_lengths(each) for each in counts]).astype(np.float32)
    return [
        Lengths(bits_TV[one.first : one.first + one.classes], _classes(one, plane).reshape(tensor.shape), -half)
        for one, plane, tensor in zip(found.choices, planes, tensors, strict=True)
    ]


def _plane(tensor: np.ndarray, bits: int) -> Symbols:
    width = int(np.prod(tensor.shape[1:], dtype=np.int64)) if tensor.ndim > 1 else 1
    raw = (tensor.astype(np.int64).reshape(-1) & ((1 << bits) - 1)).astype(np.uint8)
    return centred(INTEGERS, raw, bits, max(width, 1), signed=True).planes[0]


def _code_lengths(counts: np.ndarray) -> np.ndarray:
    """With a little for every symbol, so that those that do not occur are dear but not infinitely so."""
    return code_lengths(written(counts + UNSEEN * float(counts.mean()), OPTIONS[0]))


def _classes(choice: Choice, plane: Symbols) -> np.ndarray:
    """As rule 9 of the format has them."""
    rows = len(plane.values) // plane.width
    classes_RC = np.full((rows, plane.width), -choice.shift, np.int64)
    if choice.row is not None:
        classes_RC += choice.row[:, None]
    if choice.column is not None:
        classes_RC += choice.column
    return np.clip(classes_RC, 0, choice.classes - 1)
