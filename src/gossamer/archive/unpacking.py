"""The model in an archive. Nothing is imported but what decoding needs: who only runs a model waits for no more."""

from __future__ import annotations

from pathlib import Path

from gossamer.archive import SUFFIX
from gossamer.archive.reader import LIMIT_BYTES, MAGIC, unpack
from gossamer.archive.tables import Decoder
from gossamer.errors import ArchiveError, ModelError


def read_archive(archive: str | Path | bytes, base: str | Path | None = None, most: int = LIMIT_BYTES) -> bytes:
    """The bytes of the ONNX file that was packed.

    Args:
        archive: its file, or its bytes.

    Raises:
        ArchiveError: see `unpack_file`.
    """
    if isinstance(archive, bytes):
        return _unpacked(Path("the archive"), archive, base, most)
    return _unpacked(Path(archive), file_bytes(Path(archive)), base, most)


def model_bytes(path: Path) -> bytes:
    """Of an ONNX file, or of the one in an archive, whatever its name."""
    data = file_bytes(path)
    return _unpacked(path, data, None, LIMIT_BYTES) if data.startswith(MAGIC) else data


def _unpacked(path: Path, data: bytes, base: str | Path | None, most: int) -> bytes:
    before = None if base is None else model_bytes(Path(base))
    try:
        return unpack(data, before, most, Decoder)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None


def file_bytes(path: Path) -> bytes:
    """What is in a file.

    Raises:
        ArchiveError, ModelError: by its name, it cannot be read.
    """
    error = ArchiveError if path.suffix.lower() == SUFFIX else ModelError
    if path.is_dir():
        raise error(f"{path} is a folder; give the file")
    try:
        return path.read_bytes()
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}; give the path of a file") from problem
