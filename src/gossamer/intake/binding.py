"""Samples are matched with a model's inputs: names, types, shapes, finite numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np

from gossamer.errors import DataError
from gossamer.intake.arrays_file import LABEL_NAMES, check_labels
from gossamer.intake.image_folder import ImageColumn
from gossamer.nouns.samples import Samples

Shape: TypeAlias = "tuple[int | str | None, ...]"  # of one sample or one batch; free where not an int
ModelInputs: TypeAlias = "Mapping[str, tuple[np.dtype, Shape]]"


@dataclass(frozen=True, eq=False)
class BoundColumn(Sequence[np.ndarray]):
    """A column whose samples are checked and cast as they are read."""

    column: Any
    name: str
    dtype: np.dtype
    shape: Shape

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]  # slices are not needed
        return _checked(self.column[row], row, self)

    def fingerprint(self, row: int) -> bytes:
        """Equal for equal samples."""
        if isinstance(self.column, ImageColumn):
            return self.column.fingerprint(row)
        array = np.ascontiguousarray(self.column[row])
        return f"{array.dtype.str}{array.shape}".encode() + array.tobytes()


NAMELESS = r"(input|arr)_\d+"  # arrays of a .npy file or a batch, and what np.savez calls arrays without a name


def bind(samples: Samples, model_inputs: ModelInputs) -> Samples:
    """The samples under the model's names and in its types.

    Args:
        samples: as a door read them.
        model_inputs: name -> (dtype, shape with the batch axis), as the original model file declares them.

    Every sample of an array or file is read once, here, to find what would spoil a later stage; pictures are checked as
    they are decoded. Casts happen per sample: within integers and within floats where the values allow it, and from
    small integers to floats.

    Raises:
        DataError: names, shapes, types or values do not fit; the text names the input and the sample.
    """
    if not len(samples):
        raise DataError(f"{samples.source}: the data set is empty; give at least one sample")
    sources = _match_names(samples, model_inputs)
    columns: dict[str, Any] = {}
    for name, (dtype, shape) in model_inputs.items():
        if not shape:
            raise DataError(
                f"input {name!r} of the model is a single number without a batch axis; samples cannot be fed to it"
            )
        bound = BoundColumn(samples.columns[sources[name]], name, dtype, shape[1:])
        columns[name] = _bind_column(bound, samples)
    if samples.labels is not None:
        check_labels(samples.labels, f"{samples.source}: labels")
    return replace(samples, columns=columns)


def cast_notes(samples: Samples, model_inputs: ModelInputs) -> tuple[str, ...]:
    """What `bind` changes in these samples, in plain words, for the record.

    Raises:
        DataError: the names do not fit.
    """
    notes = []
    for name, source in _match_names(samples, model_inputs).items():
        have, want = samples.columns[source][int(samples.rows[0])].dtype, model_inputs[name][0]
        if source != name:
            notes.append(f"the data's {source!r} feeds the model's input {name!r}")
        if have != want:
            scaled = "; whole numbers are not scaled on the way" if have.kind in "biu" and want.kind == "f" else ""
            notes.append(f"input {name!r} is cast from {have} to {want}{scaled}")
    return tuple(notes)


def _match_names(samples: Samples, model_inputs: ModelInputs) -> dict[str, str]:
    """Model input -> column of the samples: by name, or by position where the source gave no names."""
    have, want = list(samples.columns), list(model_inputs)
    if set(have) == set(want):
        return {name: name for name in want}
    if len(have) == len(want) and all(re.fullmatch(NAMELESS, name) for name in have):
        return dict(zip(want, have, strict=True))
    missing, extra = [name for name in want if name not in have], [name for name in have if name not in want]
    faults = [f"lacks {name!r}{_nearest(name, extra)}" for name in missing]
    faults += [f"has {name!r}, which the model does not take" for name in extra]
    if samples.labels is not None and any(name in LABEL_NAMES for name in missing):
        faults.append(f"keeps labels under one of {', '.join(LABEL_NAMES)}, so give them the name 'labels'")
    listed = ", ".join(repr(name) for name in want)
    raise DataError(f"{samples.source}: the model takes {listed}; the data {', '.join(faults)}; rename the arrays")


def _nearest(name: str, others: list[str]) -> str:
    near = get_close_matches(name, others, 1)
    return f" (is it {near[0]!r}?)" if near else ""


def _bind_column(bound: BoundColumn, samples: Samples) -> Any:
    """The column itself if its samples fit as they are, else one that casts; what is at hand is checked."""
    column = bound.column
    if samples.labels is not None and len(samples.labels) != len(column):
        raise DataError(
            f"{samples.source}: {len(column)} samples of {bound.name!r} and {len(samples.labels)} labels; "
            "each sample needs one label"
        )
    on_demand = isinstance(column, (ImageColumn, BoundColumn))
    same_type = True
    for row in samples.rows[:1] if on_demand else samples.rows:
        array = np.asarray(column[int(row)])
        same_type &= array.dtype == bound.dtype
        _checked(array, int(row), bound)
    return column if same_type and not on_demand else bound


def _checked(array: np.ndarray, row: int, bound: BoundColumn) -> np.ndarray:
    """One sample in the model's type, or the reason why not."""
    want = bound.shape
    if not _fits(array.shape, want):
        hint = _shape_hint(array.shape, want)
        raise DataError(f"input {bound.name!r} wants {_text(want)}, sample {row} has {_text(array.shape)}{hint}")
    cast = array if array.dtype == bound.dtype else _cast(array, row, bound)
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        if np.isfinite(array).all():
            raise DataError(f"input {bound.name!r}, sample {row}: a number is too large for the model's {bound.dtype}")
        raise DataError(f"input {bound.name!r}, sample {row} has NaN or Inf; remove or correct that sample")
    return cast


