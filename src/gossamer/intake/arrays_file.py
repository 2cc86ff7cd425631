"""Arrays of a .npz or .npy file or a mapping become samples; the first axis counts them. Nothing is ever unpickled."""

from __future__ import annotations

import errno
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from gossamer.errors import DataError, OutputError
from gossamer.intake.file_column import FileColumn
from gossamer.nouns.samples import Samples, samples_from_arrays

LABEL_NAMES = ("labels", "label", "y", "target", "targets")

Column: TypeAlias = "np.ndarray | Sequence[np.ndarray]"


def read_npy(path: Path) -> Samples:
    """One unlabelled input, read sample by sample.

    Raises:
        DataError: not a .npy file, cut short, of objects, or empty.
    """
    with _reading(path), _closed_on_failure(open(path, "rb")) as file:
        column = _column(file, 0, path.stat().st_size, str(path))
    return samples_from_columns({"input_0": column}, str(path))


def read_npz(path: Path) -> Samples:
    """The arrays of a .npz by their names; `labels`, `label`, `y`, `target` or `targets` holds the labels.

    An array stored uncompressed (`np.savez`) is read from the file sample by sample; a compressed one is unpacked to a
    temporary file first.

    Raises:
        DataError: not a .npz file, damaged, an array of objects or without sample axis, lengths that differ, or empty.
        OutputError: no room to unpack a compressed array.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        columns = {info.filename[:-4]: _member(path, archive, info) for info in members}
    if not columns:
        raise DataError(f"{path}: holds no arrays; write it with np.savez(path, input=..., labels=...)")
    return samples_from_columns(columns, str(path))


def samples_from_mapping(arrays: Mapping[str, Any], source: str) -> Samples:
    """Samples over named arrays, or lists of arrays of differing shapes; names for labels as in a .npz.

    Raises:
        DataError: a value that is no array of numbers, lengths that differ, or nothing there.
    """
    return samples_from_columns(
        {str(name): _held(value, f"{source}: {name!r}") for name, value in arrays.items()}, source
    )


def samples_from_columns(columns: Mapping[str, Column], source: str) -> Samples:
    """Part the labels from the inputs."""
    named = next((name for name in LABEL_NAMES if name in columns), None)
    inputs = {name: column for name, column in columns.items() if name != named}
    if named is None:
        return samples_from_arrays(inputs, None, source)
    labels = columns[named]
    if isinstance(labels, FileColumn):
        labels = labels.whole()
    elif not isinstance(labels, np.ndarray):
        raise DataError(f"{source}: {named!r} has entries of differing shapes; labels need one array (N, ...)")
    return samples_from_arrays(inputs, check_labels(labels, f"{source}: {named!r}"), source)


def check_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels as (N, ...): a trailing axis of one is dropped.

    Raises:
        DataError: text or objects, or NaN or Inf.
    """
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where} has type {labels.dtype}; labels must be numbers, for classes 0, 1, 2, ...")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        bad = int(np.argwhere(~np.isfinite(labels))[0][0])
        raise DataError(f"{where} has NaN or Inf at sample {bad}; remove or correct that sample")
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def looks_like_array(value: Any) -> bool:
    """Whether a value is one array: numpy's, torch's, or of any library that converts to numpy."""
    return isinstance(value, np.ndarray) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def to_array(value: Any, where: str) -> np.ndarray:
    """A numpy array of an array or tensor; torch is not imported.

    Raises:
        DataError: objects, or something that has no regular shape.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has no such type
            value = value.float()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} is not an array: {str(error).splitlines()[0]}") from error
    if array.dtype.hasobject or array.dtype.names or array.dtype.kind == "V":
        raise DataError(
            f"{where} has type {array.dtype}; only arrays of numbers or text are read, never Python objects"
        )
    return array


def _held(value: Any, where: str) -> Column:
    """A column that is already in memory, or a lazy one as it is."""
    if isinstance(value, FileColumn):
        return value
    if isinstance(value, (list, tuple)) and value and all(looks_like_array(part) for part in value):
        parts = [to_array(part, where) for part in value]
        return parts if len({part.shape for part in parts}) > 1 else np.stack(parts)
    array = to_array(value, where)
    if array.ndim == 0:
        raise DataError(f"{where} is a single number; its first axis must count the samples")
    return array


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OutputError(
                f"no room to unpack {path} in {tempfile.gettempdir()}; set TMPDIR to a larger disk"
            ) from error
        raise DataError(f"{path}: cannot be read as {path.suffix}: {text}; write it again with numpy") from error


@contextmanager
def _closed_on_failure(file: BinaryIO) -> Iterator[BinaryIO]:
    """A file that a column will keep, unless there will be no column."""
    try:
        yield file
    except BaseException:
        file.close()
        raise


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray | FileColumn:
    where = f"{path}: array {info.filename[:-4]!r}"
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        with _closed_on_failure(tempfile.TemporaryFile()) as unpacked, archive.open(info) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
            return _column(unpacked, 0, info.file_size, where)
    with _closed_on_failure(open(path, "rb")) as file:
        file.seek(info.header_offset)
        header = file.read(30)  # a zip member's local header: two lengths at its end, then a name and extra bytes
        name_length, extra_length = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return _column(file, info.header_offset + 30 + name_length + extra_length, info.file_size, where)


def _column(file: BinaryIO, start: int, size: int, where: str) -> np.ndarray | FileColumn:
    """The array that begins at a byte of a file, checked against the bytes that are there."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read_header(file)
    data = file.tell()
    if dtype.hasobject or dtype.names:
        raise DataError(f"{where} holds Python objects; pickles are never loaded: save an array of numbers")
    if not shape:
        raise DataError(f"{where} is a single number; its first axis must count the samples")
    present, wanted = start + size - data, math.prod(shape) * dtype.itemsize
    if present < wanted or min(shape) < 0:
        raise DataError(f"{where} is cut short: shape {shape} of {dtype} needs {wanted} bytes, {present} are there")
    if columns_first and len(shape) > 1:  # a sample's numbers are scattered over the file
        with file:
            return (
                np.ascontiguousarray(np.memmap(file, dtype, "r", data, shape, "F"))
                if wanted
                else np.empty(shape, dtype)
            )
    stride = wanted // shape[0] if shape[0] else 0
    return FileColumn(file, dtype, data + stride * np.arange(shape[0], dtype=np.int64), shape[1:])
