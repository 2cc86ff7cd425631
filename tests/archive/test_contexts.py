"""Contexts: what is chosen can be coded, and is cheaper than each plane by its own frequencies where scales differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossamer.archive.contexts import NEVER, Choice, Family, family
from gossamer.archive.reader import MOST_CLASSES
from gossamer.archive.symbols import Symbols
from gossamer.archive.tables import code_lengths, coded_tables, price, smoothed, written


def plane(values_RC: NDArray[np.int64], alphabet: int, logarithmic: bool = False) -> Symbols:
    level = np.arange(alphabet) if logarithmic else np.abs(np.arange(alphabet) - alphabet // 2)
    return Symbols(values_RC.astype(np.uint16).reshape(-1), values_RC.shape[1], level.astype(np.float32), logarithmic)


def weights(seed: int, rows: int, columns: int, alphabet: int, spread: float) -> Symbols:
    """Laplace numbers whose scale differs by row and column."""
    rng = np.random.default_rng(seed)
    scale_RC = np.exp2(rng.normal(0, spread, rows)[:, None] + rng.normal(0, spread, columns)[None]) * alphabet / 16
    values_RC = np.round(rng.laplace(0, scale_RC)).astype(np.int64) + alphabet // 2
    return plane(np.clip(values_RC, 0, alphabet - 1), alphabet)


def classes_of(one: Symbols, choice: Choice, found: Family) -> NDArray[np.int64]:
    """Among the tables of a family, as the reader has them."""
    classes_RC = np.zeros((len(one.values) // one.width, one.width), np.int64) - choice.shift
    classes_RC += 0 if choice.row is None else choice.row[:, None]
    classes_RC += 0 if choice.column is None else choice.column[None]
    classes = classes_RC.reshape(-1)
    if one.foretold is not None:
        classes = classes + sum((one.foretold >= each).astype(np.int64) for each in found.thresholds)
    return choice.first + np.clip(classes, 0, choice.classes - 1)


def bits_of(planes: list[Symbols], found: Family) -> float:
    """Everything: symbols, scales, tables."""
    sides = [one for one in (found.row, found.column) if one is not None]
    every = [written(one, 2) for one in smoothed([*found.tables, *sides], 2)]
    total = 8.0 * len(coded_tables(every, 2)[1])
    lengths = np.stack([code_lengths(table) for table in every[: len(found.tables)]])
    side_lengths = iter([code_lengths(table) for table in every[len(found.tables) :]])
    row_lengths = next(side_lengths) if found.row is not None else None
    column_lengths = next(side_lengths) if found.column is not None else None
    for one, choice in zip(planes, found.choices, strict=True):
        total += float(lengths[classes_of(one, choice, found), one.values].sum())
        for bits, side in ((row_lengths, choice.row), (column_lengths, choice.column)):
            if side is not None:
                assert bits is not None
                total += float(bits[side].sum())
    return total


def order0(planes: list[Symbols]) -> float:
    counts = [np.bincount(one.values) for one in planes]
    return sum(float((each[each > 0] * np.log2(each.sum() / each[each > 0])).sum()) for each in counts)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=5))
def test_every_symbol_has_a_place_in_its_table(shapes: list[tuple[int, int, int]]) -> None:
    planes = [weights(seed, rows, columns, 16, 1.0) for seed, rows, columns in shapes]
    found = family(planes)
    assert len(found.choices) == len(planes)
    for one, choice in zip(planes, found.choices, strict=True):
        assert choice.first + choice.classes <= len(found.tables) and choice.classes <= MOST_CLASSES
        assert np.stack(found.tables)[classes_of(one, choice, found), one.values].all()
        for side, table in ((choice.row, found.row), (choice.column, found.column)):
            assert side is None or (side.min() >= 0 and table is not None and table[side].all())


@pytest.mark.parametrize("alphabet", [4, 16, 256])
def test_scales_pay_where_rows_and_columns_differ(alphabet: int) -> None:
    planes = [weights(seed, 200, 150, alphabet, 0.7) for seed in range(3)]
    assert bits_of(planes, family(planes)) < 0.99 * order0(planes)


def test_nothing_is_paid_where_rows_and_columns_are_alike() -> None:
    planes = [weights(seed, 200, 150, 16, 0.0) for seed in range(3)]
    found = family(planes)
    assert bits_of(planes, found) < 1.002 * order0(planes)
    assert found.row is None and found.column is None


def test_short_rows_get_coarser_scales_than_long_ones() -> None:
    short, long = weights(0, 4000, 8, 16, 0.7), weights(0, 4000, 120, 16, 0.7)
    steps = []
    for one in (short, long):
        choice = family([one]).choices[0]
        steps.append(1 if choice.row is None else len(np.unique(choice.row)))
    assert steps[0] < steps[1]


def test_a_plane_like_no_other_gets_a_table_of_its_own() -> None:
    rng = np.random.default_rng(3)
    odd = plane(rng.integers(0, 8, (150, 150)) * 2 + 1, 16)
    planes = [weights(0, 200, 150, 16, 0.7), odd, weights(1, 200, 150, 16, 0.7)]
    found = family(planes)
    alone = [choice.classes == 1 for choice in found.choices]
    assert alone == [False, True, False]
    assert bits_of(planes, found) < order0(planes)


def test_flat_planes_that_look_alike_share_a_table() -> None:
    rng = np.random.default_rng(4)
    alike = [plane(rng.integers(0, 256, (3000, 1)), 256) for _ in range(6)]
    even = [plane(rng.integers(0, 128, (3000, 1)) * 2, 256) for _ in range(6)]
    found = family([*alike, *even])
    tables = [choice.first for choice in found.choices]
    assert len(found.tables) == 2 and all(choice.classes == 1 for choice in found.choices)
    assert len(set(tables[:6])) == len(set(tables[6:])) == 1 and tables[0] != tables[6]


def test_exponents_take_scales_too() -> None:
    rng = np.random.default_rng(5)
    size_RC = rng.normal(0, 1, (300, 100)) * np.exp2(rng.normal(0, 2, 300))[:, None]
    exponents = np.clip(np.floor(np.log2(np.abs(size_RC))) + 127, 0, 255).astype(np.int64)
    planes = [plane(exponents, 256, logarithmic=True)]
    assert bits_of(planes, family(planes)) < 0.95 * order0(planes)


def test_a_pruned_row_does_not_spoil_the_others() -> None:
    one = weights(6, 100, 80, 16, 0.5)
    values_RC = one.values.reshape(-1, one.width).copy()
    values_RC[::5] = 8
    planes = [replace(one, values=values_RC.reshape(-1))]
    assert bits_of(planes, family(planes)) < 0.93 * order0(planes)


def test_what_is_foretold_lifts_classes_where_that_pays() -> None:
    rng = np.random.default_rng(8)
    sizes = rng.integers(0, 90, 30_000)
    values = np.clip(np.round(rng.laplace(0, 0.1 + sizes / 40)), -8, 7).astype(np.int64) + 8
    blind = plane(values.reshape(-1, 100), 16)
    aware = replace(blind, foretold=sizes)
    found = family([aware])
    assert len(found.thresholds) > 2 and list(found.thresholds) == sorted(found.thresholds)
    assert bits_of([aware], found) < 0.94 * bits_of([blind], family([blind]))
    useless = replace(blind, foretold=rng.permutation(sizes))
    assert family([useless]).thresholds == (NEVER,)


@given(st.lists(st.integers(0, 900), min_size=2, max_size=9))
def test_a_price_is_never_below_the_entropy(counts: list[int]) -> None:
    one = np.array(counts)
    some = one[one > 0]
    entropy = float((some * np.log2(some.sum() / some)).sum()) if len(some) else 0.0
    assert price(one[None])[0] >= entropy
