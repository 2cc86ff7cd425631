from __future__ import annotations

import numpy as np
import pytest

from gossamer.errors import CandidateError
from gossamer.graph.layers import layer_of
from gossamer.measuring.kernels import Kernel, Signature, feeds_of, model_of, signature_of
from gossamer.runtimes.onnxruntime import open_session

LAYERS = [
    Signature("MatMul", (1, 5, 64), (64, 32)),
    Signature("Gemm", (1, 64), (32, 64), (("transB", 1),)),
    Signature("Gemm", (1, 64), (64, 32)),
    Signature("Conv", (1, 8, 6, 6), (16, 8, 3, 3), (("pads", (1, 1, 1, 1)), ("strides", (2, 2)))),
    Signature("Conv", (1, 8, 6, 6), (8, 1, 3, 3), (("group", 8),)),
]
KERNELS = [
    Kernel("float"),
    Kernel("int8"),
    Kernel("blocks", 4, 32),
    Kernel("blocks", 8, 64),
    Kernel("dequantize"),
    Kernel("dequantize", 4, 32),
    Kernel("low_rank", rank=4),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.kind}{kernel.bits}")
@pytest.mark.parametrize("signature", LAYERS, ids=lambda one: f"{one.op}{one.w_shape}")
def test_every_way_to_compute_a_layer_runs_with_the_same_output_shape(signature: Signature, kernel: Kernel) -> None:
    original = open_session(model_of(signature, Kernel("float")))
    convolution, grouped = signature.op == "Conv", dict(signature.attributes).get("group", 1) != 1
    impossible = (convolution and (kernel.block > 0 or kernel.kind == "blocks")) or (
        grouped and kernel.kind == "low_rank"
    )
    if impossible:
        with pytest.raises(CandidateError):
            model_of(signature, kernel)
        return
    session = open_session(model_of(signature, kernel))
    (out,), (expected,) = (one.run(feeds_of(one, signature)) for one in (session, original))
    assert out.shape == expected.shape
    if kernel.kind in ("blocks", "dequantize"):
        noise = np.sum((out - expected) ** 2) / np.sum(expected**2)
        assert noise < (0.03 if kernel.bits == 4 else 0.001)


@pytest.mark.parametrize("signature", LAYERS, ids=lambda one: f"{one.op}{one.w_shape}")
def test_a_layer_is_read_as_it_was_written(signature: Signature) -> None:
    layer = layer_of(next(iter(model_of(signature, Kernel("float")).ir.graph)))
    assert not isinstance(layer, str)
    found = signature_of(layer, {"x": signature.x_shape})
    assert found is not None
    assert found.attributes == tuple(sorted(signature.attributes, key=lambda pair: pair[0]))
    assert (found.op, found.x_shape, found.w_shape) == (signature.op, signature.x_shape, signature.w_shape)
    assert signature_of(layer, {}) is None
