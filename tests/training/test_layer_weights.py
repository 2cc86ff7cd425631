"""Weights of layers as they are trained: the matrix that a constraint sees, in floats and in twins."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse  # noqa: E402

from gossamer.graph.weight_uses import weight_uses  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.nouns.plan import Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes.contract import run  # noqa: E402
from gossamer.training.layer_weights import layer_weights  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.twin import twin  # noqa: E402

IMAGES = {"x": np.random.default_rng(3).standard_normal((40, 4, 6, 6)).astype(np.float32)}


def network() -> Model:
    """Convolutions of one group and of two, one that is turned round, and products of each kind."""
    return parse(
        """g (float[N,4,6,6] x) => (float[N,3] y) {
            a = Conv<pads=[1,1,1,1]>(x, first) ra = Relu(a)
            b = Conv<group=2>(ra, grouped) rb = Relu(b)
            c = ConvTranspose(rb, turned) rc = Relu(c)
            m = ReduceMean<keepdims=0>(rc, axes)
            d = Gemm<transB=1>(m, wide) rd = Relu(d)
            e = Gemm(rd, narrow) re = Relu(e)
            y = MatMul(re, last)
        }""",
        first=normal(8, 4, 3, 3),
        grouped=normal(8, 4, 3, 3),
        turned=normal(8, 6, 2, 2),
        axes=np.array([2, 3]),
        wide=normal(32, 6),
        narrow=normal(32, 16),
        last=normal(16, 3),
    )


def matrices(model: Model) -> dict[str, np.ndarray]:
    """Initializer -> (G, O, K), as passes see it."""
    uses = weight_uses(list(model.ir.graph), True).uses
    return {str(value.name): found[0].to_matrix(value.const_value.numpy()) for value, found in uses.items()}


def test_floats_have_the_matrices_that_passes_see() -> None:
    model = network()
    found = layer_weights(lower(model), model)
    expected = matrices(model)
    assert [each.initializer for each in found] == ["first", "grouped", "turned", "wide", "narrow", "last"]
    for each in found:
        want = expected[each.initializer]
        assert each.shape_GOK == want.shape and each.size == want.size and each.grid is None
        assert np.array_equal(each.matrix(each.parameter).detach().numpy(), want)
        assert torch.equal(each.tensor(each.matrix(each.parameter)), each.parameter)


@pytest.mark.parametrize("text", ["grid:8", "grid:4", "grid:3", "grid:8:tensor", "grid:4:group=4", "grid:8:asymmetric"])
@pytest.mark.parametrize("form", ["cast", "dequantize"])
def test_the_integers_of_a_twin_have_the_same_layout(text: str, form: str) -> None:
    """Within half a step of the floats that they came from, whatever nodes reshape and turn them on the way."""
    model = network()
    evidence = Evidence(samples_from_arrays(IMAGES))
    config = {"constraint": text, "solver": "nearest", "form": form}
    graph = twin(run(Step("constrain_weights", config), model, evidence).model)
    expected, found = matrices(model), layer_weights(lower(graph), graph)
    assert len(found) >= 4 and any(each.grid is not None for each in found)
    for each in found:
        if each.grid is None:
            continue
        want = expected[each.initializer]
        step = each.step().detach().expand(each.parameter.shape)
        real = each.matrix(each.integers() * step).numpy()
        assert each.shape_GOK == want.shape
        assert np.all(np.abs(real - want) <= 0.501 * np.broadcast_to(each.matrix(step).numpy(), want.shape) + 1e-6)
        low, high = each.ends()
        assert torch.all(each.integers() >= low) and torch.all(each.integers() <= high)
        assert torch.equal(each.tensor(each.matrix(each.parameter)), each.parameter)


def test_a_weight_in_steps_hands_gradients_to_weight_and_step() -> None:
    evidence = Evidence(samples_from_arrays(IMAGES))
    graph = twin(run(Step("quantize_static", {"weight_bits": 4}), network(), evidence).model)
    weight = layer_weights(lower(graph), graph)[0]
    weight.in_steps().square().sum().backward()
    assert weight.parameter.grad is not None and weight.parameter.grad.abs().sum() > 0
    assert weight.grid is not None and weight.grid.log_ratio is not None
    assert weight.grid.log_ratio.grad is not None and weight.grid.log_ratio.grad.abs().sum() > 0


def test_what_takes_no_gradient_and_what_a_codebook_holds_is_left_out() -> None:
    model = network()
    module = lower(model)
    module.get_parameter("wide").requires_grad_(False)
    assert "wide" not in [each.initializer for each in layer_weights(module, model)]
    config = {"constraint": "codebook:4", "solver": "nearest"}
    shared = run(Step("constrain_weights", config), model, Evidence(samples_from_arrays(IMAGES))).model
    assert not layer_weights(lower(shared), shared)


def test_a_recurrent_layer_has_two_and_a_tied_weight_is_one() -> None:
    model = parse(
        """g (float[5,N,4] x) => (float[5,N,4] y) {
            tied = MatMul(x, square) again = MatMul(tied, square)
            r, h, c = LSTM<hidden_size=4>(again, w, recurrent) y = Squeeze(r, one)
        }""",
        square=normal(4, 4),
        w=normal(1, 16, 4),
        recurrent=normal(1, 16, 4),
        one=np.array([1]),
    )
    found = layer_weights(lower(model), model)
    assert [(each.initializer, each.shape_GOK) for each in found] == [
        ("square", (1, 4, 4)),
        ("w", (1, 16, 4)),
        ("recurrent", (1, 16, 4)),
    ]


def test_a_table_of_rows_counts_a_lookup_of_constants_does_not() -> None:
    model = parse(
        """g (int64[N,3] ids) => (float[N,3,4] y) {
            e = Gather(table, ids) y = MatMul(e, w) }""",
        table=normal(256, 16),
        w=normal(16, 4),
    )
    found = layer_weights(lower(model), model)
    assert [(each.initializer, each.shape_GOK) for each in found] == [("table", (1, 256, 16)), ("w", (1, 4, 16))]
