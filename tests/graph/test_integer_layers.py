from __future__ import annotations

import numpy as np
import pytest
from tests.passes.graphs import array_of, normal, parse, run

from gossamer.graph.edit import add_initializer
from gossamer.graph.integer_layers import Chosen, Form, store_layer
from gossamer.graph.layers import Layer, layer_of
from gossamer.graph.qdq import Pair


@pytest.mark.parametrize(("bits", "worst"), [(7, 2**-7), (8, 2**-8), (16, 2**-16)])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_weights_and_bias_are_within_half_a_step(bits: int, worst: float, granularity: str) -> None:
    w, c = normal(6, 4, 3), normal(6, seed=2)
    model = parse("test (float[N,4,8] x) => (float[N,6,6] y) { y = Conv(x, w, c) }", w=w, c=c)
    graph = model.ir.graph
    scale = add_initializer(graph, "s", np.array(0.01, np.float32))
    layer = layer_of(graph[0])
    assert isinstance(layer, Layer)
    x = normal(2, 4, 8)
    wanted = run(model, x=x)[0]
    store_layer(layer, Pair(scale, scale), Form(bits, granularity, "sums" if bits == 8 else "nearest"))  # type: ignore[arg-type]
    stored = array_of(model, "w_quantized")
    assert stored.dtype == (np.int16 if bits == 16 else np.int8)
    assert array_of(model, "w_scale").shape == ((6,) if granularity == "channel" else ())
    biases = next(array_of(model, name) for name in graph.initializers if name.startswith("c/") and "quant" in name)
    assert biases.dtype == np.int32
    assert np.abs(run(model, x=x)[0] - wanted).max() < 3 * 12 * np.abs(w).max() * worst


@pytest.mark.parametrize("silent", [(), (2,), (0, 5)])
def test_a_channel_with_hardly_any_weight_leaves_the_others_their_integers(silent: tuple[int, ...]) -> None:
    """As in networks with folded norms: behind a dead channel stands its bias alone, too large for steps so small."""
    w, c = normal(6, 4, 3), normal(6, seed=2)
    w[list(silent)] *= 1e-12
    model = parse("test (float[N,4,8] x) => (float[N,6,6] y) { y = Conv(x, w, c) }", w=w, c=c)
    scale = add_initializer(model.ir.graph, "s", np.array(0.01, np.float32))
    layer = layer_of(model.ir.graph[0])
    assert isinstance(layer, Layer)
    steps = (np.abs(w).reshape(6, -1).max(axis=1) / 5).astype(np.float32)
    chosen = Chosen(np.random.default_rng(1).integers(-7, 8, w.shape).astype(np.int8), steps)
    x = normal(2, 4, 8)
    wanted = run(model, x=x)[0]
    store_layer(layer, Pair(scale, scale), Form(4, "channel", "second_order"), chosen)
    heard = np.setdiff1d(np.arange(6), silent)
    np.testing.assert_array_equal(array_of(model, "w_quantized")[heard], chosen.integers[heard])
    np.testing.assert_array_equal(array_of(model, "w_scale")[heard], steps[heard])
    gone = np.array(silent, int)
    np.testing.assert_allclose(run(model, x=x)[0][:, gone], wanted[:, gone], atol=1e-3)
