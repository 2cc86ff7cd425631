"""Feeds the reader of archives with what nobody packed: `make fuzz`, or python fuzz/fuzz_reader.py --seconds 60.

Only ArchiveError may come out, within seconds and in bounded memory, and the compiled decoder must agree with the plain
one. An input is an archive as it is; or one taken apart, with the index decompressed, which is put together again with
right checksums; or choices of what tables, streams, planes and chunks an archive has, made so that everything adds up.
So changes get as far as there is something to find.
Guided by coverage where atheris is installed; without it, bytes of the fixtures are changed at random.

An input that fails is written to fuzz/failed-<digest>, and `python fuzz/fuzz_reader.py --again FILE` runs it once more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import FrameType

try:
    import atheris
except ImportError:
    atheris = None

# measured where atheris can see it: before anything else imports the reader
with atheris.instrument_imports(include=["gossamer.archive.reader"]) if atheris else contextlib.nullcontext():
    from gossamer.archive import reader

from fuzz.composed import composed
from tests.archive.building import Opened, closed, number, opened

from gossamer.archive.tables import Decoder
from gossamer.errors import ArchiveError

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "archive" / "fixtures"
BASE = (FIXTURES / "base.bin").read_bytes()
DIGEST = sha256(BASE).digest()
MOST = 1 << 16  # bytes of a model
HANG_S = 20
PEAK_BYTES = 48 << 20  # the dictionary of LZMA, tables, and what a model of MOST bytes needs many times over
AS_IT_IS, REPAIRED, COMPOSED = 0, 1, 2


def main() -> None:
    options = argparse.ArgumentParser(description="Fuzz the reader of archives.")
    options.add_argument("--seconds", type=int, default=600)
    options.add_argument("--again", type=Path, help="an input that failed")
    options.add_argument("--blind", action="store_true", help="at random, even if atheris is there")
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    signal.signal(signal.SIGALRM, hang)
    tracemalloc.start()
    if chosen.again:
        one(chosen.again.read_bytes())
    elif atheris and not chosen.blind:
        guided(chosen.seconds, chosen.seed)
    else:
        blind(chosen.seconds, chosen.seed)


def one(data: bytes) -> bool:
    """Whether a single input is unpacked; AssertionError or whatever the reader lets out."""
    archive = archive_of(data)
    signal.alarm(HANG_S)
    found = [outcome(archive, decoder) for decoder in (Decoder, reader.Words)]
    signal.alarm(0)
    if found[0] != found[1]:
        raise AssertionError("the compiled decoder and the plain one do not agree")
    return found[0] is not None


def outcome(archive: bytes, decoder: type[reader.Decoder]) -> bytes | None:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        model = reader.unpack(archive, BASE, MOST, decoder)
    except ArchiveError:
        model = None
    peak = tracemalloc.get_traced_memory()[1] - before
    if peak > PEAK_BYTES + 256 * len(archive):
        raise AssertionError(f"{peak:,} bytes were allocated for an archive of {len(archive):,}")
    return model


def hang(_signal: int, _frame: FrameType | None) -> None:
    raise AssertionError(f"not done after {HANG_S} seconds")


def archive_of(data: bytes) -> bytes:
    """The archive that an input stands for; any bytes stand for one."""
    if not data or data[0] % 4 == AS_IT_IS:
        return data[1:]
    source = iter(data[1:])
    return _repaired(source) if data[0] % 4 == REPAIRED else closed(composed(source, DIGEST))


def _repaired(source: Iterator[int]) -> bytes:
    model_bytes, based, sections, index_bytes = (_number(source) for _ in range(4))
    sizes = [(_number(source), _number(source)) for _ in range(min(sections, 64))]
    rest = bytes(source)
    index, at, parts = rest[:index_bytes], index_bytes, []
    for length, decoded in sizes:
        parts.append((rest[at : at + length], decoded))
        at += length
    return closed(Opened(model_bytes, DIGEST if based % 2 else b"", index, tuple(parts)))


def input_of(archive: bytes) -> bytes:
    """What stands for an archive, taken apart."""
    whole = opened(archive)
    head = [whole.model_bytes, int(bool(whole.base)), len(whole.sections), len(whole.index)]
    head += [size for part, decoded in whole.sections for size in (len(part), decoded)]
    body = whole.index + b"".join(part for part, _ in whole.sections)
    return bytes([REPAIRED]) + b"".join(map(number, head)) + body


def seeds() -> list[bytes]:
    every = [path.read_bytes() for path in sorted(FIXTURES.glob("*.goss"))]
    chance = random.Random(0)
    composed = [
        bytes([COMPOSED]) + bytes(chance.choice((0, 1, 2, 3, 8, 100, chance.randrange(256))) for _ in range(600))
        for _ in range(50)
    ]
    return [bytes([AS_IT_IS]) + data for data in every] + [input_of(data) for data in every] + composed


def guided(seconds: int, seed: int) -> None:
    """libFuzzer ends the process by itself."""
    with tempfile.TemporaryDirectory() as folder:
        for at, data in enumerate(seeds()):
            (Path(folder) / f"seed{at}").write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=4096", "-len_control=0"]
        options += [f"-artifact_prefix={HERE}/failed-", "-timeout=0", "-rss_limit_mb=2048", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], folder, *options], lambda data: one(data) and None)
        atheris.Fuzz()


def blind(seconds: int, seed: int) -> None:
    chance, pool, runs, end = random.Random(seed), seeds(), 0, time.monotonic() + seconds
    unpacked = 0
    while time.monotonic() < end:
        data = changed(chance.choice(pool), pool, chance)
        try:
            unpacked += one(data)
        except BaseException:
            path = HERE / f"failed-{sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"failed after {runs:,} runs: {path}", file=sys.stderr)
            raise
        runs += 1
        if len(pool) < 4000 and chance.random() < 0.002:
            pool.append(data)  # changes add up
    print(f"{runs:,} runs in {seconds} s, {unpacked:,} unpacked, the others refused by ArchiveError")


def changed(data: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    """A few bytes of it other, more, fewer or from another input."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(1, len(found) + 1)
        way = chance.randrange(6)
        if way == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif way == 1 and at < len(found):
            found[at] = chance.choice((0, 1, 2, 127, 128, 255, chance.randrange(256)))
        elif way == 2:
            found[at:at] = chance.choice((b"\xff\xff\x03", b"\x80\x80\x80\x08", b"\0", chance.randbytes(4)))
        elif way == 3:
            del found[at : at + chance.randrange(1, 8)]
        elif way == 4:
            found[at:at] = found[at : at + chance.randrange(1, 40)]
        else:
            other = chance.choice(pool)
            start = chance.randrange(len(other))
            found[at : at + 8] = other[start : start + chance.randrange(1, 24)]
    return bytes(found)


def _number(source: Iterator[int]) -> int:
    """As in the format, but 0 where the bytes end; at most 63 bits of it."""
    value = 0
    for shift in range(0, 63, 7):
        byte = next(source, 0)
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
