"""The twin of a quantized model: it computes what the runtime computes, and what it learns is what the file holds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.integers import WEIGHT_BITS  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402

import gossamer  # noqa: E402
from gossamer.graph.edit import constant  # noqa: E402
from gossamer.graph.qdq import integers_behind  # noqa: E402
from gossamer.intake.normalise import normalise  # noqa: E402
from gossamer.intake.onnx_file import read  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.model import Model, to_bytes  # noqa: E402
from gossamer.nouns.plan import Plan, Scope, Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes.contract import run, run_plan  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.operators.fake_quantize import DOMAIN, fake_quantize, fake_quantize_bias, step  # noqa: E402
from gossamer.training.operators.quantization import dequantize_linear, quantize_linear  # noqa: E402
from gossamer.training.settle import settle  # noqa: E402
from gossamer.training.twin import bounds_of, twin  # noqa: E402
from gossamer.training.write_back import write_back  # noqa: E402

NET = """g (float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    c = Conv<pads=[1,1,1,1], group=6>(p, v) s = Add(c, p)
    f = Flatten(s) y = Gemm(f, u, d)
}"""
DEMO = Path(gossamer.__file__).parent / "demo"
BITS = (2, 3, 4, 5, 6, 7, 8)


def network(seed: int = 0) -> Model:
    return parse(
        NET,
        w=normal(6, 3, 3, 3, seed=seed),
        b=normal(6, seed=seed + 1),
        v=normal(6, 1, 3, 3, seed=seed + 2),
        u=normal(96, 5, seed=seed + 3),
        d=normal(5, seed=seed + 4),
    )


def quantized(model: Model, seed: int = 0, **config: object) -> Model:
    evidence = Evidence(samples_from_arrays({"x": normal(32, 3, 8, 8, seed=seed)}))
    return run(Step("quantize_static", config), model, evidence).model


def outputs(model: Model, x: np.ndarray, optimize: bool = True) -> np.ndarray:
    session = open_session(model, optimize=optimize)
    return session.run({next(iter(session.inputs)): x})[0]


def twins(model: Model, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return lower(twin(model))(torch.from_numpy(x)).numpy()


def shaken(module: torch.nn.Module, by: float, seed: int = 0) -> None:
    """Every parameter that is trained, moved as by some steps of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += (
                    by * parameter.abs().mean().clamp(min=0.05) * torch.randn(parameter.shape, generator=generator)
                )


@settings(max_examples=8)
@given(
    bits=st.sampled_from([bits for bits in BITS if bits <= WEIGHT_BITS]),  # 8 where the runtime's sums are exact
    activation_bits=st.sampled_from([2, 4, 5, 8]),
    activation=st.sampled_from(["uint8", "int8"]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["channel", "tensor"]),
    rounding=st.sampled_from(["nearest", "second_order"]),
    seed=st.integers(0, 50),
)
def test_what_a_twin_learned_is_what_the_runtime_computes(
    bits: int, activation_bits: int, activation: str, symmetric: bool, granularity: str, rounding: str, seed: int
) -> None:
    model = quantized(
        network(seed),
        seed,
        weight_bits=bits,
        activation_bits=activation_bits,
        activation=activation,
        symmetric=symmetric,
        granularity=granularity,
        rounding=rounding,
    )
    graph, x = twin(model), normal(16, 3, 8, 8, seed=seed)
    module = lower(graph)
    assert to_bytes(settle(write_back(module, graph), model)) == to_bytes(model), "untrained, nothing changes"
    shaken(module, 0.2, seed)
    result = settle(write_back(module, graph), model)
    assert to_bytes(result) != to_bytes(model)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    got = outputs(result, x)
    assert np.mean(np.square(got - expected)) <= 1e-3 * np.mean(np.square(expected)) + 1e-9
    assert largest_integer(result) <= largest_of(bits)


def largest_integer(model: Model) -> int:
    """Of all weights."""
    found = (integers_behind(node) for node in model.ir.graph if node.op_type == "DequantizeLinear")
    arrays = (np.asarray(constant(value)) for value in found if value is not None and value.dtype != ir.DataType.INT32)
    return max(int(np.abs(array.astype(np.int32)).max()) for array in arrays)


