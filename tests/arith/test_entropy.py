from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arith.entropy import MANY, best_step, cells_of, entropy_bits, integer_bits, occurrences


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=60), st.integers(-1000, 1000))
def test_it_depends_on_how_often_numbers_occur_alone(numbers: list[int], shift: int) -> None:
    array = np.array(numbers)
    bits = entropy_bits(array)
    assert 0 <= bits <= len(numbers) * np.log2(len(set(numbers))) + 1e-9
    assert entropy_bits(shift - array) == pytest.approx(bits)
    assert entropy_bits(np.repeat(array, 3)) == pytest.approx(3 * bits)


def test_known_entropies() -> None:
    assert entropy_bits(np.zeros(0, np.uint8)) == entropy_bits(np.full(9, 200, np.uint8)) == 0
    assert entropy_bits(np.array([[0, 1], [2, 3]], np.uint16)) == 8
    assert entropy_bits(np.array([0.0, 0.0, -1.0, 5.0], np.float32)) == 6


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=60), st.sampled_from([np.int16, np.int64]))
def test_cells_lose_nothing_but_what_lies_within_them(numbers: list[int], dtype: type[np.signedinteger]) -> None:
    array = np.array(numbers, dtype)
    counts = np.bincount(array - array.min())
    cells, doublings = cells_of(counts)
    assert cells.sum() == len(numbers) and len(cells) == -(-len(counts) // 2**doublings)
    assert entropy_bits(array) - 1e-9 <= integer_bits(array)
    assert integer_bits(array) <= entropy_bits(array) + doublings * len(numbers) + 1e-9


def test_integers_that_hardly_repeat_take_more_the_finer_they_are() -> None:
    numbers = np.random.default_rng(0).normal(size=1000)
    fine, finer = (integer_bits(np.rint(numbers * steps)) / 1000 for steps in (1000, 8000))
    exact = np.log2(1000 * np.sqrt(2 * np.pi * np.e))  # of a normal distribution in steps of a thousandth
    assert fine == pytest.approx(exact, abs=0.2) and finer == pytest.approx(fine + 3, abs=0.05)
    assert entropy_bits(np.rint(numbers * 8000)) < 10_000  # log2(1000) each at most, however fine
    few = np.rint(numbers * 2)
    assert integer_bits(few) == entropy_bits(few)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("alphabet", [3, 256])
def test_many_bytes_are_counted_as_few_are(alphabet: int, more: int) -> None:
    symbols = np.random.default_rng(more).integers(0, alphabet, MANY + more).astype(np.uint8)
    assert np.array_equal(occurrences(symbols, alphabet), np.bincount(symbols, minlength=alphabet))
    twice = np.repeat(symbols, 2)
    assert np.array_equal(occurrences(twice[::2], alphabet), occurrences(symbols, alphabet))
    assert entropy_bits(symbols.view(np.int8)) == pytest.approx(entropy_bits(symbols.astype(np.int64)))


def test_no_step_near_the_best_one_loses_less_with_its_bits() -> None:
    """Of many normal numbers rounded at several steps, loss + bits at the price of a bit."""
    numbers = np.random.default_rng(0).normal(size=200_000)
    worth, bit_loss = 3.0, 1e-3
    best = float(best_step(bit_loss, np.array(worth)))

    def total(step: float) -> float:
        integers = np.rint(numbers / step)
        return worth * float(np.square(numbers - integers * step).sum()) + bit_loss * entropy_bits(integers)

    assert total(best) < min(total(0.7 * best), total(1.4 * best))
