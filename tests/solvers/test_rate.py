"""Loss + rate * bits: never more than without a rate, close to the least there is, and the plain result at rate 0."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arith.entropy import entropy_bits
from gossamer.arith.lattice import Lattice
from gossamer.arith.moments import Moments, loss
from gossamer.constraints.contract import as_text, constraint_from_text
from gossamer.errors import OptionError
from gossamer.solvers import nearest, round_grid, second_order, share_values
from gossamer.solvers.code_lengths import choose, lagrangian, prices_of

CODED = (
    "grid:2 grid:3 grid:4 grid:8 grid:16 grid:3:tensor grid:4:input grid:8:tensor grid:4:asymmetric grid:4:group=4 "
    "sparse:0.5+grid:4 sparse:2:4+grid:3 codebook:8 codebook:4:channel codebook:4:dimension=2 sparse:0.5+codebook:4 "
    "sparse:2:4+codebook:4:channel"
).split()
OTHERS = "sparse:0.5 low_rank:2 shared low_rank:2+grid:4".split()


def layer(seed, groups=1, outputs=6, columns=16, samples=60):
    """Heavy-tailed weights and the moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, samples, columns)) @ rng.normal(size=(groups, columns, columns))
    w = rng.laplace(size=(groups, outputs, columns)) * rng.lognormal(size=(groups, outputs, 1))
    return w.astype(np.float32), Moments(x.transpose(0, 2, 1) @ x / samples)


def written(form):
    return form.integers if hasattr(form, "integers") else form.indices_GOV


def worth(w, moments, share):
    """The loss that one bit is worth where one bit a weight is worth a share of the output's energy."""
    return share * float(loss(w, moments).sum()) / w.size


def at_rate(text, w, share):
    """The constraint with the rate that says the same."""
    found = constraint_from_text(f"{text}:rate={share / w.size!r}") if share else constraint_from_text(text)
    assert as_text(found).startswith(text)
    return found


@settings(max_examples=25, deadline=None)
@given(
    text=st.sampled_from(CODED),
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 2),
    samples=st.sampled_from([3, 60]),
    share=st.sampled_from([1e-4, 1e-2, 1.0, 20.0]),
)
def test_never_more_than_without_a_rate(text, seed, groups, samples, share):
    w, moments = layer(seed, groups, 3, 8, samples)
    constraint, rate = constraint_from_text(text), worth(w, moments, share)
    plain, found = (second_order.solve(w, at_rate(text, w, by), moments) for by in (0.0, share))
    totals = [lagrangian(one.form, w, moments, rate) for one in (found, plain, nearest.solve(w, constraint, moments))]
    assert totals[0] <= min(totals[1:]) * (1 + 1e-9)
    assert constraint.contains(found.form.real().reshape(w.shape))
    counted = loss(w.astype(np.float64) - found.form.real().reshape(w.shape), moments).sum()
    assert found.loss == pytest.approx(counted, rel=1e-6, abs=1e-9 * found.zero_loss)
    assert written(found.form).dtype == written(plain.form).dtype


@pytest.mark.parametrize("text", ["grid:3", "grid:6", "grid:8:tensor", "sparse:0.5+grid:4", "codebook:16"])
def test_a_larger_rate_gives_fewer_bits_and_more_loss(text):
    w, moments = layer(7, 1, 16, 48, 300)
    shares = (0.0, 3e-4, 3e-3, 3e-2, 0.3)
    found = [second_order.solve(w, at_rate(text, w, by), moments) for by in shares]
    bits = np.array([entropy_bits(written(one.form)) for one in found]) / w.size
    lost = np.array([one.loss for one in found])
    assert (np.diff(bits) <= 0.02).all() and bits[-1] < 0.6 * bits[0]
    assert (np.diff(lost) >= -0.02 * lost[1:]).all() and lost[-1] > lost[0]


def test_fewer_bits_than_a_narrower_grid_at_the_same_loss():
    w, moments = layer(3, 1, 48, 64, 400)
    plain = [second_order.solve(w, constraint_from_text(f"grid:{bits}"), moments) for bits in (2, 3, 4)]
    bits = [entropy_bits(one.form.integers) / w.size for one in plain]
    found = second_order.solve(w, at_rate("grid:8", w, 4 * plain[1].loss / plain[1].zero_loss), moments)
    needed = np.interp(-np.log(found.loss), [-np.log(one.loss) for one in plain], bits)
    assert plain[2].loss < found.loss < plain[0].loss
    assert entropy_bits(found.form.integers) / w.size < 0.9 * needed