def _cast(array: np.ndarray, row: int, bound: BoundColumn) -> np.ndarray:
    have, want = array.dtype, bound.dtype
    where = f"input {bound.name!r} wants {want}, sample {row} has {have}"
    if want.kind == "O" and have.kind in "US":
        return array.astype(str).astype(object)
    if have.kind in "iu" and want.kind in "iu":
        limits = np.iinfo(want)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise DataError(
                f"{where} with values from {array.min()} to {array.max()}, which do not fit; correct the data"
            )
        return array.astype(want)
    if (have.kind == want.kind == "f") or (want.kind in "iuf" and np.can_cast(have, want, "safe")):
        with np.errstate(over="ignore"):  # too large a number is found as Inf
            return array.astype(want)
    raise DataError(f"{where}; that cast could lose meaning, so convert the data: array.astype({want.name!r})")


def _text(shape: Shape) -> str:
    sizes = [str(size) if size is not None else "?" for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _fits(have: tuple[int, ...], want: Shape) -> bool:
    return len(have) == len(want) and not any(isinstance(w, int) and w != n for n, w in zip(have, want, strict=True))


def _shape_hint(have: tuple[int, ...], want: Shape) -> str:
    """What to try, where the shapes give it away."""
    if len(have) == len(want) == 3:
        if _fits((have[2], have[0], have[1]), want):
            return ": try --layout nchw, or transpose the array"
        if _fits((have[1], have[2], have[0]), want):
            return ": try --layout nhwc, or transpose the array"
        for axis in (0, 2):  # where the channels are
            sides = [size for position, size in enumerate(want) if position != axis]
            if have[axis] == want[axis] and isinstance(sides[0], int) and sides[0] == sides[1]:
                return f": try --size {sides[0]} for pictures"
        if 1 in want and 3 in have:
            return ": try --channels grey for pictures"
    if have[:1] == (1,) and _fits(have[1:], want):
        return ": drop the axis of 1 behind the sample axis"
    if want[:1] == (1,) and _fits(have, want[1:]):
        return ": add an axis, array[:, None]"
    return ": the axes behind the batch axis must agree"