def largest_of(bits: int) -> int:
    """Of so many bits, on the negative side."""
    return 2 ** (bits - 1)


def test_every_integer_is_the_one_that_the_twin_computes_with() -> None:
    model = quantized(network(), weight_bits=4)
    graph = twin(model)
    module = lower(graph)
    shaken(module, 0.3)
    trained = write_back(module, graph)
    result = settle(trained, model)
    weights = [
        node for node in trained.ir.graph if node.domain == DOMAIN and node.metadata_props.get("gossamer.stored")
    ]
    by_name = {node.name: node for node in result.ir.graph}
    compared = 0
    for node in weights:
        if node.op_type != "FakeQuantize":
            continue
        values = (None if value is None else torch.from_numpy(np.array(constant(value))) for value in node.inputs)
        w, scale, zero, log, unit = values
        low, high, axis = (node.attributes[name].as_int() for name in ("low", "high", "axis"))
        made = fake_quantize(w, scale, zero, log, unit, axis, 0, low, high)
        stored = np.asarray(constant(result.ir.graph.initializers[node.metadata_props["gossamer.stored"]]))
        steps = step(scale, log).reshape(-1, *[1] * (w.ndim - 1)) if axis == 0 else step(scale, log)
        assert np.array_equal(stored.astype(np.float32), torch.round(made / steps).numpy())
        compared += stored.size
    assert compared == 6 * 27 + 54 + 480 and by_name


@cache
def demo(bits: int) -> tuple[Model, np.ndarray]:
    """The packaged model with weights of so many bits, and pictures."""
    with np.load(DEMO / "data.npz") as file:
        pictures = file["image"][:1000].astype(np.float32)
    steps = (
        Step("fold_constants"),
        Step("fold_batchnorm"),
        Step("quantize_static", {"weight_bits": bits, "rounding": "sums"}),
    )
    evidence = Evidence(samples_from_arrays({"image": pictures[:100]}))
    return run_plan(Plan("q", steps), normalise(read(DEMO / "original.onnx")), evidence).model, pictures


@pytest.mark.parametrize("bits", [WEIGHT_BITS, 4])
def test_the_packaged_model_and_its_twin_agree_on_999_of_1000(bits: int) -> None:
    model, pictures = demo(bits)
    graph = twin(model)
    module = lower(graph)
    shaken(module, 0.01)
    result = settle(write_back(module, graph), model)
    with torch.no_grad():
        expected = module(torch.from_numpy(pictures)).numpy()
    got = outputs(result, pictures)
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.999


def test_a_weight_begins_where_the_float_one_is_in_its_cell() -> None:
    model = network()
    result = quantized(model, weight_bits=3)
    assert result.reference is not None
    graph = twin(result).ir.graph
    w, middle = np.asarray(constant(graph.initializers["w"])), model.ir.graph.initializers["w"].const_value.numpy()
    scale = np.asarray(constant(graph.initializers["w_scale"])).reshape(-1, 1, 1, 1)
    unit = np.asarray(constant(graph.initializers["w_unit"])).reshape(-1, 1, 1, 1)
    inside = np.abs(middle / scale) < 3
    assert np.allclose((w * unit)[inside], middle[inside], atol=5.1e-2 * scale.max())


def test_steps_stay_if_they_are_not_to_be_learned() -> None:
    model = quantized(network())
    module = lower(twin(model, learn_steps=False))
    assert not [name for name, parameter in module.named_parameters() if "log" in name]
    assert not any(parameter.requires_grad for name, parameter in module.named_parameters() if name.endswith("scale"))
    assert any(parameter.requires_grad for parameter in module.parameters())


def test_a_model_without_integers_is_its_own_twin() -> None:
    model = network()
    assert twin(model) is model


def test_blocks_and_zero_points_of_anybody() -> None:
    text = """g (float[N,8] x) => (float[N,4] y) {
        wd = DequantizeLinear<axis=0, block_size=4>(wq, ws, wz) y = MatMul(x, wd) }"""
    rng = np.random.default_rng(0)
    model = parse(
        text,
        wq=rng.integers(0, 255, (8, 4)).astype(np.uint8),
        ws=rng.uniform(0.01, 0.1, (2, 4)).astype(np.float32),
        wz=rng.integers(90, 160, (2, 4)).astype(np.uint8),
    )
    x = normal(5, 8)
    assert np.allclose(twins(model, x), outputs(model, x), atol=1e-4)
    graph = twin(model)
    module = lower(graph)
    shaken(module, 0.3)
    result = settle(write_back(module, graph), model)
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(x)).numpy(), outputs(result, x), atol=1e-4)


