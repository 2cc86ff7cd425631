"""Lowering: what the module computes, what it is made of, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402

import gossamer  # noqa: E402
from gossamer.errors import ModelError  # noqa: E402
from gossamer.nouns.model import Model, to_bytes  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402

DEMO = Path(gossamer.__file__).parent / "demo" / "original.onnx"
HARD = Path(__file__).parents[1] / "hard"
CLOSE = 1e-4  # of the largest output
RESIDUAL = """
    g (float[N,3,8,8] x) => (float[N,10] y) {
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, conv_w)
        n = BatchNormalization<epsilon=0.001, momentum=0.8>(c, norm_scale, norm_bias, norm_mean, norm_var)
        r = Relu(n)
        d = Conv<group=4, auto_pad="SAME_UPPER", strides=[2,2]>(r, depth_w)
        p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r)
        s = Add(d, p)
        m = GlobalAveragePool(s)
        f = Flatten(m)
        y = Gemm<transB=1>(f, head_w, head_b)
    }"""
RESIDUAL_WEIGHTS: dict[str, Any] = {
    "conv_w": (4, 3, 3, 3),
    "norm_scale": (4,),
    "norm_bias": (4,),
    "norm_mean": (4,),
    "norm_var": np.float32([0.5, 1, 2, 3]),
    "depth_w": (4, 1, 3, 3),
    "head_w": (10, 4),
    "head_b": (10,),
}
ATTENTION = """
    g (float[N,T,16] x, int64[N,T] keep) => (float[N,T,16] y) {
        shape = Shape(x)
        batch = Gather<axis=0>(shape, zero)
        length = Gather<axis=0>(shape, one)
        batch_1 = Unsqueeze(batch, at_zero)
        length_1 = Unsqueeze(length, at_zero)
        split = Concat<axis=0>(batch_1, length_1, four, minus_one)
        joined = Concat<axis=0>(batch_1, length_1, sixteen)
        q = MatMul(x, q_w)
        q4 = Reshape(q, split)
        qt = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,3,1]>(q4)
        size = Cast<to=1>(four_0)
        root = Sqrt(size)
        raw = MatMul(qt, kt)
        scores = Div(raw, root)
        wide = Unsqueeze(keep, mask_axes)
        hidden = Equal(wide, zero)
        masked = Where(hidden, lowest, scores)
        shares = Softmax<axis=-1>(masked)
        mixed = MatMul(shares, qt)
        back = Transpose<perm=[0,2,1,3]>(mixed)
        y = Reshape(back, joined)
    }"""
ATTENTION_WEIGHTS: dict[str, Any] = {
    "zero": np.int64(0),
    "one": np.int64(1),
    "at_zero": np.int64([0]),
    "four": np.int64([4]),
    "four_0": np.int64(4),
    "sixteen": np.int64([16]),
    "minus_one": np.int64([-1]),
    "mask_axes": np.int64([1, 2]),
    "lowest": np.float32(-1e9),
    "q_w": (16, 16),
}


def by_runtime(model: Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the graph means to the runtime, before its optimizer: that rounds activations where weights are integers."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def assert_agrees(model: Model, feed: dict[str, np.ndarray], module: Any = None) -> None:
    """The module, or what `lower` makes of the model, gives what the runtime gives."""
    module = lower(model) if module is None else module
    with torch.no_grad():
        made = module(*(torch.from_numpy(array) for array in feed.values()))
    for got, expected in zip(made if isinstance(made, tuple) else (made,), by_runtime(model, feed), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=CLOSE * np.abs(expected).max())


def demo() -> Model:
    return gossamer.load(DEMO)


def test_the_demo_network_agrees_with_the_runtime() -> None:
    assert_agrees(demo(), {"image": normal(5, 1, 28, 28)})


@pytest.mark.parametrize("name", ["reader", "ledger"])
def test_the_hard_networks_agree_with_the_runtime(name: str) -> None:
    model = gossamer.load(HARD / f"{name}.onnx")
    with np.load(HARD / f"{name}.npz") as data:
        assert_agrees(model, {value.name: data[value.name][:4] for value in model.ir.graph.inputs})


def test_parameters_bear_the_names_of_the_initializers() -> None:
    model = demo()
    module = lower(model)
    named = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    floats = {name for name, value in model.ir.graph.initializers.items() if value.dtype == ir.DataType.FLOAT}
    assert named == floats
    assert module.meta["initializers"] == {name: name for name in floats}
    assert {name for name in named if "running" in name} == set(dict(module.named_buffers()))


def test_the_code_can_be_read() -> None:
    code = lower(parse(RESIDUAL, **RESIDUAL_WEIGHTS)).code
    assert "= torch.relu(node_n)" in code
    assert "convolution_conv(x, conv_w, kernel_shape = (3, 3), pads = (1, 1, 1, 1))" in code
    assert "epsilon = 0.001, momentum = 0.8, training = training" in code


@settings(max_examples=10)
@given(batch=st.integers(1, 5))
def test_the_batch_is_free(batch: int) -> None:
    assert_agrees(parse(RESIDUAL, **RESIDUAL_WEIGHTS), {"x": normal(batch, 3, 8, 8)})


@settings(max_examples=10)
@given(batch=st.integers(1, 4), length=st.integers(1, 6))
def test_shapes_are_computed_with_numbers(batch: int, length: int) -> None:
    model = parse(ATTENTION, **ATTENTION_WEIGHTS)
    keep = np.ones((batch, length), np.int64)
    keep[:, 1::2] = 0
    assert_agrees(model, {"x": normal(batch, length, 16), "keep": keep})
    code = lower(model).code
    assert "as_tensor(2.0" in code  # the root of a constant, taken now
    assert "numbers_of" not in code


def test_small_weights_and_large_fillings_are_tensors_though_sizes_say_where() -> None:
    text = """
    g (float[N,4] x) => (float[N,2] y, float[N,4] z, int64[1] k) {
        s = Shape<start=1, end=2>(x)
        half = Div(s, two)
        part = Slice(w, at_zero, half, at_zero)
        left = Slice(x, at_zero, half, at_one)
        y = Mul(left, part)
        whole = Shape(x)
        ones = ConstantOfShape<value = float[1] {2.0}>(whole)
        z = Mul(x, ones)
        rank = Shape(whole)
        k = Mul(rank, two)
    }"""
    model = parse(text, two=np.int64([2]), at_zero=np.int64([0]), at_one=np.int64([1]), w=(4,))
    assert_agrees(model, {"x": normal(3, 4)})
    module = lower(model)
    module(torch.ones(3, 4))[0].sum().backward()
    assert module.w.grad.tolist() == [3, 3, 0, 0]


@pytest.mark.parametrize("text", ["attention", "demo"])
def test_compile_and_export_take_it_whole(text: str) -> None:
    if text == "demo":
        model, feed = demo(), {"image": normal(4, 1, 28, 28)}
    else:
        model = parse(ATTENTION, **ATTENTION_WEIGHTS)
        feed = {"x": normal(4, 5, 16), "keep": np.ones((4, 5), np.int64)}
    module = lower(model)
    assert_agrees(model, feed, torch.compile(module, backend="eager", fullgraph=True, dynamic=True))
    batch = torch.export.Dim("batch")
    arrays = tuple(torch.from_numpy(array) for array in feed.values())
    program = torch.export.export(module, arrays, dynamic_shapes=tuple({0: batch} for _ in arrays))
    assert_agrees(model, {name: array[:3] for name, array in feed.items()}, program.module())


def test_training_mode_is_switched_by_the_module() -> None:
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    module, x = lower(model), torch.from_numpy(normal(6, 3, 8, 8))
    before = module.norm_mean.clone()
    module(x)
    assert torch.equal(module.norm_mean, before)
    module.train()
    module(x)
    batch_mean = torch.conv2d(x, module.conv_w, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(module.norm_mean, 0.8 * before + 0.2 * batch_mean)
    assert lower(model).training is False


def test_dropout_of_an_inference_graph_drops_in_training() -> None:
    module = lower(parse("g (float[N,50] x) => (float[N,50] y) { y = Dropout(x, ratio) }", ratio=np.float32(0.5)))
    x = torch.ones(4, 50)
    assert torch.equal(module(x), x)
    dropped = module.train()(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_training_is_that_of_the_module_it_was_exported_from() -> None:
    """Bit for bit: the same losses and weights as a module of torch's own layers, over some steps."""
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    module = lower(model).train()
    layers = torch.nn
    conv, norm = layers.Conv2d(3, 4, 3, padding=1, bias=False), layers.BatchNorm2d(4, eps=0.001, momentum=0.2)
    depth, head = layers.Conv2d(4, 4, 3, stride=2, groups=4, bias=False), layers.Linear(4, 10)
    pairs = {
        "conv_w": conv.weight,
        "norm_scale": norm.weight,
        "norm_bias": norm.bias,
        "depth_w": depth.weight,
        "head_w": head.weight,
        "head_b": head.bias,
    }
    state = module.state_dict()
    with torch.no_grad():
        for name, weight in (*pairs.items(), ("norm_mean", norm.running_mean), ("norm_var", norm.running_var)):
            weight.copy_(state[name])

    def original(x: Any) -> Any:
        r = torch.relu(norm(conv(x)))
        s = depth(layers.functional.pad(r, (0, 1, 0, 1))) + layers.functional.avg_pool2d(r, 2)
        return head(s.mean((2, 3)))

    optimizers = [torch.optim.SGD(list(weights), 0.1) for weights in (module.parameters(), pairs.values())]
    torch.manual_seed(1)
    for _ in range(3):
        x, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
        losses = []
        for network, optimizer in zip((module, original), optimizers, strict=True):
            loss = layers.functional.cross_entropy(network(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == losses[1]
    for name, weight in pairs.items():
        assert torch.equal(module.get_parameter(name), weight), name
    assert torch.equal(module.norm_var, norm.running_var)


def test_modules_compute_where_they_are_moved_to() -> None:
    """On a device without memory, which takes no tensor of another."""
    residual = lower(parse(RESIDUAL, **RESIDUAL_WEIGHTS)).to("meta").train()
    assert residual(torch.zeros(2, 3, 8, 8, device="meta")).shape == (2, 10)
    attention = lower(parse(ATTENTION, **ATTENTION_WEIGHTS)).to("meta")
    keep = torch.ones(2, 5, dtype=torch.int64, device="meta")
    assert attention(torch.zeros(2, 5, 16, device="meta"), keep).device.type == "meta"


def test_mixed_precision_is_torchs_own() -> None:
    module, x = lower(parse(RESIDUAL, **RESIDUAL_WEIGHTS)).train(), torch.from_numpy(normal(4, 3, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert {weight.grad.dtype for weight in module.parameters()} == {torch.float32}


def test_constants_without_axes_wait_to_be_asked() -> None:
    module = lower(parse("g (float[N] x) => (float[N] y) { a = Mul(x, w) y = Div(a, t) }", w=(1,), t=np.float32(2)))
    assert {name: weight.requires_grad for name, weight in module.named_parameters()} == {"w": True, "t": False}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("stem.conv.weight", "stem.conv.weight"),
        ("layers.0.weight", "layers.0.weight"),
        ("onnx::Conv_12", "onnx__Conv_12"),
        ("model/dense/kernel:0", "model_dense_kernel_0"),
        ("training", "training_"),
        ("block.forward", "block.forward_"),
        ("class", "class_"),
        ("12", "12"),
    ],
)
def test_names_become_attributes(name: str, path: str) -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Add(x, w) }", w=(3,))
    weight = model.ir.graph.initializers["w"]
    del model.ir.graph.initializers["w"]
    weight.name = weight.const_value.name = name
    model.ir.graph.register_initializer(weight)
    module = lower(model)
    assert module.meta["initializers"] == {path: name}
    assert_agrees(model, {"x": normal(2, 3)}, module)


def test_names_that_would_be_both_tensor_and_module_are_parted() -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { p = Add(x, w1) q = Add(p, w2) y = Add(q, w3) }"
    model = parse(text, w1=(3,), w2=(3,), w3=(3,))
    for old, new in (("w1", "a"), ("w2", "a.b"), ("w3", "a/b")):
        weight = model.ir.graph.initializers.pop(old)
        weight.name = weight.const_value.name = new
        model.ir.graph.register_initializer(weight)
    module = lower(model)
    assert sorted(module.meta["initializers"].values()) == ["a", "a.b", "a/b"]
    assert_agrees(model, {"x": normal(2, 3)}, module)


def test_branches_and_loops_are_lowered_with_what_they_read() -> None:
    text = """
    g (float[N,4] x, bool take) => (float[N,4] y, float[3,N,4] all) {
        count = Constant<value_int=3>()
        held = Constant<value = bool {1}>()
        z = If(take) <
            then_branch = t () => (a) { a = Mul(x, w) },
            else_branch = e () => (b) { h = Constant<value = float {0.5}>() b = Mul(x, h) }
        >
        y, all = Loop(count, held, z) <
            body = l (int64 i, bool going, float[N,4] state) => (more, next, seen) {
                more = Identity(going)
                f = Cast<to=1>(i)
                d = Mul(x, w)
                n = Add(state, d)
                next = Add(n, f)
                seen = Identity(next)
            }
        >
    }"""
    model = parse(text, w=(4,))
    for take in (True, False):
        assert_agrees(model, {"x": normal(2, 4), "take": np.array(take)})
    module = lower(model)
    module(torch.ones(2, 4), torch.tensor(True))[0].sum().backward()
    assert module.w.grad is not None and module.w.grad.abs().sum() > 0


def test_missing_operators_are_all_named_with_their_nodes() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "my.own" : 2]>
    g (float[N] x) => (float[N] y, float[N] z) {
        [first] a = my.own.Bend(x)
        [second] y = my.own.Bend(a)
        [third] z = MelWeightMatrix(a, a, a, a, a)
    }"""
    import onnx

    model = Model(ir.serde.deserialize_model(onnx.parser.parse_model(text)), "bent.onnx")
    expected = (
        r"^bent.onnx cannot be trained, as these operators have no counterpart in torch: my.own.Bend version 2 \(nodes "
        r"first, second\); ai.onnx.MelWeightMatrix version 21 \(nodes third\)$"
    )
    with pytest.raises(ModelError, match=expected):
        lower(model)


def test_casts_to_what_torch_cannot_count_in_are_refused() -> None:
    model = parse("g (float[N] x) => (float[N] y) { [it] a = Cast<to=22>(x) y = Cast<to=1>(a) }")
    with pytest.raises(ModelError, match="Cast it cannot be lowered: it casts to INT4, in which torch does not comp"):
        lower(model)


def test_an_attribute_without_counterpart_is_named() -> None:
    model = parse("g (float[N] x) => (float[N] y) { [it] y = Relu(x) }")
    next(iter(model.ir.graph)).attributes["slope"] = ir.AttrFloat32("slope", 0.5)
    with pytest.raises(ModelError, match="test: attribute slope of Relu it has no counterpart in torch"):
        lower(model)
