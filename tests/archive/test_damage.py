"""A file that is not what was packed is refused in one line, before it costs anything."""

from __future__ import annotations

import lzma
import tracemalloc
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from time import process_time
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.archive.building import (
    Kernels,
    Opened,
    Stream,
    archive_of,
    classed,
    closed,
    coded,
    number,
    numbers,
    opened,
    table,
)

from gossamer.archive import reader
from gossamer.archive.reader import FEW, FILTERS, FLOATS, INTEGERS, PLANES, WIDE, WORDS, Words, unpack
from gossamer.archive.tables import Decoder
from gossamer.errors import ArchiveError

FIXTURES = Path(__file__).parent / "fixtures"
EVERY = sorted(FIXTURES.glob("*.goss"))
BASE = (FIXTURES / "base.bin").read_bytes()
RAW = b"\0"
TWO = (2, 0, [384, 300])
MEBIBYTE = 2**20


def outcome(data: bytes, decoder: type[reader.Decoder] = Decoder, most: int = MEBIBYTE) -> bytes | None:
    """The model, or nothing where it is refused in one line; any other error is the test's."""
    try:
        return unpack(data, BASE, most, decoder)
    except ArchiveError as error:
        assert "\n" not in str(error) and str(error)
        return None


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_flipped_bit_is_refused(path: Path) -> None:
    data, refused = path.read_bytes(), 0
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        found = outcome(bytes(flipped))
        refused += found is None
        assert found is None or found == outcome(data)
    assert refused == 8 * len(data)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_length_but_its_own_is_refused(path: Path) -> None:
    data = path.read_bytes()
    assert outcome(data) is not None
    assert all(outcome(data[:length]) is None for length in range(len(data)))
    assert all(outcome(data + more) is None for more in (b"\0", b"\n", data))


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_flips_inside_of_an_archive_whose_checksums_are_right_are_refused_or_decoded_alike(path: Path) -> None:
    whole = opened(path.read_bytes())
    for at in range(8 * len(whole.index)):
        index = bytearray(whole.index)
        index[at // 8] ^= 1 << at % 8
        data = closed(whole._replace(index=bytes(index)))
        assert outcome(data) == outcome(data, Words)
    for place, (part, size) in enumerate(whole.sections):
        for at in range(8 * len(part)):
            changed = bytearray(part)
            changed[at // 8] ^= 1 << at % 8
            sections = list(whole.sections)
            sections[place] = (bytes(changed), size)
            data = closed(whole._replace(sections=tuple(sections)))
            assert outcome(data) == outcome(data, Words)


@given(st.data())
@settings(max_examples=150)
def test_anything_in_place_of_an_index_is_refused_or_decoded_alike(draws: st.DataObject) -> None:
    whole = opened(draws.draw(st.sampled_from(EVERY)).read_bytes())
    start = draws.draw(st.integers(0, len(whole.index)))
    stop = draws.draw(st.integers(start, min(start + 4, len(whole.index))))
    index = whole.index[:start] + draws.draw(st.binary(max_size=6)) + whole.index[stop:]
    data = closed(whole._replace(index=index))
    assert outcome(data) == outcome(data, Words)


def test_a_promise_of_much_costs_nothing() -> None:
    """Totals of gigabytes, in each place that says how much there is."""
    whole = opened((FIXTURES / "integers.goss").read_bytes())
    huge = 2**31 - 1
    tables, (chunk, _), last = whole.sections
    one = Stream(INTEGERS, 8, 0, (b"\1\0",), ((b"", huge),))
    shape = numbers(1, 2, 0, 2, 16, 1)  # one table, then slope and coarse
    hostile = [
        whole._replace(model_bytes=huge),
        whole._replace(model_bytes=2**62),
        whole._replace(model_bytes=huge, sections=(tables, (chunk, huge - 100), last)),
        whole._replace(sections=((tables[0], huge), (chunk, 12), last)),
        whole._replace(model_bytes=huge, sections=((tables[0], 2**62), (chunk, 12), last)),
        whole._replace(index=number(2**40) + whole.index),
        whole._replace(index=numbers(1, 2**16, 0, 2**16, 16, 1) + bytes(100)),
        archive_of([one], [(0, huge, 0, 0)], b"")._replace(model_bytes=1000),
        archive_of([Stream(INTEGERS, 8, 0, (classed(2**62, 0, 1, 1, 1),), ((b"", 8),))], [(0, 8, 0, 0)], b"", [TWO]),
        archive_of([Stream(INTEGERS, 8, 0, (RAW,), ((b"", 2**40),))], [(0, 2**40, 0, 0)], b""),
        Opened(huge, b"", shape + numbers(2**30), ((b"", 2),)),
        Opened(huge, b"", shape + numbers(0, 2**27), ((b"", 2),)),
        Opened(huge, b"", shape + numbers(1, FEW, 16, 0, 2**60), ((b"", 2),)),
        Opened(huge, b"", numbers(0, 16, 1, 2**30), ((b"", 0),)),
    ]
    tracemalloc.start()
    try:
        for one_of_them in hostile:
            data = closed(one_of_them)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with pytest.raises(ArchiveError):
                unpack(data, decoder=Decoder)
            assert tracemalloc.get_traced_memory()[1] - before < 12 * MEBIBYTE  # the dictionary of LZMA has 8 of them
    finally:
        tracemalloc.stop()


def test_what_grows_a_thousandfold_stops_where_it_was_promised_to() -> None:
    """LZMA that would be fifty megabytes, in the place of the index."""
    zeros = 5 * 10**7
    coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=FILTERS)
    bomb = b"".join([*(coder.compress(bytes(10**6)) for _ in range(zeros // 10**6)), coder.flush()])
    as_index = closed(archive_of([], [], b"x" * 1000), index=bomb)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=r"is not the .* bytes that it promises; the file is damaged"):
            unpack(as_index)
        assert tracemalloc.get_traced_memory()[1] < 12 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_phrases_of_much_out_of_little() -> None:
    """Ten megabytes of the longest phrase's mark, for a model of ten."""
    longest = max(range(63), key=lambda at: len(reader.PHRASES[at]))
    data = closed(phrased(bytes([192 + longest]) * 10**7, 10**7))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="does not add up"):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 50 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_tables_of_much_out_of_nothing() -> None:
    """Each table of 2^16 takes half a megabyte once it is one."""
    data = closed(archive_of([], [], b"", [(2**16, 0, [1])] * 200))
    with pytest.raises(ArchiveError, match="the tables are too large for it"):
        unpack(data)


def integers(
    plane: bytes,
    chunk: bytes,
    tables: list[tuple[int, int, list[int]]] | None = None,
    size: int = 8,
    filters: Sequence[Kernels] = (),
) -> Opened:
    stream = Stream(INTEGERS, 8, 0, (plane,), ((chunk, size),))
    return archive_of([stream], [(0, size, 0, 0)], b"", [TWO] if tables is None else tables, filters=filters)


def phrased(skeleton: bytes, length: int) -> Opened:
    """A skeleton as it is written, and how long the model is said to be."""
    whole = archive_of([], [], b"")
    return whole._replace(model_bytes=length, index=whole.index + skeleton)


EIGHT_OF_TWO = coded([([0, 1] * 4, table(*TWO))])
ONE_MORE_WORD = b"\1\0\0\0" + EIGHT_OF_TWO
DAMAGED = {
    "a table of one symbol": (integers(classed(1, 0, 0, 1, 1), b"", [(1, 0, [384])]), "nothing to tell apart"),
    "a table of no symbol": (integers(classed(1, 0, 0, 1, 1), b"", [(0, 0, [])]), "nothing to tell apart"),
    "a table without entries": (integers(classed(1, 0, 0, 1, 1), b"", [(2, 0, [])]), "nothing to tell apart"),
    "entries beyond the alphabet": (
        integers(classed(1, 0, 0, 1, 1), b"", [(2, 1, [384, 3])]),
        "has 2 where at most 1 ",
    ),
    "an entry too large": (integers(classed(1, 0, 0, 1, 1), b"", [(2, 0, [384, 385])]), "an entry out of bounds"),
    "an entry below zero": (integers(classed(1, 0, 0, 1, 1), b"", [(2, 0, [3, -1])]), "an entry out of bounds"),
    "a table too few": (integers(classed(1, 0, 0, 1, 2), b""), "names tables that it has not"),
    "no table": (integers(classed(1, 0, 0, 0, 1), b""), "names tables that it has not"),
    "no class": (integers(classed(1, 0, 0, 1, 0), b""), "names tables that it has not"),
    "a row of a table too few": (integers(classed(1, 2, 0, 1, 1), b""), "has 2 where at most 1 is allowed"),
    "a huge shift": (integers(classed(1, 0, 0, 1, 1, 2**62), b""), "where at most 8,192 is allowed"),
    "no width": (integers(classed(0, 0, 0, 1, 1), b""), "names tables that it has not"),
    "a width with a rest": (integers(classed(3, 0, 0, 1, 1), EIGHT_OF_TWO), "8 symbols are no rows of 3"),
    "words with a rest": (integers(classed(1, 0, 0, 1, 1), b"12345"), "5 bytes are no whole number of words"),
    "a last word of zero": (integers(classed(1, 0, 0, 1, 1), bytes(8)), "end with a zero"),
    "a word too many": (integers(classed(1, 0, 0, 1, 1), ONE_MORE_WORD), "does not end where it should"),
    "a word too few": (integers(classed(1, 0, 0, 1, 1), b"\1\0\0\0", size=64), "does not end where it should"),
    "tables of a word too many": (
        archive_of([], [], b"", [TWO])._replace(sections=((ONE_MORE_WORD, 2),)),
        "do not end where they should",
    ),
    "bytes of a constant": (integers(b"\1\0", b"1"), "has 1 of 0 bytes"),
    "a raw plane too short": (integers(RAW, b"1234567"), "has 7 of 8 bytes"),
    "a symbol of five bits": (
        archive_of([Stream(INTEGERS, 4, 0, (RAW,), ((b"\x10" * 16, 8),))], [(0, 8, 0, 0)], b""),
        "beyond the 16 that it may",
    ),
    "a value that is not there": (
        archive_of([Stream(FEW, 2, 0, (RAW,), ((b"\0\1\2\0", 8),), b"1122")], [(0, 8, 0, 0)], b""),
        "beyond the 2 that it may",
    ),
    "no values": (
        archive_of([Stream(FEW, 2, 0, (RAW,), ((b"\0\0\0\0", 8),))], [(0, 8, 0, 0)], b""),
        "beyond the 0 that it may",
    ),
    "half an item": (
        archive_of([Stream(WORDS, 4, 0, (b"\1\0",) * 4, ((b"\0\0\0", 10),))], [(0, 10, 0, 0)], b""),
        "no whole number of items of 32 bits",
    ),
    "a bit plane of seven": (
        archive_of([Stream(PLANES, 8, 0, (RAW,), ((b"1234567890", 10),))], [(0, 10, 0, 0)], b""),
        "no whole number of items",
    ),
    "integers of three bits": (
        archive_of([Stream(INTEGERS, 3, 0, (RAW,), ((b"", 9),))], [(0, 9, 0, 0)], b""),
        "integers of 3 bits",
    ),
    "words of three bytes": (
        archive_of([Stream(WORDS, 3, 0, (RAW,) * 3, ((b"", 9),))], [(0, 9, 0, 0)], b""),
        "planes that its kind has not",
    ),
    "floats of one plane": (
        archive_of([Stream(FLOATS, 4, 0, (RAW,), ((b"", 8),))], [(0, 8, 0, 0)], b""),
        "planes that its kind has not",
    ),
    "a plane longer than its section": (
        archive_of([Stream(WORDS, 2, 0, (RAW, RAW), ((b"\5", 8),))], [(0, 8, 0, 0)], b""),
        "has 5 where at most 1 is allowed",
    ),
    "a second plane of nine bits": (
        archive_of([Stream(WIDE, 2, 9, (RAW, RAW), ((b"", 8),))], [(0, 8, 0, 0)], b""),
        "9 bits in its second plane",
    ),
    "wide integers of one plane": (
        archive_of([Stream(WIDE, 2, 1, (RAW,), ((b"", 8),))], [(0, 8, 0, 0)], b""),
        "planes that its kind has not",
    ),
    "a kind that there is not": (
        archive_of([Stream(6, 1, 0, (RAW,), ((b"12345678", 8),))], [(0, 8, 0, 0)], b""),
        "has 6 where at most 5 is allowed",
    ),
    "a chunk of no bytes": (archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"", 0),))], [], b"12"), "a chunk of no bytes"),
    "a stream without chunks": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ())], [], b"12"),
        "at most 0 is allowed|no bytes",
    ),
    "a stream that nothing takes": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [], b"1"),
        "does not add up",
    ),
    "more taken than there is": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [(0, 9, 0, 0)], b"1"),
        "does not add up",
    ),
    "a gap beyond the end": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [(2, 8, 0, 0)], b"1"),
        "does not add up",
    ),
    "a cut of nothing": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [(0, 8, 0, 0), (0, 0, 0, 0)], b"12345678"),
        "is in no stream",
    ),
    "a stream that is not there": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [(0, 8, 1, 0)], b"1"),
        "is in no stream",
    ),
    "a base that nobody named": (
        archive_of([Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [(0, 8, 0, 1)], b"1"),
        "cannot be steps from a base",
    ),
    "steps of another kind": (
        archive_of(
            [Stream(FEW, 3, 0, (b"\1\0",), ((b"", 9),), b"123")], [(0, 9, 0, 1)], b"", base=sha256(BASE).digest()
        ),
        "cannot be steps from a base",
    ),
    "steps from beyond the base": (
        archive_of(
            [Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8),))], [(0, 8, 0, 69)], b"", base=sha256(BASE).digest()
        ),
        "lies outside of its base",
    ),
    "a filter without taps": (archive_of([], [], b"", filters=[Kernels((), {})]), "a filter has no taps"),
    "a filter of too many taps": (archive_of([], [], b"", filters=[Kernels((0,) * 65, {})]), "at most 64 is allowed"),
    "a threshold of nothing": (archive_of([], [], b"", filters=[Kernels((0, 1), {}, (0,))]), "a threshold of nothing"),
    "too many filters": (archive_of([], [], b"", filters=[Kernels((0,), {})] * 65), "at most 64 is allowed"),
    "too many thresholds": (archive_of([], [], b"", filters=[Kernels((0,), {}, (1,) * 33)]), "at most 32 is allowed"),
    "a filter that is not there": (integers(classed(1, 0, 0, 1, 1, 0, 1), EIGHT_OF_TWO), "at most 0 is allowed"),
    "a filter of words": (
        archive_of(
            [Stream(WORDS, 1, 0, (classed(1, 0, 0, 1, 1, 0, 1),), ((EIGHT_OF_TWO, 8),))],
            [(0, 8, 0, 0)],
            b"",
            [TWO],
            filters=[Kernels((0,), {})],
        ),
        "at most 0 is allowed",
    ),
    "kernels with a rest": (
        integers(classed(1, 0, 0, 1, 1, 0, 1), EIGHT_OF_TWO, filters=[Kernels((0, 1, 1), {})]),
        "8 symbols are no rows of 1 and kernels of 3",
    ),
    "too many scales": (integers(classed(1, 1, 0, 1, 1), b"", [(257, 0, [384])]), "has a table of 257 scales"),
    "a table of symbols that there are not": (
        archive_of(
            [Stream(INTEGERS, 4, 0, (classed(1, 0, 0, 1, 1),), ((b"", 8),))], [(0, 8, 0, 0)], b"", [(17, 0, [1])]
        ),
        "beyond the 16 that it may",
    ),
    "an escape of nothing": (phrased(b"ab\xff", 2), "does not add up"),
    "an escape of a plain byte": (phrased(b"ab\xff\x40", 3), "does not add up"),
    "an escape of an escape": (phrased(b"\xff\xff\x3f", 1), "does not add up"),
    "a phrase more than promised": (phrased(b"\xc0", len(reader.PHRASES[0]) - 1), "does not add up"),
    "a phrase less than promised": (phrased(b"", len(reader.PHRASES[0])), "does not add up"),
    "a section that nobody uses": (
        archive_of([], [], b"123")._replace(sections=((b"", 0), (b"", 0))),
        "does not add up",
    ),
    "a number without an end": (Opened(10, b"", b"\xff" * 12, ((b"", 0),)), "a number of more than 64 bits"),
    "an index cut short": (Opened(10, b"", b"\1\4", ((b"", 0),)), "the archive's index ends after 2 bytes"),
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("decoder", [Words, Decoder])
def test_what_does_not_add_up_is_named(what: str, decoder: type[reader.Decoder]) -> None:
    archive, message = DAMAGED[what]
    with pytest.raises(ArchiveError, match=message):
        unpack(closed(archive), BASE, decoder=decoder)


def test_a_header_of_more_than_its_fields_is_refused() -> None:
    inner = numbers(3, 0, 2, 0, 0) + bytes(4) + numbers(0, 0) + bytes(4) + b"more"
    whole = reader.MAGIC + numbers(1, len(inner)) + inner
    with pytest.raises(ArchiveError, match="it is cut short or extended"):
        unpack(whole + crc32(whole).to_bytes(4, "little"))


def test_memory_that_runs_out_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(reader, "_symbols", none_left)
    with pytest.raises(ArchiveError, match="the model does not fit into memory; unpack it where there is more"):
        unpack((FIXTURES / "integers.goss").read_bytes())


def test_many_small_tensors_of_one_chunk_are_not_copied_over_and_over() -> None:
    """An eighth of a million cuts of eight bytes out of a megabyte; copied each time, they would be 64 gigabytes."""
    count = 2**17
    stream = Stream(INTEGERS, 8, 0, (b"\1\7",), ((b"", 8 * count),))
    data = closed(archive_of([stream], [(0, 8, 0, 0)] * count, b""))
    start = process_time()
    assert unpack(data) == b"\7" * (8 * count)
    assert process_time() - start < 5