def test_within_a_factor_of_the_least_where_all_integers_can_be_tried():
    ratios = []
    for seed in range(40):
        columns, grid = (6, constraint_from_text("grid:2")) if seed % 2 else (4, constraint_from_text("grid:3:tensor"))
        w, moments = layer(seed, 1, 1, columns, 30)
        half = 2 ** (grid.bits - 1)
        every = np.array(list(itertools.product(range(-half, half), repeat=columns)))
        rate, scale = worth(w, moments, 0.02), nearest.solve(w, grid, moments).form.scale
        error = (w[0] - every * scale[0]).astype(np.float64)
        share = (every[:, :, None] == np.arange(-half, half)).mean(axis=1)
        bits = -columns * (share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
        least = (np.einsum("nk,kl,nl->n", error, moments.h_GKK[0], error, optimize=True) + rate * bits).min()
        found = round_grid.solve(w, grid, moments, search=False, rate=rate)
        assert (found.scale == scale).all()
        ratios.append(lagrangian(found, w, moments, rate) / least)
    print(f"total over the least: median {np.median(ratios):.4f}, worst {max(ratios):.3f}")
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) <= 1.05 and max(ratios) <= 2.5


def test_a_rate_so_large_that_nothing_is_worth_a_bit():
    w, moments = layer(2)
    for text in ("grid:4", "grid:8:tensor", "codebook:8"):
        found = second_order.solve(w, at_rate(text, w, w.size), moments)
        assert entropy_bits(written(found.form)) == 0


@pytest.mark.parametrize("text", OTHERS)
def test_what_has_no_code_takes_no_rate(text):
    with pytest.raises(OptionError, match=r"is no option of|takes no rate|one word too many"):
        constraint_from_text(f"{text}:rate=0.1")


@pytest.mark.parametrize("text", ["grid:4", "codebook:8", "sparse:0.5+grid:4"])
@pytest.mark.parametrize("rate", ["-1", "nan", "inf", "1e30", "2", ""])
def test_a_rate_is_a_number_from_0_to_1(text, rate):
    with pytest.raises(OptionError, match="rate"):
        constraint_from_text(f"{text}:rate={rate}")


def test_without_moments_the_nearest():
    w, _ = layer(0)
    solved = second_order.solve(w, constraint_from_text("grid:4:rate=0.1"), None)
    assert solved.reason == "there are no moments of its input"
    np.testing.assert_array_equal(solved.form.integers, nearest.solve(w, constraint_from_text("grid:4"), None).form[0])


@pytest.mark.parametrize("text", ["grid:4", "grid:8:tensor", "grid:4:group=4"])
def test_tables_whose_rows_are_looked_up_unevenly(text):
    w, _ = layer(5, 1, 40, 16)
    moments = Moments(None, np.geomspace(1e-3, 1e3, 40)[None])
    constraint, rate = constraint_from_text(text), worth(w, moments, 0.01)
    found, plain = (round_grid.solve(w, constraint, moments, rate=by) for by in (rate, 0.0))
    assert lagrangian(found, w, moments, rate) < lagrangian(plain, w, moments, rate)
    zeros_O = (found.integers.reshape(40, -1) == 0).mean(axis=1)
    assert zeros_O[:10].mean() > zeros_O[-10:].mean()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 6]),
    zero=st.integers(-2, 1),
    rate=st.sampled_from([0.0, 0.05, 0.5, 5.0]),
)
def test_each_choice_is_the_best_of_all_levels_under_a_code_that_falls_off(seed, bits, zero, rate):
    rng = np.random.default_rng(seed)
    half = 2 ** (bits - 1)
    scale = rng.lognormal(size=(1, 50)).astype(np.float32)
    lattice = Lattice(scale, np.full((1, 50), zero, np.float32), -half, half - 1)
    wanted, weight = rng.normal(size=(1, 50)) * half / 2, rng.lognormal(size=(1, 50))
    seen = np.clip(np.rint(rng.laplace(size=400) * half / 4) + zero, -half, half - 1)
    prices = prices_of(seen, -half, half - 1, rate)
    every = np.arange(-half, half, dtype=np.float32)[:, None, None] + np.zeros((1, 1, 50), np.float32)
    cost = weight * (wanted - lattice.values(every)) ** 2 + prices.of(every)
    found = choose(wanted, lattice, weight, prices)
    mine = weight * (wanted - lattice.values(found)) ** 2 + prices.of(found)
    if bits <= 3 or rate == 0:
        np.testing.assert_allclose(mine, cost.min(axis=0), rtol=1e-5)
    assert mine.sum() <= cost.min(axis=0).sum() * 1.1  # of many levels, only those beside the number and zero are tried


def test_codes_are_as_long_as_the_entropy_where_nothing_is_unseen():
    integers = np.repeat(np.arange(-4, 4), 2 ** np.arange(3, 11))
    prices = prices_of(integers, -4, 3, 2.0)
    assert prices.of(integers).sum() == pytest.approx(2 * entropy_bits(integers), rel=1e-3)
    assert np.isfinite(prices_of(np.zeros(5), -128, 127, 1.0).price_V).all()


def test_zeros_that_are_asked_for_stay():
    w, moments = layer(4, 1, 8, 32, 200)
    for text in ("sparse:0.75+grid:4", "sparse:0.75+codebook:8"):
        constraint = constraint_from_text(text)
        solve = round_grid.solve if "grid" in text else share_values.solve
        form = solve(w, constraint, moments, rate=worth(w, moments, 0.01))
        assert (form.real().reshape(w.shape) == 0).mean() >= 0.75
