"""What comes past a layer, and how its change goes with the layer's input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.graphs import normal, parse, run

from gossamer.arith.float_target import pooled
from gossamer.constraints.grid import Grid
from gossamer.graph.weight_matrix import matrices_by_weight
from gossamer.measuring import sequential_moments
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.fetching import with_outputs
from gossamer.measuring.offsets import convolved
from gossamer.measuring.sequential_moments import Walk
from gossamer.measuring.skips import skip_of, with_input
from gossamer.measuring.staged import depths
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.solving import solve_all

RESIDUAL = """test (float[N,6,9,9] x) => (float[N,6,9,9] y) {
    s = Conv(x, w0)  p = Relu(s)  a = Conv<pads=[1,1,1,1]>(p, w1)  q = Relu(a)  b = Conv(q, w2)  d = Add(b, s)
    r = Relu(d)  e = Conv<pads=[1,1,1,1]>(r, w3)  y = Add(d, e)
}"""
SHAPES = {"w0": (6, 6, 1, 1), "w1": (12, 6, 3, 3), "w2": (6, 12, 1, 1), "w3": (6, 6, 3, 3)}


def residual() -> Model:
    rng = np.random.default_rng(3)
    scaled = {name: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for name, s in SHAPES.items()}
    return parse(RESIDUAL, **scaled)


def skips(model: Model) -> dict[str, str]:
    uses = {name: found[0] for name, found in matrices_by_weight(model.ir.graph).items()}
    depth = depths(model, [use.node.name or "" for use in uses.values()])
    return {name: skip_of(use, depth, depth[use.node.outputs[0].name or ""] - 1) for name, use in uses.items()}


def test_the_skip_of_every_layer() -> None:
    assert skips(residual()) == {"w0": "", "w1": "", "w2": "s", "w3": "d"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a = MatMul(x, w0)  b = MatMul(a, w1)  c = Add(b, k)  y = Add(a, c)", {"w0": "", "w1": "a"}),
        ("a = MatMul(x, w0)  b = MatMul(a, w1)  c = Sum(k, b)  y = Add(c, x)", {"w0": "", "w1": ""}),  # x never changes
        ("a = MatMul(x, w0)  b = MatMul(x, w1)  y = Add(a, b)", {"w0": "", "w1": ""}),  # neither is settled
        (
            "a = MatMul(x, w0)  b = MatMul(a, w1)  c = Add(b, a)  y = Mul(c, b)",
            {"w0": "", "w1": ""},
        ),  # b has two readers
        ("a = MatMul(x, w0)  b = MatMul(a, w1)  y = Sum(b, a, a)", {"w0": "", "w1": ""}),
        ("a = MatMul(x, w0)  b = MatMul(w1, a)  y = Add(b, a)", {"w0": "", "w1": ""}),
    ],
)
def test_where_there_is_none(text: str, wanted: dict[str, str]) -> None:
    model = parse(f"test (float[N,4,4] x) => (float[N,4,4] y) {{ {text} }}", w0=(4, 4), w1=(4, 4), k=(4,))
    assert skips(model) == wanted


@given(st.data())
def test_with_input_is_the_sum_over_patches(data: st.DataObject) -> None:
    groups, kernel, stride, before = (data.draw(st.sampled_from(each)) for each in ((1, 2, 4), (1, 3), (1, 2), (0, 1)))
    size, batch, outputs_each = data.draw(st.integers(4, 7)), data.draw(st.integers(1, 3)), 2
    w = normal(groups * outputs_each, 8 // groups, kernel, kernel)
    pads = f"pads=[{before},{before},{before},{before}], strides=[{stride},{stride}], group={groups}"
    model = parse(f"test (float[N,8,{size},{size}] x) => (float[N,C,A,B] y) {{ y = Conv<{pads}>(x, w) }}", w=w)
    ((use,),) = matrices_by_weight(model.ir.graph).values()
    out = (size + 2 * before - kernel) // stride + 1
    axes = (convolved(size, kernel, stride, 1, before, out),) * 2
    x, change = normal(batch, 8, size, size, seed=5), normal(batch, groups * outputs_each, out, out, seed=6)
    found = with_input(use, change, x, axes)
    # the sum is linear in the weight: <R, W> is what the layer's output has in common with the change
    assert float(np.vdot(found, use.to_matrix(w))) == pytest.approx(
        float(np.vdot(run(model, x=x)[0], change)), abs=1e-2
    )
    other = np.random.default_rng(7).normal(size=w.shape).astype(np.float32)
    model.ir.graph.initializers["w"].const_value = ir.tensor(other, name="w")
    wanted = float(np.vdot(run(model, x=x)[0], change))
    assert float(np.vdot(found, use.to_matrix(other))) == pytest.approx(wanted, abs=1e-2)


def test_what_was_spread_counts_as_nothing() -> None:
    model = parse("test (float[N,5,4] x) => (float[N,5,4] y) { y = MatMul(x, w) }", w=(4, 4))
    ((use,),) = matrices_by_weight(model.ir.graph).values()
    assert not with_input(use, normal(3, 1, 4), normal(3, 5, 4), ()).any()
    assert with_input(use, normal(3, 5, 4), normal(3, 5, 4), ()).any()


def changed(model: Model, names: tuple[str, ...]) -> Model:
    clone = model.clone()
    for name in names:
        value = clone.ir.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(np.round(4 * value.const_value.numpy()) / 4, name=name)
    return clone


def test_a_walk_sees_what_changed_beside_a_layer() -> None:
    model, x = residual(), normal(8, 6, 9, 9)
    walk = Walk(model, list(SHAPES), samples_from_arrays({"x": x}), beside_float=True)
    now = model
    for stage, names in enumerate(walk.stages):
        drifts = walk.seen(now, stage).drifts
        if names == ("w2",):
            before, behind = (run(with_outputs(each, ["s", "q"], "seen"), x=x)[1:] for each in (model, now))
            change, rows = (
                np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in (before[0] - behind[0], behind[1])
            )
            found = pooled([part for part in drifts["w2"] if part is not None])
            assert found.beside_GOK is not None
            np.testing.assert_allclose(found.beside_GOK[0], change.T @ rows / len(x), rtol=1e-3, atol=1e-4)
        elif drifts:
            assert all((part is None or part.beside_GOK is None) == (names != ("w3",)) for part in drifts[names[0]])
        now = changed(now, names)


def test_sums_are_truer_where_layers_make_up_for_what_comes_past_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual()
    x, unseen = (normal(64, 6, 1, 1, seed=seed) + 0.5 * normal(64, 6, 9, 9, seed=seed + 1) for seed in (1, 3))
    uses = {found[0].value: found for found in matrices_by_weight(model.ir.graph).values()}
    noise = []
    for is_seen in (True, False):
        if not is_seen:
            monkeypatch.setattr(sequential_moments, "skip_of", lambda *_: "")
        answers = solve_all(
            model, uses, dict.fromkeys(uses, Grid(3)), "second_order",
            Evidence(samples_from_arrays({"x": x})), True, lambda *_: True,
        )  # fmt: skip
        solved = model.clone()
        for value, answer in answers.items():
            w = uses[value][0].from_matrix(answer.solved.form.real())
            solved.ir.graph.initializers[value.name or ""].const_value = ir.tensor(w, name=value.name)
        noise.append(float(np.square(run(solved, x=unseen)[0] - run(model, x=unseen)[0]).sum()))
    assert noise[0] < 0.97 * noise[1]
