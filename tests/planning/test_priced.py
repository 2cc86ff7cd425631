from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from tests.planning.graphs import parse

from gossamer.constraints.low_rank import LowRank
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.kernels import Kernel, Signature
from gossamer.measuring.prices import Price
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.planning import priced
from gossamer.planning.priced import Place, bindings_of, price
from gossamer.planning.ways import Way
from gossamer.runtimes import onnxruntime

Part = tuple[Signature, Kernel]
WHOLE = ((64, 48), (48, 2))  # the shapes of the weights


def net() -> tuple[Model, np.ndarray]:
    """Two products over sentences of any length, the second one tiny."""
    text = "test (float[N,T,64] x) => (float[N,T,2] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"
    model, random = parse(text, a=(64, 48), b=(48, 2)), np.random.default_rng(0)
    for value in model.ir.graph.initializers.values():
        shape = np.asarray(value.const_value).shape
        value.const_value = ir.tensor(random.normal(size=shape).astype(np.float32), name=value.name)
    return model, random.normal(size=(32, 7, 64)).astype(np.float32)


def sold(monkeypatch: pytest.MonkeyPatch, int8: float, thin: float) -> None:
    """Multiply-adds cost a nanosecond, less in integers; `thin` is what a multiply-add of a thin factor costs more."""

    def prices(wanted: Sequence[Part], *_: object, **__: object) -> dict[Part, Price]:
        found = {}
        for signature, kernel in wanted:
            factor = 1.0 if signature.w_shape in WHOLE else thin
            ratio = int8 if kernel.kind == "int8" else None if kernel.kind == "blocks" else 1.0
            found[signature, kernel] = Price(factor * float(np.prod(signature.w_shape)) * 7e-6, ratio)
        return found

    monkeypatch.setattr(priced, "price_list", prices)


def offers(model: Model, x: np.ndarray) -> priced.Offers:
    return price(model, Evidence(samples_from_arrays({"x": x})), Place(onnxruntime, 1, {"x": x[:1]}))


def test_free_axes_have_the_lengths_of_the_batch() -> None:
    model, x = net()
    assert bindings_of(model, {"x": x}) == {"N": 32, "T": 7}
    assert bindings_of(model, {"other": x}) == {}


def test_ways_that_are_faster_are_offered_with_noise_and_price(monkeypatch: pytest.MonkeyPatch) -> None:
    sold(monkeypatch, int8=0.3, thin=1.0)
    model, x = net()
    found = offers(model, x)
    first = next(one for one in found.priced if one.weight == "a")
    assert first.ways[:2] == (Way(), Way(None, True)) and first.nodes == ("node_h",)
    assert first.ms_W[1] == pytest.approx(0.3 * first.ms_W[0])
    noise = dict(zip(first.ways, first.noise_W.tolist(), strict=True))
    assert noise[Way()] == 0 < noise[Way(None, True)] < noise[Way(LowRank(24))] < noise[Way(LowRank(6))]
    assert noise[Way(LowRank(24))] < noise[Way(LowRank(24), True)]
    assert found.notes == ()


def test_low_rank_that_is_no_faster_is_not_offered_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    sold(monkeypatch, int8=0.3, thin=50.0)
    found = offers(*net())
    assert not any(isinstance(way.constraint, LowRank) for one in found.priced for way in one.ways)
    assert found.notes == ("low rank was timed and is no faster for node_h, node_y: kept whole",)


def test_where_nothing_is_faster_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    sold(monkeypatch, int8=2.0, thin=50.0)
    assert offers(*net()).priced == ()
