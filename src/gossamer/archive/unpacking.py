"""The model in an archive. Nothing is imported but what decoding needs: who only runs a model waits for no more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

from gossamer.archive import SUFFIX
from gossamer.archive.reader import LIMIT_BYTES, MAGIC, unpack
from gossamer.archive.tables import Decoder
from gossamer.errors import ArchiveError, ModelError, OptionError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

WORTH_BYTES = 1 << 22  # of an archive: what takes less time than a process takes to start is decoded by this one


def read_archive(
    archive: str | Path | bytes, base: str | Path | None = None, most: int = LIMIT_BYTES, processes: int = 1
) -> bytes:
    """The bytes of the ONNX file that was packed.

    Args:
        archive: its file, or its bytes.
        processes: that decode chunks at the same time (one thread at a time can, in a process), where the archive has
            4 MB or more: they take up to a second to start. A script that asks for more than one is a file, and has
            its own calls below `if __name__ == "__main__":`, as always where Python starts processes.

    Raises:
        ArchiveError: see `unpack_file`.
        OptionError: no processes.
    """
    if isinstance(archive, bytes):
        return _unpacked(Path("the archive"), archive, base, most, processes)
    return _unpacked(Path(archive), file_bytes(Path(archive)), base, most, processes)


def model_bytes(path: Path) -> bytes:
    """Of an ONNX file, or of the one in an archive, whatever its name."""
    data = file_bytes(path)
    return _unpacked(path, data, None, LIMIT_BYTES, 1) if data.startswith(MAGIC) else data


def _unpacked(path: Path, data: bytes, base: str | Path | None, most: int, processes: int) -> bytes:
    if processes < 1:
        raise OptionError(f"processes are {processes}; at least 1 decodes")
    before = None if base is None else model_bytes(Path(base))
    try:
        if processes == 1 or len(data) < WORTH_BYTES:
            return unpack(data, before, most, Decoder)
        return _at_once(data, before, most, processes)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None


def _at_once(data: bytes, before: bytes | None, most: int, processes: int) -> bytes:
    from concurrent.futures.process import BrokenProcessPool

    try:
        pool = _started(min(processes, os.cpu_count() or 1))  # more would wait for each other
    except (OSError, AssertionError):  # no more files or processes may be opened, or this one may have no children
        return unpack(data, before, most, Decoder)
    try:
        return unpack(data, before, most, Decoder, pool.map)
    except BrokenProcessPool:
        raise ArchiveError(
            "a process that decodes ended: there is too little memory, or the script that asks for several is no file, "
            'or has its calls not below `if __name__ == "__main__":`; one process needs none of that'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _started(processes: int) -> ProcessPoolExecutor:
    """A pool whose processes run already."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(processes, get_context("spawn"))  # a fork may hold a lock of a runtime's threads
    try:
        with _interrupts_ignored():
            for _ in range(processes):
                pool.submit(os.getpid)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    return pool


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Also by processes that are started meanwhile: Ctrl-C is for this one, which ends them."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
