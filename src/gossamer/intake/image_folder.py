"""A folder of pictures becomes samples; each picture is decoded when it is asked for and not kept."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from gossamer.errors import DataError, MissingExtraError
from gossamer.nouns.samples import Samples, samples_from_arrays

if TYPE_CHECKING:
    from PIL import Image

    from gossamer.intake.samples import DataOptions

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, eq=False)
class ImageColumn(Sequence[np.ndarray]):
    """Pictures read on demand as (C, H, W) or (H, W, C)."""

    paths: tuple[Path, ...]
    options: DataOptions

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]  # slices are not needed
        return decode(self.paths[row], self.options)

    def fingerprint(self, row: int) -> bytes:
        """Equal for files of equal bytes; decoding is not needed."""
        return hashlib.sha1(self.paths[row].read_bytes(), usedforsecurity=False).digest()


def read_image_folder(folder: Path, options: DataOptions) -> Samples:
    """Pictures directly in a folder, unlabelled; or in one sub-folder per class.

    Sub-folders whose names are all numbers give those numbers as labels, others are numbered from 0 in order of name.

    Raises:
        DataError: no pictures, or pictures both beside and inside class sub-folders.
        MissingExtraError: Pillow is not installed.
    """
    _pillow()
    flat = _pictures(folder)
    classes = {sub.name: _pictures(sub) for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".")}
    classes = {name: paths for name, paths in classes.items() if paths}
    if flat and classes:
        raise DataError(
            f"{folder}: {flat[0].name} lies beside the class folder {min(classes)!r}; "
            "put every picture into a class folder, or all directly in the folder (unlabelled)"
        )
    if not flat and not classes:
        raise DataError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}) in it or its sub-folders")
    if flat:
        return samples_from_arrays({"input_0": ImageColumn(tuple(flat), options)}, None, str(folder))
    numbers = _class_numbers(sorted(classes))
    paths = tuple(path for name in numbers for path in classes[name])
    labels = np.array([number for name, number in numbers.items() for _ in classes[name]], dtype=np.int64)
    return samples_from_arrays({"input_0": ImageColumn(paths, options)}, labels, str(folder))


def decode(path: Path, options: DataOptions) -> np.ndarray:
    """One picture as the options say; transparency becomes white.

    Raises:
        DataError: the file cannot be decoded, or has more than 8 bits a channel.
    """
    image_module = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about huge or slightly damaged files that still decode
            with image_module.open(path) as image:
                if image.mode[0] in "IF":
                    raise DataError(f"{path}: has mode {image.mode}, more than 8 bits a channel; convert it to 8 bits")
                pixels = np.asarray(_crop(_on_white(image, "L" if options.channels == "grey" else "RGB"), options))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise DataError(f"{path}: cannot be decoded as a picture ({error}); replace or remove the file") from error
    return _normalise(pixels.reshape(*pixels.shape[:2], -1), options)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pictures need Pillow; install it: pip install pillow") from error
    return Image


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _class_numbers(names: list[str]) -> dict[str, int]:
    """Class folder -> label, in order of label."""
    if all(name.isascii() and name.isdigit() for name in names):
        return {name: int(name) for name in sorted(names, key=int)}
    return {name: number for number, name in enumerate(names)}


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        pillow = _pillow()
        top = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", top.size, "white"), top)
    return image.convert(mode)


def _crop(image: Image.Image, options: DataOptions) -> Image.Image:
    """Shorter side to `resize`, then the centre `size` x `size`."""
    if options.size is None:
        return image
    ratio = (options.resize or options.size) / min(image.size)
    width, height = (max(options.size, round(side * ratio)) for side in image.size)
    left, top = (width - options.size) // 2, (height - options.size) // 2
    resized = image.resize((width, height), _pillow().Resampling.BILINEAR)
    return resized.crop((left, top, left + options.size, top + options.size))


def _normalise(pixels_HWC: np.ndarray, options: DataOptions) -> np.ndarray:
    pixels = pixels_HWC[..., ::-1] if options.channels == "bgr" else pixels_HWC
    if options.scale != 1 or options.mean or options.std:
        values = pixels.astype(np.float32) * np.float32(options.scale)
        pixels = (values - np.array(options.mean or 0, np.float32)) / np.array(options.std or 1, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if options.layout == "nchw" else pixels)
