"""Tables: what is written comes back, costs little, and the compiled coder agrees with the reader's."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.archive.reader import PRECISION, TOP, Words
from gossamer.archive.tables import (
    OPTIONS,
    Decoder,
    Encoder,
    code_lengths,
    coded_tables,
    folded_steps,
    restored,
    smoothed,
    written,
)

counts_of = st.lists(st.integers(0, 5000), min_size=1, max_size=40).map(lambda one: np.array(one, np.int64))


def bell(alphabet: int, scale: float, total: int) -> np.ndarray:
    """Counts as a sample of a Laplace distribution has them."""
    shares = np.exp(-np.abs(np.arange(alphabet) - alphabet // 2) / scale)
    return np.random.default_rng(0).multinomial(total, shares / shares.sum())


@given(counts_of, st.sampled_from(OPTIONS))
def test_frequencies_of_a_table_add_up_and_leave_no_symbol_out(counts: np.ndarray, coarse: int) -> None:
    table = written(counts, coarse)
    found = restored(table)
    assert found.sum() == 1 << PRECISION and found.min() >= 1 and len(found) == len(counts)
    assert table.entries.min() >= 0 and table.entries.max() <= TOP


@given(counts_of, st.sampled_from(OPTIONS))
def test_a_symbol_that_occurs_more_often_is_never_longer(counts: np.ndarray, coarse: int) -> None:
    lengths = code_lengths(written(counts, coarse))
    order = np.argsort(counts, kind="stable")
    for less, more in pairwise(order.tolist()):
        if counts[less] and counts[more] > counts[less]:
            assert lengths[more] <= lengths[less] + 1e-5  # what rounding leaves goes to the most frequent


@given(st.lists(counts_of, min_size=1, max_size=4), st.sampled_from(OPTIONS))
def test_entries_come_back_from_their_steps(every: list[np.ndarray], coarse: int) -> None:
    tables = [written(counts, coarse) for counts in every]
    folded = folded_steps(tables, coarse)
    steps = np.where(folded % 2 == 0, folded // 2, -(folded // 2) - 1) * coarse
    at = 0
    for table in tables:
        assert np.array_equal(np.cumsum(steps[at : at + len(table.entries)]), table.entries)
        at += len(table.entries)
    slope, coded = coded_tables(tables, coarse)
    assert 0 < slope <= TOP and len(coded) % 4 == 0


@given(st.lists(st.integers(0, 11), max_size=200), st.integers(0, 3))
def test_the_compiled_coder_and_the_readers_agree(symbols: list[int], seed: int) -> None:
    table = restored(written(np.random.default_rng(seed).integers(1, 1000, 12), 1))
    other = restored(written(np.array([5, 0, 1]), 2))
    values = np.array(symbols, np.int32)
    coder = Encoder()
    coder.encode(values, table)
    coder.encode(values % 3, other)
    words = np.frombuffer(coder.to_bytes(), "<u4").astype(np.uint32)
    for decoder in (Decoder(words), Words(words)):
        assert np.array_equal(decoder.decode(table, len(values)), values)
        assert np.array_equal(decoder.decode(other, len(values)), values % 3)
        assert decoder.is_empty()


@pytest.mark.parametrize("total", [500, 20_000, 1_000_000])
@pytest.mark.parametrize("scale", [2.0, 12.0, 60.0])
def test_smoothed_tables_cost_less_in_all_than_counts_as_they_are(total: int, scale: float) -> None:
    counts = bell(256, scale, total)
    plain, smooth = written(counts, 2), written(smoothed([counts], 2)[0], 2)
    cost = [
        8 * len(coded_tables([table], 2)[1]) + float((counts * code_lengths(table)).sum()) for table in (plain, smooth)
    ]
    assert cost[1] < cost[0]


@pytest.mark.parametrize("counts", [[40, 300], [40, 3, 300], [7, 90, 2, 300], [0, 500, 8]])
def test_the_fit_is_the_best_of_all_tables(counts: list[int]) -> None:
    """Of few symbols and few levels all tables can be tried; two steps between entries cost as much as one of two."""
    from gossamer.archive.tables import SLOPE_OF_SMALL, STEPS, _fitted

    array, coarse = np.array(counts), 16
    used = array > 0
    found = np.log2(_fitted(array[None], coarse)[0][used])

    def cost(octaves: np.ndarray) -> float:
        steps = 2 * SLOPE_OF_SMALL / STEPS * np.abs(np.diff(octaves)).sum()
        return float(steps + array.sum() * np.exp2(octaves).sum() / np.log(2) - (array * octaves).sum())

    levels = -np.arange(12.0)
    best = min((np.array(each) for each in product(levels, repeat=len(counts))), key=cost)
    assert np.allclose(np.diff(found), np.diff(best[used]))


def test_symbols_between_others_that_never_occur_cost_nothing() -> None:
    counts = np.zeros(256, np.int64)
    counts[::2] = np.random.default_rng(1).integers(80, 120, 128)
    table = written(smoothed([counts], 2)[0], 2)
    bits = float((counts * code_lengths(table)).sum())
    assert bits < counts.sum() * 7.02  # 128 symbols, nearly alike
    assert len(coded_tables([table], 2)[1]) < 150


def test_counts_of_one_symbol_and_of_none_make_tables() -> None:
    one = np.array([0, 0, 7])
    assert restored(written(smoothed([one], 2)[0], 2))[2] == (1 << PRECISION) - 2
    assert restored(written(np.zeros(3), 2)).sum() == 1 << PRECISION
