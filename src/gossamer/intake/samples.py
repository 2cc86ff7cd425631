"""The door for data: whatever holds samples becomes a `Samples`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from gossamer.errors import DataError, OptionError
from gossamer.intake.arrays_file import looks_like_array, read_npy, read_npz, samples_from_mapping
from gossamer.intake.image_folder import read_image_folder
from gossamer.intake.python_source import call_function, read_iterable
from gossamer.nouns.samples import Samples

DOORS = "a .npz or .npy file, a folder of images, or 'package.module:function'"


class DataOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How pictures of a folder become arrays; other sources are taken as they are.

    The value of a pixel is (p * scale - mean) / std, p from 0 to 255, in float32. With scale 1 and neither mean nor std
    the picture stays uint8.

    Attributes:
        size: height and width after the centre crop; None keeps every picture's own size.
        resize: length of the shorter side before the crop; None means `size`.
        mean, std: one number per channel or one for all, in the order of `channels`; empty means 0 and 1.
        scale: what a pixel is multiplied by first.
        layout: "nchw" (channels first) or "nhwc".
        channels: "rgb", "bgr", or "grey" (one channel).

    Raises:
        OptionError: a value that is out of range, or does not fit the others.
    """

    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1 / 255
    layout: Literal["nchw", "nhwc"] = "nchw"
    channels: Literal["rgb", "grey", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if self.layout not in ("nchw", "nhwc"):
            raise OptionError(f"layout is {self.layout!r}; allowed are nchw, nhwc")
        if self.channels not in ("rgb", "grey", "bgr"):
            raise OptionError(f"channels is {self.channels!r}; allowed are rgb, grey, bgr")
        for name in ("size", "resize"):
            pixels = getattr(self, name)
            if pixels is not None and pixels < 1:
                raise OptionError(f"{name} is {pixels}; allowed is a number of pixels from 1 up")
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise OptionError(
                f"resize is {self.resize} and size is {self.size}; resize needs a size no greater than it"
            )
        count = 1 if self.channels == "grey" else 3
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (0, 1, count):
                raise OptionError(f"{name} has {len(values)} numbers; channels {self.channels} needs 1 or {count}")
        numbers = np.array([self.scale, *self.mean, *self.std])
        if not np.isfinite(numbers).all() or self.scale == 0 or 0 in self.std:
            raise OptionError(
                f"scale {self.scale}, mean {list(self.mean)}, std {list(self.std)}: "
                "all must be finite numbers, and scale and std not zero"
            )


def read_samples(source: Any, options: DataOptions | None = None) -> Samples:
    """Samples from any source.

    Args:
        source: a path to a .npz or .npy file or to a folder of images; "package.module:function" (or an iterable in
            a module), looked up in the current folder too; an iterable of batches, such as a torch DataLoader; a
            mapping of arrays; one array; a pair of arrays (inputs, labels); or a Samples.
        options: how the pictures of a folder become arrays; an error for any other source.

    A batch is `inputs` or the pair `(inputs, labels)`; inputs are an array, a sequence of arrays or a mapping by name,
    all with a batch axis in front. In a mapping, `labels`, `label`, `y`, `target` or `targets` holds the labels.

    Raises:
        DataError: the source cannot be read, holds no sample, or lengths differ.
        OptionError: the options do not fit.
        OutputError: no room for the temporary copy of what an iterable yields.
    """
    options = options or DataOptions()
    if options != DataOptions() and not (isinstance(source, (str, Path)) and Path(source).is_dir()):
        raise OptionError(
            "size, resize, mean, std, scale, layout and channels are for a folder of images; "
            "arrays are taken as they are"
        )
    if isinstance(source, Samples):
        return source
    if isinstance(source, (str, Path)):
        return _read_path(source, options)
    if isinstance(source, Mapping):
        return samples_from_mapping(source, "the mapping")
    if looks_like_array(source):
        return samples_from_mapping({"input_0": source}, "the array")
    if isinstance(source, tuple) and len(source) == 2 and all(looks_like_array(part) for part in source):
        return samples_from_mapping({"input_0": source[0], "labels": source[1]}, "the pair of arrays")
    if isinstance(source, Iterable):
        return read_iterable(source, type(source).__name__)
    raise DataError(
        f"data of type {type(source).__name__}; give {DOORS}, an iterable of batches, or a mapping of arrays"
    )


def _read_path(source: str | Path, options: DataOptions) -> Samples:
    path = Path(source)
    if path.is_dir():
        return read_image_folder(path, options)
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(path)
    if path.suffix.lower() == ".npy" and path.is_file():
        return read_npy(path)
    if path.exists():
        raise DataError(
            f"{path}: {path.suffix or 'a file without suffix'} is not a kind of data gossamer reads; give {DOORS}"
        )
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(source)):
        made = call_function(str(source))
        if isinstance(made, (str, Path)):
            raise DataError(f"{source}: gave a text, {str(made)!r}; it must give an iterable of batches")
        return read_samples(made, options)
    raise DataError(f"{path}: no such file or folder; give {DOORS}")
