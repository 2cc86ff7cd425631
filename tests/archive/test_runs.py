"""Classes coded by their runs, against what docs/format.md says, in plain Python (`building.py`)."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.building import Stream, archive_of, by_runs, classed, closed, coded, numbers_of_others, table

from gossamer.archive import reader
from gossamer.archive.pack import pack
from gossamer.archive.reader import INTEGERS, RUN_SYMBOLS, Words, runs_of, unpack
from gossamer.archive.runs import encode_gaps, encode_numbers, gapped
from gossamer.archive.tables import Decoder, Encoder
from gossamer.errors import ArchiveError

MOST_ZERO = (16, 5, [250, 300, 330, 384, 320, 300])  # of 16 symbols, 8 is the common one


def archive(symbols: list[int], words: bytes) -> bytes:
    """Eight rows of one class, of four bits each."""
    plane = classed(len(symbols) // 8, 0, 0, 1, 1)
    stream = Stream(INTEGERS, 4, 8, (plane,), ((words, len(symbols) // 2),))
    return closed(archive_of([stream], [(0, len(symbols) // 2, 0, 0)], b"", [MOST_ZERO]))


def packed(symbols: list[int]) -> bytes:
    values = [(symbol + 8) % 16 for symbol in symbols]
    return bytes(low | high << 4 for low, high in zip(values[::2], values[1::2], strict=True))


@given(
    st.sampled_from((1024, 1104, 6000)),
    st.sampled_from((0.0, 0.001, 0.1, 0.2, 0.9, 1.0)),
    st.sampled_from((1, 50)),
    st.randoms(use_true_random=False),
)
def test_classes_by_runs_come_back(count: int, density: float, clump: int, random: Random) -> None:
    """However many others there are, and however they lie: alone, or many beside each other."""
    chance = np.random.default_rng(random.randrange(2**32))
    there = np.repeat(chance.random(count // clump + 1) < density, clump)[:count]
    symbols = np.where(there, chance.choice([5, 6, 7, 9, 10], count), 8).tolist()
    more, parts = by_runs(symbols, table(*MOST_ZERO))
    words = coded([*numbers_of_others([more]), *parts])
    runs = runs_of(table(*MOST_ZERO).tobytes())
    assert runs is not None
    coder, one = Encoder(), gapped(np.array(symbols, np.uint8), runs)
    encode_numbers(coder, [one])
    encode_gaps(coder, one)
    assert coder.to_bytes() == words
    for decoder in (Words, Decoder):
        assert unpack(archive(symbols, words), decoder=decoder) == packed(symbols)


def test_a_small_class_is_coded_symbol_by_symbol() -> None:
    symbols = [8] * (RUN_SYMBOLS - 9) + [7]
    data = archive(symbols, coded([(symbols, table(*MOST_ZERO))]))
    assert unpack(data) == unpack(data, decoder=Decoder) == packed(symbols)


def test_so_is_a_large_one_without_a_common_symbol() -> None:
    assert runs_of(table(4, 0, [384, 362]).tobytes()) is None
    found = runs_of(table(4, 0, [300, 384]).tobytes())
    assert found is not None and found.common == 1


def test_runs_take_the_bits_that_symbols_do() -> None:
    """A gap says no more than the common symbols that it stands for; only how many there are comes on top."""
    frequency = table(*MOST_ZERO)
    chance = np.random.default_rng(0)
    symbols = chance.choice(16, 100_000, p=frequency / frequency.sum()).tolist()
    more, parts = by_runs(symbols, frequency)
    plain, runs = (8 * len(coded(one)) for one in ([(symbols, frequency)], [*numbers_of_others([more]), *parts]))
    assert abs(runs - plain) <= 64 + 0.001 * plain


@pytest.mark.parametrize("decoder", [Words, Decoder])
@pytest.mark.parametrize(
    ("others", "gap", "what"),
    [
        (1201, 0, "more symbols of one kind than symbols"),
        (-1, 0, "more symbols of one kind than symbols"),
        (600, 2, "a run is longer than its class"),
        (1, 1400, "a run is longer than its class"),
    ],
)
def test_what_does_not_fit_its_class_is_refused(
    others: int, gap: int, what: str, decoder: type[reader.Decoder]
) -> None:
    frequency = table(*MOST_ZERO)
    runs = runs_of(frequency.tobytes())
    assert runs is not None
    expected, longest = 1200 * runs.share >> 24, len(runs.gaps) - 1
    parts = numbers_of_others([others - expected])
    left = [gap] * max(others, 0)
    while left:
        parts.append(([min(one, longest) for one in left], runs.gaps))
        left = [one - longest for one in left if one >= longest]
    data = archive([8] * 1200, coded([*parts, ([7] * max(others, 0), runs.others)]))
    with pytest.raises(ArchiveError, match=what):
        unpack(data, decoder=decoder)


def test_what_grows_beyond_all_bounds_ends() -> None:
    """Words that nobody coded: gaps of no end are refused, or end with the words."""
    chance = np.random.default_rng(1)
    for _ in range(50):
        words = chance.integers(1, 2**32, 40, dtype=np.uint32).tobytes()
        for decoder in (Words, Decoder):
            with pytest.raises(ArchiveError):
                unpack(archive([8] * 2000, words), decoder=decoder)


def test_pack_uses_them() -> None:
    """A sparse tensor of four bits, far below a symbol a number: the coder is asked once for each that is not zero."""
    from onnx import TensorProto, helper

    chance = np.random.default_rng(2)
    weights = np.where(chance.random((64, 256)) < 0.08, chance.integers(-7, 8, (64, 256)), 0).astype(np.int8)
    tensor = helper.make_tensor("w", TensorProto.INT8, weights.shape, weights.tobytes(), raw=True)
    graph = helper.make_graph([], "g", [], [], [tensor])
    data = helper.make_model(graph).SerializeToString()
    asked = []

    class Counting(Decoder):
        def decode(self, frequency: np.ndarray, count: int) -> np.ndarray:
            asked.append(count)
            return super().decode(frequency, count)

    assert unpack(pack(data).data, decoder=Counting) == data
    assert sum(asked) < weights.size // 2
