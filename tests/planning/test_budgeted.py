from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.plans import constraints_in

from gossamer.constraints.grid import Grid
from gossamer.errors import OptionError
from gossamer.nouns.plan import Plan, Step
from gossamer.planning.budgeted import fitted, units, within
from gossamer.planning.ledger import Entry
from gossamer.solvers.options import Option

BEFORE = Plan("clean", (Step("fold_constants"),))
BITS = (2, 3, 4, 6, 8)


def entry(weight: str, nodes: tuple[str, ...], size: int, noise: float, gain: float = 1.0) -> Entry:
    """A weight whose noise falls fourfold a bit."""
    grids = [Option(Grid(bits), noise * 4.0**-bits, noise * 4.0**-bits, 1.0, size * bits // 8) for bits in BITS]
    return Entry(weight, nodes, (Option(None, 0.0, 0.0, 1.0, 4 * size), *grids), gain)


def bits_of(plan: Plan, entries: list[Entry]) -> dict[str, int]:
    """Node -> bits."""
    texts = constraints_in(plan, [node for one in entries for node in one.nodes])
    return {node: int(text.removeprefix("grid:")) for node, text in texts.items()}


def stored(plan: Plan, entries: list[Entry]) -> int:
    """Bytes of the weights as a plan stores them."""
    taken = bits_of(plan, entries)
    return sum(
        next(
            o.stored_bytes
            for o in e.options
            if (None if o.constraint is None else o.constraint.bits) == taken.get(e.nodes[0])
        )
        for e in entries
    )


@given(
    st.lists(st.tuples(st.integers(8, 4000), st.floats(0.01, 10), st.floats(0.1, 10)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_a_plan_is_within_the_limit_with_everything_else(layers: list[tuple[int, float, float]], share: float) -> None:
    entries = [entry(f"w{at}", (f"n{at}",), *one) for at, one in enumerate(layers)]
    least, most = (sum(pick(o.stored_bytes for o in e.options) for e in entries) for pick in (min, max))
    limit = 500 + least + share * (most - least)
    found = within(entries, limit, 500, BEFORE, {}, "small")
    assert found.allocation.cost == 500 + stored(found.plan, entries) <= limit
    assert found.plan.steps[0] == BEFORE.steps[0]


def test_the_layer_that_the_outputs_hear_most_keeps_most_bits() -> None:
    entries = [entry("a", ("a",), 1000, 1.0, gain=100.0), entry("b", ("b",), 1000, 1.0, gain=0.01)]
    plan = within(entries, 900, 0, BEFORE, {}, "small").plan
    bits = bits_of(plan, entries)
    assert bits["a"] > bits["b"]


def test_weights_of_one_node_meet_the_same_constraint() -> None:
    both = entry("lstm.r", ("lstm",), 800, 0.5)._replace(options=entry("lstm.r", ("lstm",), 800, 0.5).options[:-1])
    (unit,) = units([entry("lstm.w", ("lstm",), 800, 1.0), both])
    assert unit.constraints == (None, Grid(2), Grid(3), Grid(4), Grid(6))  # both can meet these
    assert unit.bytes_J.tolist() == [6400, 400, 600, 800, 1200]
    assert unit.noise_J == pytest.approx(np.array([0, *(1.5 * 4.0**-bits for bits in BITS[:-1])]))


@pytest.mark.parametrize("overhead", [0, 100, 333])
def test_what_the_file_takes_beyond_the_forms_counts(overhead: int) -> None:
    entries = [entry(f"w{at}", (f"n{at}",), 1000 + at, 1.0) for at in range(5)]

    def size_of(plan: Plan) -> int:
        return 700 + stored(plan, entries) + overhead * (len(plan.steps) - 1)

    found = fitted(entries, 3500, 700, BEFORE, {}, "small", size_of)
    assert size_of(found.plan) <= 3500


def test_a_limit_out_of_reach_says_what_can_be_reached() -> None:
    entries = [entry("w", ("n",), 1000, 1.0)]
    with pytest.raises(
        OptionError, match=r"10 bytes cannot be reached: the smallest is 950 bytes, at a predicted loss of 0\.0625"
    ):
        within(entries, 10, 700, BEFORE, {}, "small")
    with pytest.raises(OptionError, match="cannot be reached"):
        fitted(entries, 1000, 700, BEFORE, {}, "small", lambda plan: 1200)


def test_files_that_are_never_as_small_as_promised_end_the_search() -> None:
    entries = [entry(f"w{at}", (f"n{at}",), 1000 + at, 1.0) for at in range(5)]
    sizes = iter(range(100_000, 0, -1))
    with pytest.raises(OptionError, match=r"no file within 20,000 bytes was found|cannot be reached"):
        fitted(entries, 20_000, 700, BEFORE, {}, "small", lambda plan: next(sizes))
