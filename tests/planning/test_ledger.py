from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from gossamer.constraints.contract import as_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.prediction import Prediction
from gossamer.nouns.samples import samples_from_arrays
from gossamer.planning.checking import checked, heard
from gossamer.planning.ledger import ESTIMATED, Entry, each, ledger

CONSTRAINTS = [*(Grid(bits) for bits in (2, 3, 4, 6, 8)), Sparse(pattern=(2, 4))]


def net() -> Model:
    """y = relu(relu(x a) b) c, with a skip around b that keeps its noise small."""
    random, kind = np.random.default_rng(0), ir.TensorType(ir.DataType.FLOAT)
    shapes = {"a": (8, 16), "b": (16, 16), "c": (16, 4)}
    factors = {"a": 1.0, "b": 0.1, "c": 1.0}
    arrays = {name: (factors[name] * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    weights = {
        name: ir.Value(name=name, shape=ir.Shape(w.shape), type=kind, const_value=ir.tensor(w, name=name))
        for name, w in arrays.items()
    }
    x, y = (ir.Value(name=name, shape=ir.Shape(["n", width]), type=kind) for name, width in (("x", 8), ("y", 4)))
    names = iter(["h", "r", "g", "s"])

    def add(op: str, *inputs: ir.Value, out: ir.Value | None = None) -> ir.Node:
        out = out or ir.Value(name=next(names), shape=ir.Shape(["n", 16]), type=kind)
        return ir.node(op, inputs, outputs=[out], name=f"make {out.name}")

    first = add("MatMul", x, weights["a"])
    relu = add("Relu", first.outputs[0])
    second = add("MatMul", relu.outputs[0], weights["b"])
    skip = add("Add", second.outputs[0], relu.outputs[0])
    last = add("MatMul", skip.outputs[0], weights["c"], out=y)
    nodes = [first, relu, second, skip, last]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=list(weights.values()), opset_imports={"": 17}, name="net")
    return Model(ir.Model(graph, ir_version=8), "net")


def evidence(seed: int = 1) -> Evidence:
    x = np.random.default_rng(seed).normal(size=(256, 8)).astype(np.float32)
    return Evidence(samples_from_arrays({"x": x}))


def predictions(entries: tuple[Entry, ...]) -> list[Prediction]:
    """Of every option of every weight."""
    return [
        Prediction(
            one.nodes[0], one.weight, as_text(option.constraint), option.loss, option.nearest_loss, option.zero_loss,
            option.stored_bytes,
        )
        for one in entries
        for option in one.options
        if option.constraint is not None
    ]  # fmt: skip


def test_every_weight_has_its_options_and_a_measured_gain() -> None:
    entries = ledger(net(), evidence(), each(CONSTRAINTS))
    assert [(one.weight, one.nodes) for one in entries] == [("a", ("make h",)), ("b", ("make g",)), ("c", ("make y",))]
    for one in entries:
        assert [option.constraint for option in one.options] == [None, *CONSTRAINTS]
        assert all(option.loss <= option.nearest_loss * (1 + 1e-9) for option in one.options)
        noise = one.noise_ratios()
        assert noise[0] == 0 and (np.diff(noise[1:6]) < 0).all()
    gain = {one.weight: one.gain for one in entries}
    assert gain["c"] == pytest.approx(1.0, rel=0.2)  # its output is the network's
    assert gain["b"] < 0.5 * gain["c"]  # the skip is most of what follows


def test_factors_of_low_rank_reach_fewer_bytes_than_any_grid() -> None:
    entries = ledger(net(), evidence(), each(CONSTRAINTS, thin=(1 / 4, 1 / 2)))
    ranks = {
        one.weight: [as_text(o.constraint) for o in one.options if o.constraint and "low_rank" in as_text(o.constraint)]
        for one in entries
    }
    assert ranks == {  # a is 8 x 16, b 16 x 16, c 16 x 4; a rank of r takes r (rows + columns) numbers
        "a": ["low_rank:1+grid:4", "low_rank:2+grid:4"],
        "b": ["low_rank:2+grid:4", "low_rank:4+grid:4"],
        "c": ["low_rank:1+grid:4"],
    }
    for one in entries:
        noise, sizes = one.noise_ratios(), [option.stored_bytes for option in one.options]
        last = [at for at, o in enumerate(one.options) if o.constraint and "low_rank" in as_text(o.constraint)]
        assert (np.diff(noise[last]) < 0).all() and min(sizes) == sizes[last[0]]


def test_recurrent_weights_are_not_taken_apart() -> None:
    rng, kind = np.random.default_rng(0), ir.TensorType(ir.DataType.FLOAT)
    shapes = {"w": (1, 64, 12), "r": (1, 64, 16)}
    weights = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(shape),
            type=kind,
            const_value=ir.tensor(rng.normal(size=shape).astype(np.float32), name=name),
        )
        for name, shape in shapes.items()
    }
    x = ir.Value(name="x", shape=ir.Shape([5, "n", 12]), type=kind)
    y = ir.Value(name="y", shape=ir.Shape([5, 1, "n", 16]), type=kind)
    cell = ir.node("LSTM", [x, *weights.values()], {"hidden_size": 16}, outputs=[y], name="cell")
    graph = ir.Graph([x], [y], nodes=[cell], initializers=list(weights.values()), opset_imports={"": 17}, name="g")
    data = Evidence(samples_from_arrays({"x": rng.normal(size=(5, 8, 12)).astype(np.float32)}))
    entries = ledger(Model(ir.Model(graph, ir_version=8), "g"), data, each([Grid(4)], thin=(1 / 2,)))
    assert {one.weight for one in entries} == {"w", "r"}
    assert all([option.constraint for option in one.options] == [None, Grid(4)] for one in entries)


def test_predicted_noise_is_close_to_what_is_measured_on_other_samples() -> None:
    model, known = net(), evidence()
    entries = ledger(model, known, each(CONSTRAINTS))
    found = checked(
        heard(predictions(entries), {one.weight: one.gain for one in entries}), model, known, evidence(2).samples
    )
    pairs = np.array([(one.noise_ratio, one.measured_noise_ratio) for one in found if one.constraint != "grid:2"])
    assert len(found) == 18
    assert np.abs(np.log10(pairs[:, 0] / pairs[:, 1])).max() < 0.7
    assert np.corrcoef(pairs.argsort(axis=0).argsort(axis=0).T)[0, 1] > 0.95


def test_without_time_losses_are_estimated_from_the_nearest_points() -> None:
    clock = itertools.count()  # a second at every look
    entries = ledger(net(), evidence(), each(CONSTRAINTS), budget_s=3.0, clock=lambda: float(next(clock)))
    late = [one for one in entries if one.options[1].reason == ESTIMATED]
    assert late and len(late) < 3
    for one in late:
        assert all(0 < option.loss <= option.nearest_loss for option in one.options[1:])


def test_nodes_that_are_skipped_stay_as_they_are() -> None:
    assert [one.weight for one in ledger(net(), evidence(), each(CONSTRAINTS[:1]), skip=["make h"])] == ["b", "c"]


def test_past_its_time_nothing_more_is_checked() -> None:
    model, known = net(), evidence()
    entries = ledger(model, known, each(CONSTRAINTS[:1]))
    ticks = iter([0.0, 0.0, 9.0])
    found = checked(predictions(entries), model, known, known.samples, 1.0, lambda: next(ticks))
    assert [one.measured_noise_ratio is not None for one in found] == [True, False, False]
