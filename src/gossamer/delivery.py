"""The folder that a person receives: checked before the work, filled in the end, every file whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gossamer.archive import is_archive
from gossamer.errors import OptionError, OutputError
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import files_of, save, sha256, whole_file

RESULTS = ("model.onnx", "model.goss")  # models that a folder may receive,
ORIGINAL = "original.onnx"  # and what was unpacked or translated from the one that was given


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
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise OutputError(f"cannot write into the folder {folder}: {reason}; choose another -o") from error
    return folder


def check_not_input(model: Any, folder: Path) -> None:
    """The result must not take the place of the model it was made from, nor of another model's weights.

    Args:
        model: as it was given: a path, or anything else that `read` takes.

    Raises:
        OptionError: it would.
    """
    source = Path(model) if isinstance(model, str | Path) else getattr(model, "path", None)
    if source is None:
        return
    for target in (folder / name for name in (*RESULTS, *([ORIGINAL] if is_archive(source) else []))):
        if target.exists() and source.resolve() == target.resolve():
            raise OptionError(
                f"{target} is the model that was given, and the result would replace it; choose another -o"
            )
    for file in files_of(source)[1:]:  # they come along if the answer is the original
        there = folder / file.relative_to(source.parent)
        if there.exists() and there.resolve() != file.resolve() and sha256(there) != sha256(file):
            raise OptionError(f"{there} holds weights of another model and would be replaced; choose another -o")


def deliver(source: Path, target: Path, ours: bool = False) -> None:
    """Put an ONNX file under another name, with the weights it keeps beside it.

    A person's own file comes through byte for byte, its external data under the names that the graph says. Those of a
    candidate of `ours` are named after the graph, so they are written anew.

    Raises:
        OutputError: no room, or the target cannot be written.
    """
    graph, *beside = files_of(source)
    if ours and beside:
        save(read(source), target)
        return
    for file in beside:
        copy = target.parent / file.relative_to(source.parent)
        if copy.resolve() != file.resolve():
            _copy(file, copy)
    _copy(graph, target)


def publish(staged: Path, folder: Path) -> None:
    """Move every finished file into the folder: all are on its disk already, so none can fail for want of room.

    Raises:
        OutputError: a name is taken by a folder.
    """
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        target = folder / file.relative_to(staged)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}; choose another -o") from error


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as given, whole_file(target) as file:
        shutil.copyfileobj(given, file, 1 << 20)


def seen_from(folder: Path, name: str) -> str:
    """A path as seen from a folder, so that both can be moved together; names that are no path stay as they are."""
    if not name or not Path(name).exists():
        return name
    try:
        return os.path.relpath(Path(name).resolve(), folder.resolve())
    except ValueError:  # another drive
        return str(Path(name).resolve())