def test_a_file_that_onnxruntime_quantized(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from gossamer.nouns.model import save

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": normal(8, 3, 8, 8, seed=9)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    save(network(), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "q.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,
        extra_options={"WeightSymmetric": False},
    )
    model, x = normalise(read(tmp_path / "q.onnx")), normal(16, 3, 8, 8)
    expected = outputs(model, x)
    assert np.mean(np.square(twins(model, x) - expected)) < 1e-3 * np.mean(np.square(expected))


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(7,), (3, 5), (2, 3, 4)]),
    scale=st.floats(0.01, 0.5),
    zero=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_parts(shape: tuple[int, ...], scale: float, zero: int, seed: int) -> None:
    """One number for all: what autograd makes of the chain of rounding, clamping and scaling."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) * 20 for _ in range(2))
    found = []
    for fused in (True, False):
        a, s = x.clone().requires_grad_(), torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        z = torch.tensor(zero, dtype=torch.uint8)
        if fused:
            y = fake_quantize(a, s, z, None, low=0, high=255)
        else:
            y = dequantize_linear(quantize_linear(a, s, z, bounds=(0, 255)), s, z)
        found.append((y.detach(), *torch.autograd.grad(y, (a, s), weight)))
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30)
@given(axis=st.sampled_from([0, 1, -1]), bits=st.sampled_from(BITS), seed=st.integers(0, 99))
def test_gradients_by_channel_are_those_of_the_parts(axis: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn((4, 6), generator=generator, dtype=torch.float64) for _ in range(2))
    channels, limit = (4, 6)[axis], largest_of(bits)
    found = []
    for fused in (True, False):
        a = x.clone().requires_grad_()
        s = (torch.rand(channels, generator=torch.Generator().manual_seed(seed)) + 0.1).double().requires_grad_()
        if fused:
            y = fake_quantize(a, s, None, None, None, axis, 0, -limit, limit)
        else:
            y = dequantize_linear(quantize_linear(a, s, None, axis, 0, (-limit, limit)), s, None, axis)
        found.append((y.detach(), *torch.autograd.grad(y, (a, s), weight)))
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_bias_moves_in_steps_and_its_gradient_passes() -> None:
    bias = torch.tensor([0.1234, -0.5], requires_grad=True)
    y = fake_quantize_bias(bias, torch.tensor(0.1), None, torch.tensor([0.2, 0.5]), None)
    assert torch.allclose(y, torch.tensor([0.12, -0.5]))
    assert torch.equal(torch.autograd.grad(y.sum(), bias)[0], torch.ones(2))


@pytest.mark.parametrize(
    ("integers", "zero", "dtype", "expected"),
    [
        ([-7, 3], 0, ir.DataType.INT8, (-7, 7)),
        ([-1, 0], 0, ir.DataType.INT8, (-1, 1)),
        ([-64, 3], 0, ir.DataType.INT8, (-64, 63)),
        ([-65, 3], 0, ir.DataType.INT8, (-127, 127)),
        ([-128, 3], 0, ir.DataType.INT8, (-128, 127)),
        ([-8, 3], 0, ir.DataType.INT4, (-8, 7)),
        ([-2, 1], 0, ir.DataType.INT4, (-2, 1)),
        ([-3, 1], 0, ir.DataType.INT4, (-3, 3)),
        ([-4, 1], 0, ir.DataType.INT8, (-4, 3)),
        ([-5, 64], 0, ir.DataType.INT8, (-64, 64)),
        ([0, 255], 128, ir.DataType.UINT8, (0, 255)),
        ([1, 255], 128, ir.DataType.UINT8, (1, 255)),
    ],
)
def test_the_grid_is_the_narrowest_that_holds_the_integers(
    integers: list[int], zero: int, dtype: ir.DataType, expected: tuple[int, int]
) -> None:
    assert bounds_of(np.array(integers), np.array(zero), dtype) == expected


def test_scope_leaves_layers_in_float_that_train_too() -> None:
    evidence = Evidence(samples_from_arrays({"x": normal(32, 3, 8, 8)}))
    model = network()
    names = [node.name or "" for node in model.ir.graph if node.op_type == "Gemm"]
    result = run(Step("quantize_static", {}, Scope(skip=tuple(names))), model, evidence).model
    graph = twin(result)
    module = lower(graph)
    shaken(module, 0.2)
    settled = settle(write_back(module, graph), result)
    x = normal(16, 3, 8, 8)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert np.mean(np.square(outputs(settled, x) - expected)) <= 1e-3 * np.mean(np.square(expected))


def test_what_stays_in_float_moves_by_as_small_a_share_of_itself(tmp_path: Path) -> None:
    """Adam's first step is the rate itself: a hundredth of the half of a float weight's mean size."""
    pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
    from gossamer.training.in_form import Course, train_in_form
    from gossamer.training.lessons import Lessons
    from gossamer.training.losses.outputs import Outputs
    from gossamer.training.options import Options
    from gossamer.training.pupil import WeightedLoss
    from gossamer.training.teacher import from_model
    from gossamer.training.watching import Watch

    model, samples = network(), samples_from_arrays({"x": normal(32, 3, 8, 8)})
    head = tuple(node.name or "" for node in model.ir.graph if node.op_type == "Gemm")
    mixed = run(Step("quantize_static", {"weight_bits": 4}, Scope(skip=head)), model, Evidence(samples)).model
    lessons = Lessons(samples, from_model(model, ["y"]))
    course = Course((WeightedLoss(Outputs()),), (), lessons, lessons, None, Watch())
    options = Options(epochs=1, batch=32, rate=0.01, schedule="constant", warm_up=0.0, decay=0.0, device="cpu")
    trained = train_in_form(mixed, course, options)
    before, after = (np.asarray(constant(part.ir.graph.initializers["u"])) for part in (mixed, trained.model))
    assert trained.trained.epochs[1].rate == pytest.approx(0.01)
    moved = np.abs(after - before).max()
    assert trained.trained.best_epoch == 0 or moved == pytest.approx(0.01 * 0.5 * np.abs(before).mean(), rel=0.05)


WIDE = """g (float[N,64] x) => (float[N,8] y) {
    a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"""


@pytest.mark.parametrize(
    ("constraint", "form"),
    [
        ("grid:3", "cast"),
        ("grid:5", "cast"),
        ("grid:4", "cast"),
        ("grid:8", "cast"),
        ("grid:16", "cast"),
        ("grid:3:tensor", "cast"),
        ("grid:3:asymmetric", "cast"),
        ("grid:4:group=16", "cast"),
        ("grid:3:group=16", "cast"),
        ("grid:4:asymmetric", "dequantize"),
        ("grid:4:group=16", "dequantize"),
        ("grid:8:tensor", "dequantize"),
    ],
)
def test_weights_alone_on_any_grid(constraint: str, form: str) -> None:
    """Integers of a type of their own or in bit planes, symmetric or not, by channel, tensor or group.

    onnxruntime's optimizer multiplies weights behind DequantizeLinear with activations that it rounds to 8 bits.
    """
    weights = {"w": normal(64, 128), "b": normal(128), "v": normal(128, 8), "c": normal(8)}
    config = {"constraint": constraint, "solver": "nearest", "form": form}
    model = run(Step("constrain_weights", config), parse(WIDE, **weights), None).model
    graph, x = twin(model), normal(16, 64)
    assert sum(node.op_type == "FakeQuantize" for node in graph.ir.graph) == 2
    module = lower(graph)
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(x)).numpy(), outputs(model, x, form == "cast"), rtol=1e-3, atol=1e-3)
    assert to_bytes(settle(write_back(module, graph), model)) == to_bytes(model)
    shaken(module, 0.5)
    result = settle(write_back(module, graph), model)
    assert to_bytes(result) != to_bytes(model)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert np.allclose(expected, outputs(result, x, form == "cast"), rtol=1e-3, atol=1e-3)
