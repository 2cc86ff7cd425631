"""Every constraint keeps the contract of `gossamer.constraints.contract`, on random weights of random shapes.

Constraints are found by file, so a new one in `gossamer/constraints` without examples here fails.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gossamer.constraints
from gossamer.arith.forms import floats_of, stored_bits
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint, as_text, constraint_from_text
from gossamer.constraints.low_rank import LowRank
from gossamer.errors import OptionError

EXAMPLES = {
    "grid": [
        *("grid:4", "grid:2", "grid:8:tensor", "grid:3:asymmetric", "grid:5:group=4", "grid:16:asymmetric:group=2"),
        "grid:6:tensor:rate=1e-07",
        "grid:4:input",
    ],
    "sparse": ["sparse:0.7", "sparse:2:4", "sparse:0.5:block=2x3", "sparse:0.0"],
    "codebook": [
        *("codebook:4", "codebook:2", "codebook:3:channel", "codebook:4:dimension=2", "codebook:8:channel:rate=0.01"),
    ],
    "low_rank": ["low_rank:1", "low_rank:2", "low_rank:0.8"],
    "shared": ["shared"],
    "composed": [
        *("sparse:0.5+grid:4", "sparse:2:4+grid:3:asymmetric", "sparse:0.4:block=2x2+grid:4:group=4"),
        *("sparse:0.5+codebook:4", "sparse:2:4+codebook:4:channel", "low_rank:1+grid:8", "low_rank:2+grid:4:group=4"),
    ],
}
ALL = [text for texts in EXAMPLES.values() for text in texts]

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 8, 9, 12]))
plain = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
strange = st.tuples(shapes, st.sampled_from([0.0, 1.0, -3.0, 1e-30, 1e-40, 1e12, -1e15])).map(
    lambda pair: np.full(pair[0], pair[1], np.float32)
)
scaled = st.tuples(plain, st.sampled_from([1e-30, 1e-12, 1e10, 1e15])).map(lambda pair: pair[0] * np.float32(pair[1]))
mixed = shapes.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 1, -1, 0.5, 1e-20, 1e10]))
)
weights = st.one_of(plain, strange, scaled, mixed)


def applies(constraint: Constraint, w_GOK: np.ndarray) -> bool:
    """Whether the constraint can apply; if not, it says so in one line, `project` too, and nothing is inside."""
    obstacle = constraint.obstacle(w_GOK.shape)
    if not obstacle:
        return True
    assert "\n" not in obstacle and obstacle[-1] != "."
    assert not constraint.contains(w_GOK)
    with pytest.raises(OptionError) as caught:
        constraint.project(w_GOK)
    assert obstacle in str(caught.value)
    return False


def settles(constraint: Constraint) -> bool:
    """Not so for a share of whatever energy there is, and for products of rounded factors: see Composed.project."""
    if isinstance(constraint, LowRank):
        return constraint.energy_ratio is None
    return not (isinstance(constraint, Composed) and isinstance(constraint.first, LowRank))


def test_every_file_has_examples() -> None:
    files = {path.stem for path in Path(gossamer.constraints.__file__).parent.glob("[a-z]*.py")}
    assert files - {"contract"} == set(EXAMPLES)


@pytest.mark.parametrize("text", ALL)
@settings(max_examples=25)
@given(w=weights)
def test_project_ends_inside_and_never_worse_than_zeros(text: str, w: np.ndarray) -> None:
    constraint = constraint_from_text(text)
    if not applies(constraint, w):
        return
    form = constraint.project(w.copy())
    real = floats_of(form)
    assert real.dtype == np.float32 and real.shape == w.shape and np.isfinite(real).all()
    assert constraint.contains(real)
    squares = np.square(w, dtype=np.float64).sum()
    assert np.square(real.astype(np.float64) - w).sum() <= squares * (1 + 1e-5)
    assert stored_bits(form) >= 0


@pytest.mark.parametrize("text", ALL)
@settings(max_examples=25)
@given(w=weights)
def test_the_result_projects_to_itself(text: str, w: np.ndarray) -> None:
    constraint = constraint_from_text(text)
    if not applies(constraint, w) or not settles(constraint):
        return
    once = floats_of(constraint.project(w))
    twice = floats_of(constraint.project(once))
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-5 * float(np.abs(once).max()))


@pytest.mark.parametrize("text", ALL)
def test_it_is_a_value_that_travels(text: str) -> None:
    constraint = constraint_from_text(text)
    assert as_text(constraint) == text
    assert msgspec.json.decode(msgspec.json.encode(constraint), type=Constraint) == constraint
    assert hash(constraint) == hash(constraint_from_text(text))
    with pytest.raises(msgspec.ValidationError):
        tag = msgspec.to_builtins(constraint)["type"]
        msgspec.convert({"type": tag, "unknown": 1}, Constraint)


@pytest.mark.parametrize("text", ALL)
def test_random_weights_lie_outside_and_the_input_is_not_written_to(text: str) -> None:
    constraint = constraint_from_text(text)
    w = np.random.default_rng(0).normal(size=(2, 6, 24)).astype(np.float32)
    before = w.copy()
    constraint.project(w)
    assert np.array_equal(w, before)
    coarse = text not in {"grid:16:asymmetric:group=2", "sparse:0.0", "low_rank:0.8"}
    assert constraint.contains(w) is not coarse
