"""The reader against archives made by hand, to the word: what docs/format.md says is what it does."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.building import Kernels, Stream, archive_of, classed, closed, coded, table

from gossamer.archive import reader
from gossamer.archive.reader import FEW, FLOATS, INTEGERS, PLANES, WIDE, WORDS, Words, frequencies, unpack
from gossamer.archive.tables import Decoder, Encoder
from gossamer.errors import ArchiveError

FIXTURES = Path(__file__).parent / "fixtures"
DECODERS = (Words, Decoder)
RAW = b"\0"


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    entries = draw(st.lists(st.sampled_from((0, 1, 16, 100, 200, 300, 350, 368, 380, 384)), min_size=2, max_size=40))
    return frequencies(np.array(entries))


@pytest.mark.parametrize("fixture", sorted(FIXTURES.glob("*.goss")), ids=lambda path: path.stem)
@pytest.mark.parametrize("decoder", DECODERS)
def test_archives_of_old_decode_to_the_bytes_they_always_did(fixture: Path, decoder: type[reader.Decoder]) -> None:
    promised = json.loads((FIXTURES / "sha256.json").read_text())
    base = (FIXTURES / "base.bin").read_bytes() if fixture.stem == "delta" else None
    assert sha256(unpack(fixture.read_bytes(), base, decoder=decoder)).hexdigest() == promised[fixture.name]


def test_there_is_an_old_archive_of_every_kind() -> None:
    kinds = set()
    for path in FIXTURES.glob("*.goss"):
        data = path.read_bytes()
        kinds |= {stream.kind for stream in reader.read_index(data, reader.read_header(data)).streams}
    assert kinds == {INTEGERS, WORDS, FLOATS, FEW, PLANES, WIDE}


def test_frequencies_are_whole_numbers_that_can_be_written_down() -> None:
    assert frequencies(np.array([384, 368])).tolist() == [11184811, 5592405]
    assert frequencies(np.array([0, 384, 0, 383])).tolist() == [1, 8570650, 1, 8206564]
    assert frequencies(np.array([1, 16, 384])).tolist() == [2, 2, 16777212]
    assert frequencies(np.array([0, 0, 0])).tolist() == [16777214, 1, 1]
    every = frequencies(np.arange(385))
    assert every.sum() == 2**24 and every.min() == 1
    assert sha256(every.astype("<i8").tobytes()).hexdigest()[:16] == "5dfb7f8b8e9d0946"


@pytest.mark.parametrize(
    ("entries", "symbols", "words"),
    [
        ([384, 368], [0], []),
        ([384, 368], [1], [0x00AAAAAB]),
        ([384, 368], [0, 1, 1, 0, 0, 0, 1, 0] * 6, [0x8A4411D4, 0xAE6A36AE, 0x8]),
        ([384, 340, 300, 0, 250], [0, 0, 1, 0, 2, 3, 4, 4, 0, 1, 0, 0], [0xE7FF8970, 0x7596F781, 0x54E]),
        ([100] * 16, [*range(16)] * 2, [0x76500000, 0xFEDCBA98, 0x76543210, 0x210CBA98, 0xFED43]),
    ],
)
def test_coded_words_are_these(entries: list[int], symbols: list[int], words: list[int]) -> None:
    frequency = frequencies(np.array(entries))
    compiled = Encoder()
    compiled.encode(np.array(symbols), frequency)
    assert np.frombuffer(compiled.to_bytes(), "<u4").tolist() == words
    assert np.frombuffer(coded([(symbols, frequency)]), "<u4").tolist() == words
    for decoder in DECODERS:
        found = decoder(np.array(words, np.uint32))
        assert found.decode(frequency, len(symbols)).tolist() == symbols
        assert found.is_empty()


@given(st.lists(st.tuples(tables(), st.integers(0, 60)), max_size=4), st.randoms(use_true_random=False))
def test_all_coders_agree(parts: list[tuple[np.ndarray, int]], random: Random) -> None:
    drawn = [([random.randrange(len(frequency)) for _ in range(count)], frequency) for frequency, count in parts]
    compiled = Encoder()
    for symbols, frequency in drawn:
        compiled.encode(np.array(symbols, np.int64), frequency)
    assert compiled.to_bytes() == coded(drawn)
    words = np.frombuffer(coded(drawn), "<u4").astype(np.uint32)
    for decoder in (Words(words), Decoder(words)):
        assert all(decoder.decode(frequency, len(symbols)).tolist() == symbols for symbols, frequency in drawn)
        assert decoder.is_empty()


@given(st.lists(st.integers(0, 2**32 - 1), max_size=6).filter(lambda words: not words or words[-1]), tables())
def test_decoders_agree_on_words_that_nobody_coded(words: list[int], frequency: np.ndarray) -> None:
    plain, compiled = (decoder(np.array(words, np.uint32)) for decoder in DECODERS)
    for count in (1, 7, 50):  # beyond their end too
        assert plain.decode(frequency, count).tolist() == compiled.decode(frequency, count).tolist()
        assert plain.is_empty() == compiled.is_empty()


def test_a_table_of_the_largest_alphabet_is_the_same_for_both() -> None:
    frequency = frequencies(np.arange(2**16) % 385)
    symbols = [0, 65535, 1, 384, 385, 40000]
    for decoder in DECODERS:
        assert decoder(np.frombuffer(coded([(symbols, frequency)]), "<u4")).decode(frequency, 6).tolist() == symbols


def test_rows_and_columns_of_classes() -> None:
    """Row 0 adds 0, row 1 adds 2; columns 0, 1, 1; shift 1: classes -1, 0, 0 and 1, 2, 2, of which there are two."""
    shapes = [(4, 0, [384, 300]), (4, 1, [384, 300, 200]), (4, 0, [300, 384, 100, 20])]
    first, second, sides = (table(*shape) for shape in shapes)
    words = coded([([0, 2], sides), ([0, 1, 1], sides), ([0, 1, 3], first), ([3, 2, 0], second)])
    stream = Stream(WORDS, 1, 0, (classed(3, 3, 3, 1, 2, 1),), ((words, 6), (words, 6)))
    data = closed(archive_of([stream], [(1, 12, 0, 0)], b"<>", shapes))
    for decoder in DECODERS:
        assert unpack(data, decoder=decoder) == b"<" + bytes([0, 1, 3, 3, 2, 0] * 2) + b">"


@st.composite
def kernels(draw: st.DrawFn) -> Kernels:
    """Filters of up to nine taps, with weights up to the largest."""
    stages = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=9)))
    weight = st.one_of(st.integers(-20, 20), st.sampled_from((-128, 127, 0)))
    found = Kernels(stages, {})
    weights = {pair: draw(weight) for pair in found.pairs()}
    return found._replace(weights=weights, thresholds=tuple(draw(st.lists(st.integers(1, 60), max_size=4))))


@given(kernels(), st.sampled_from((1, 2, 4, 8)), st.integers(8, 9), st.randoms(use_true_random=False), st.booleans())
def test_kernels_of_any_filter(one: Kernels, bits: int, rows: int, random: Random, planes: bool) -> None:
    """Differences, or folded codes in the classes of row and column that what is foretold lifts."""
    size, alphabet = len(one.stages), 1 << bits
    width = 8 * size
    values = [random.randrange(alphabet) for _ in range(rows * width)]
    shapes = [(alphabet, 0, [random.randrange(385) for _ in range(alphabet)]) for _ in range(3)] + [(3, 0, [384] * 3)]
    tables = [table(*shape) for shape in shapes]
    row, column = ([random.randrange(3) for _ in range(count)] for count in (rows, width))
    lifts, codes = one.lifts(values, alphabet), one.coded(values, alphabet)
    of_class = [min(max(row[at // width] + column[at % width] + lifts[at] - 1, 0), 2) for at in range(len(values))]
    parts = [(row, tables[3]), (column, tables[3])]
    for stage in one.order(len(values)) if one.thresholds else [list(range(len(values)))]:
        parts += [([codes[at] for at in stage if of_class[at] == each], tables[each]) for each in range(3)]
    kind, low = (PLANES if planes else INTEGERS), random.randrange(alphabet)
    plane = classed(width, 4, 4, 1, 3, 1, 1)
    stream = Stream(kind, bits, low, (plane,), ((coded(parts), len(values) * bits // 8),))
    plain = Stream(kind, bits, low, (RAW,), ((bytes(values), len(values) * bits // 8),))
    cut = [(0, len(values) * bits // 8, 0, 0)]
    wanted = unpack(closed(archive_of([plain], cut, b"")))
    data = closed(archive_of([stream], cut, b"", shapes, filters=[one]))
    assert all(unpack(data, decoder=decoder) == wanted for decoder in DECODERS)


def test_a_filter_by_hand() -> None:
    """Kernels of two; of the second 1 3/16 times the first, from the middle, is taken: 24/16 and -171/16 are 2, -11."""
    filter = Kernels((0, 1), {(1, 0): 19})
    shape = (256, 0, [384] * 256)
    words = coded([([130, 10, 119, 10], table(*shape))])
    stream = Stream(INTEGERS, 8, 0, (classed(1, 0, 0, 1, 1, 0, 1),), ((words, 4), (words, 4)))
    data = closed(archive_of([stream], [(0, 8, 0, 0)], b"", [shape], filters=[filter]))
    assert unpack(data) == bytes([130, 12, 119, 255] * 2)
    filter = filter._replace(thresholds=(20,))  # 38 and -171 are as large: class 1; the second is turned
    words = coded([([130, 119], table(*shape)), ([100, 100], table(*shape))])
    stream = stream._replace(planes=(classed(1, 0, 0, 1, 2, 0, 1),), chunks=((words, 4), (words, 4)))
    data = closed(archive_of([stream], [(0, 8, 0, 0)], b"", [shape, shape], filters=[filter]))
    assert unpack(data) == bytes([130, 100, 119, 156] * 2)


def test_phrases_are_these() -> None:
    whole = archive_of([], [], b"")
    for at, phrase in enumerate(reader.PHRASES):
        spelled = whole._replace(index=whole.index + bytes([65, 192 + at, 255, at]), model_bytes=len(phrase) + 2)
        assert unpack(closed(spelled)) == b"A" + phrase + bytes([192 + at])
    assert len(reader.PHRASES) == 63 and max(b"".join(reader.PHRASES)) < 192
    assert sha256(b"|".join(reader.PHRASES)).hexdigest()[:16] == "02c03deae037ab59"
    every = bytes(range(256))
    assert unpack(closed(archive_of([], [], every))) == every


def test_bit_planes_of_several_chunks_lie_one_behind_the_other() -> None:
    parts = [bytes([0, 1, 2, 3, 4, 5, 6, 7]), bytes([7] * 16)]
    stream = Stream(PLANES, 3, 0, (RAW,), tuple((part, len(part) * 3 // 8) for part in parts))
    data = closed(archive_of([stream], [(0, 9, 0, 0)], b""))
    assert unpack(data) == bytes([0b10101010, 255, 255, 0b11001100, 255, 255, 0b11110000, 255, 255])


@pytest.mark.parametrize(
    ("stream", "wanted"),
    [
        (Stream(INTEGERS, 2, 2, (RAW,), ((bytes([0, 1, 2, 3] * 8), 8),)), bytes([0b01001110]) * 8),
        (Stream(INTEGERS, 4, 0, (RAW,), ((bytes(range(16)), 8),)), bytes.fromhex("1032547698badcfe")),
        (Stream(INTEGERS, 1, 1, (b"\1\0",), ((b"", 8),)), b"\xff" * 8),
        (
            Stream(PLANES, 3, 4, (RAW,), ((bytes([4, 5, 6, 7, 0, 1, 2, 3] * 3), 9),)),
            b"\xaa" * 3 + b"\xcc" * 3 + b"\xf0" * 3,
        ),
        (Stream(WORDS, 2, 0, (b"\1\7", RAW), ((b"\4\1\2\3\4", 8),)), bytes([1, 7, 2, 7, 3, 7, 4, 7])),
        (Stream(FLOATS, 2, 1, (RAW, RAW), ((b"\2\1\x80\0\2\3\0", 8),)), bytes.fromhex("0000 0081 c001 0000")),
        (Stream(FEW, 3, 0, (RAW,), ((b"\1\0\1", 9),), b"abcdef"), b"defabcdef"),
        (Stream(WORDS, 1, 0, (RAW,), ((b"12345678", 8), (b"9", 1))), b"123456789"),
        (
            Stream(WIDE, 2, 3, (RAW, RAW), ((b"\4\0\1\7\2\x80\x80\x7f\xff", 8),)),
            np.array([0, 1, -1, 1018], "<i2").tobytes(),
        ),
        (Stream(WIDE, 4, 0, (RAW, b"\1\0"), ((b"\0\x7f\x82", 8),)), np.array([-1, 2], "<i4").tobytes()),
    ],
)
def test_kinds_of_streams_by_hand(stream: Stream, wanted: bytes) -> None:
    assert unpack(closed(archive_of([stream], [(0, len(wanted), 0, 0)], b""))) == wanted


def test_a_base_is_added_number_by_number() -> None:
    base = b"head" + np.array([1, 2, 65535, 300], "<u2").tobytes()
    steps = Stream(WORDS, 2, 0, (b"\1\0", RAW), ((b"\4" + bytes([0, 1, 2, 3]), 8),))
    data = closed(archive_of([steps], [(1, 8, 0, 5)], b"()", base=sha256(base).digest()))
    assert unpack(data, base) == b"(" + np.array([1, 1, 0, 298], "<u2").tobytes() + b")"
    with pytest.raises(ArchiveError, match=r"packed against a model whose SHA-256 begins .*; none was given; give"):
        unpack(data)
    with pytest.raises(ArchiveError, match="the one given begins"):
        unpack(data, base + b"!")


def test_parts_of_a_large_tensor_come_one_by_one() -> None:
    stream = Stream(WORDS, 1, 0, (RAW,), tuple((bytes([at]) * 10, 10) for at in range(5)))
    data = closed(archive_of([stream], [(0, 25, 0, 0), (0, 25, 0, 0)], b"end"))
    pieces = list(reader.parts(data))
    assert b"".join(pieces) == unpack(data)
    assert max(map(len, pieces)) == 10


def test_no_more_is_unpacked_than_is_allowed() -> None:
    data = closed(archive_of([], [], b"x" * 100))
    assert unpack(data, most=100) == b"x" * 100
    with pytest.raises(ArchiveError, match="the model has 100 bytes, allowed are 99; allow more if you want it"):
        unpack(data, most=99)


@pytest.mark.parametrize("data", [b"", b"\x89GOSS", b"\x08\x07" * 20, b"PK\3\4" + bytes(40)])
def test_what_is_no_archive_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"not a \.goss archive: it does not begin as one; give a file"):
        unpack(data)


def test_another_version_asks_for_another_reader() -> None:
    with pytest.raises(ArchiveError, match="an archive of version 2; this reader knows version 1; update gossamer"):
        unpack(reader.MAGIC + b"\2" + bytes(20))


def test_the_reader_is_a_program_that_needs_nothing_of_the_package(tmp_path: Path) -> None:
    alone = tmp_path / "reader.py"
    alone.write_bytes(Path(reader.__file__).read_bytes())
    (tmp_path / "model.goss").write_bytes(closed(archive_of([], [], b"a model")))
    hidden = "import sys; sys.modules['gossamer'] = None; import runpy; sys.argv[:] = sys.argv[1:]; "
    run = [sys.executable, "-c", hidden + "runpy.run_path('reader.py', run_name='__main__')", "reader.py"]
    subprocess.run([*run, "model.goss", "model.onnx"], cwd=tmp_path, check=True)
    assert (tmp_path / "model.onnx").read_bytes() == b"a model"
