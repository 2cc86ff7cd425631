"""A model: the ONNX graph in memory and where it came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gossamer.errors import OutputError

if TYPE_CHECKING:
    import onnx_ir as ir

PROTO_LIMIT_BYTES = 2_000_000_000  # protobuf refuses 2^31 - 1; the graph itself needs room too


@dataclass(frozen=True)
class Model:
    """An ONNX graph and its origin. Stages never edit the graph of a model they were given: they clone it.

    Attributes:
        ir: the graph; big tensors stay on disk, memory-mapped, until they are read.
        name: what to call it in messages, usually the file's name.
        path: the file it was read from, or None if it was made in memory.
        notes: what intake changed or could not change, in plain words.
        reference: the float model that this one approximates, once a pass has changed the function.
    """

    ir: ir.Model
    name: str
    path: Path | None = None
    notes: tuple[str, ...] = ()
    reference: Model | None = None

    def clone(self) -> Model:
        """A model whose graph can be edited freely; tensors are shared, as they are immutable."""
        return replace(self, ir=self.ir.clone())

    def weight_bytes(self) -> int:
        """Bytes of all initializers of the main graph, as stored."""
        return sum(value.const_value.nbytes for value in self.ir.graph.initializers.values() if value.const_value)


def to_bytes(model: Model) -> bytes:
    """Serialise a model under 2 GB with its weights inside; the same graph gives the same bytes."""
    import onnx_ir as ir

    content: bytes = ir.serde.serialize_model(model.ir).SerializeToString(deterministic=True)
    return content


def save(model: Model, path: str | Path) -> int:
    """Write `path` (and `path` + `.data` for weights over 2 GB) and return the bytes of all files needed to run it.

    Written to a temporary name first and renamed, so that an earlier file stays whole if this fails.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    import onnx_ir as ir

    path = Path(path)
    if model.weight_bytes() < PROTO_LIMIT_BYTES:
        return write_file(path, to_bytes(model))
    data = path.with_name(path.name + ".data")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the graph file holds the data file's final name, so both are made in a folder of their own and moved
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        staging.mkdir()
        try:
            ir.save(model.ir, staging / path.name, external_data=data.name)
            os.replace(staging / data.name, data)
            os.replace(staging / path.name, path)
        finally:
            for leftover in staging.iterdir():
                leftover.unlink()
            staging.rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another -o"
        ) from error
    return size_bytes(path)


def write_file(path: Path, content: bytes) -> int:
    """Write a file whole or not at all, and return its length in bytes.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with whole_file(path) as file:
        file.write(content)
    return len(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, under a temporary name; once it is on disk it takes the place of `path`.

    Behind a link, of what it leads to.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or `path` is a device or another thing but a file.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is there and no file; choose another -o")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose another -o, or free some space"
        ) from error


def size_bytes(path: Path) -> int:
    """Bytes on disk of an ONNX file with every external-data file it names."""
    return sum(file.stat().st_size for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """An ONNX file and, sorted, the external-data files that it names; a file of another kind is by itself."""
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's implementations raise different types for an archive, or a Keras file
        return [path]
    names = {
        entry.value
        for tensor in onnx.external_data_helper._get_all_tensors(proto)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / name for name in sorted(names))]


def model_sha256(path: Path) -> str:
    """Hex digest of an ONNX file; with external data, of the digests of all its files, graph first."""
    digests = [sha256(file) for file in files_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()
