"""The folder that a person receives: checked before the work, filled in the end, every file whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from gossamer.errors import OutputError
from gossamer.nouns.model import Model, save, size_bytes, write_file


def writable_folder(out: str | Path) -> Path:
    """The folder, made if need be.

    Raises:
        OutputError: it cannot be made or written into.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}; choose another -o") from error
    return folder


def deliver(source: Path, target: Path) -> None:
    """Put an ONNX file under its final name, with what it needs beside it.

    Raises:
        OutputError: no room, or the target cannot be written.
    """
    if source.resolve() == target.resolve():
        return
    if size_bytes(source) == source.stat().st_size:
        write_file(target, source.read_bytes())
    else:  # the weights' file must be named after the new graph
        save(Model(ir.load(source), source.name), target)


def seen_from(folder: Path, name: str) -> str:
    """A path as seen from a folder, so that both can be moved together; names that are no path stay as they are."""
    if not name or not Path(name).exists():
        return name
    try:
        return os.path.relpath(Path(name).resolve(), folder.resolve())
    except ValueError:  # another drive
        return str(Path(name).resolve())
