"""What has been measured so far, on disk, so that a run killed at any moment goes on where it was.

The folder `.gossamer` inside the output folder holds the candidates' files and `journal.jsonl`: a first line that says
what run this is, then a line for each finished candidate, flushed to disk before the next begins. A run that finds a
journal of the same run takes its lines over; a journal of another run, or a torn last line, is thrown away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gossamer.errors import OutputError
from gossamer.nouns.model import model_sha256
from gossamer.nouns.plan import Plan
from gossamer.nouns.record import Candidate
from gossamer.nouns.target import Target

WORK = ".gossamer"
JOURNAL = "journal.jsonl"


class Run(msgspec.Struct, frozen=True):
    """Everything that a candidate's facts depend on, apart from its plan."""

    original_sha256: str
    calibrate: str
    select: str
    metric: str
    target: Target
    versions: dict[str, str]
    learn: str = ""


class Entry(msgspec.Struct, frozen=True):
    """A finished candidate: its place in the record, and its file if it passed the gate."""

    candidate: Candidate
    sha256: str = ""
    stores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Journal:
    """An open journal.

    Attributes:
        folder: where the candidates' files are.
        known: plan -> what an earlier, killed run found of it.
    """

    folder: Path
    known: dict[str, Entry] = field(default_factory=dict)

    def file_of(self, plan: Plan) -> Path:
        """Where a plan's candidate is kept: the same place in every run."""
        return self.folder / f"{digest_of(key_of(plan))}.onnx"

    def recall(self, plan: Plan) -> Entry | None:
        """What is known of a plan, if its file is whole."""
        entry = self.known.get(key_of(plan))
        if entry is None or not entry.sha256:
            return entry
        file = self.file_of(plan)
        return entry if file.exists() and model_sha256(file) == entry.sha256 else None

    def add(self, entry: Entry) -> None:
        """Write a line, and see that it is on disk.

        Raises:
            OutputError: the disk is full.
        """
        append(self.folder / JOURNAL, msgspec.json.encode(entry))


@contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """The folder for candidates inside the output folder; kept if the run ends badly with something in its journal."""
    work = out / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}; choose another -o") from error
    try:
        yield work
    except BaseException:
        path = work / JOURNAL
        if not path.exists() or path.read_bytes().count(b"\n") < 2:  # no more than the first line
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def open_journal(work: Path, run: Run) -> Journal:
    """Take over the journal of the same run, or begin a new one."""
    path, head = work / JOURNAL, msgspec.json.encode(run)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    if not lines or lines[0] != head:
        for leftover in work.iterdir():
            if leftover.is_file() and not leftover.name.startswith("original."):
                leftover.unlink()
        append(path, head)
        return Journal(work)
    known: dict[str, Entry] = {}
    for line in lines[1:]:
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except (msgspec.DecodeError, msgspec.ValidationError):  # torn by the kill, or the empty end
            continue
        known[key_of(entry.candidate.plan)] = entry
    if lines[-1]:  # end the torn line, so that the next one is not glued to it
        append(path, b"")
    return Journal(work, known)


def key_of(plan: Plan) -> str:
    """A text equal for plans that say the same under the same name."""
    return msgspec.json.encode(plan, order="sorted").decode()


def digest_of(text: str) -> str:
    """Sixteen hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(path: Path, line: bytes) -> None:
    """Add a line to a file and flush it to disk.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    try:
        with open(path, "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; free some space") from error
