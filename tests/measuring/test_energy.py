"""Energy: counters on a made-up machine whose meter only the models move, and estimates worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ModelError
from gossamer.measuring import energy as module
from gossamer.measuring.energy import Zone, elapsed_uj, energy, estimate_mj, race_energy, readable_zones
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run
from gossamer.runtimes.contract import Session

CACHE, DRAM = 12.5, 162.5  # pJ a byte
MAC = {"int8": 0.3, "float16": 1.5, "float32": 4.6}  # pJ


def parse(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), "test")


def product(rows: str = "N") -> Model:
    return parse(
        f"g (float[{rows},16] x) => (float[{rows},8] y) {{ y = MatMul(x, w) }}", w=np.ones((16, 8), np.float32)
    )


def feeds(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.ones(shape, np.float32)}


class Machine:
    """A folder of counters, and a clock; both move only when a model runs."""

    def __init__(self, root: Path, start_uj: int = 0, range_uj: int = 10_000_000) -> None:
        self.root, self.now_s, self.range_uj, self.calls = root, 0.0, range_uj, ""
        self.zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
        self.zones |= {"intel-rapl:1": "psys", "intel-rapl-mmio:0": "package-0"}
        for folder, name in self.zones.items():
            (root / folder).mkdir()
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
            (root / folder / "energy_uj").write_text(f"{start_uj}\n")

    def spend(self, name: str, uj: int, seconds: float) -> None:
        self.calls += name
        self.now_s += seconds
        for folder in self.zones:
            counter = self.root / folder / "energy_uj"
            counter.write_text(f"{(int(counter.read_text()) + uj) % self.range_uj}\n")

    def session(self, name: str, uj: int, seconds: float) -> Session:
        class Handle:
            def run(handle, names: None, feeds: object) -> list[np.ndarray]:
                self.spend(name, uj, seconds)
                return []

        return Session(Handle().run, {}, {}, 1, "none")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(module, "POWERCAP", tmp_path)
    monkeypatch.setattr(module, "perf_counter", lambda: machine.now_s)
    return machine


def opened(machine: Machine, monkeypatch: pytest.MonkeyPatch, original_uj: int, result_uj: int) -> None:
    sessions = iter([machine.session("a", original_uj, 0.07), machine.session("b", result_uj, 0.11)])
    monkeypatch.setattr(module.onnxruntime, "open_session", lambda model, threads: next(sessions))


def test_measured_where_there_are_counters(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(machine, monkeypatch, 3000, 1000)
    found = energy(product(), product(), feeds(1, 16))
    assert found.method == "rapl"
    # the package and its memory count; what is inside the package, around it, or the same again does not
    assert (found.original_mj, found.result_mj, found.ratio) == pytest.approx((6, 2, 3))
    assert found.source == "RAPL counters package-0, dram, idle power included"


def test_turns_alternate_and_are_long_enough(machine: Machine) -> None:
    zones = readable_zones(machine.root)
    sessions = {"a": machine.session("a", 3, 0.07), "b": machine.session("b", 5, 0.11), "c": machine.session("c", 1, 9)}
    spent = race_energy(sessions, {}, zones, rounds=2)
    a, b = "a" * 3, "b" * 2
    assert machine.calls == "abc" + (a + b + "c") + ("c" + b + a)
    assert spent == {"a": pytest.approx([0.006] * 2), "b": pytest.approx([0.01] * 2), "c": pytest.approx([0.002] * 2)}


def test_counters_that_start_again_from_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, start_uj=99_000, range_uj=100_000)
    monkeypatch.setattr(module, "perf_counter", lambda: machine.now_s)
    spent = race_energy({"a": machine.session("a", 700, 0.1)}, {}, readable_zones(tmp_path), rounds=3)
    assert spent["a"] == pytest.approx([1.4] * 3)
    assert int((tmp_path / "intel-rapl:0" / "energy_uj").read_text()) < 99_000


@given(st.integers(1, 10**12), st.data())
def test_elapsed(range_uj: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(0, range_uj - 1))
    spent = data.draw(st.integers(0, range_uj - 1))
    assert elapsed_uj(Zone(Path(), "package-0", range_uj), before, (before + spent) % range_uj) == spent


def test_no_counters_without_permission_or_package(machine: Machine) -> None:
    assert [zone.name for zone in readable_zones(machine.root)] == ["package-0", "dram"]
    counter = machine.root / "intel-rapl:0" / "energy_uj"
    counter.unlink()
    counter.mkdir()  # reading it fails, for root as well
    assert readable_zones(machine.root) == ()
    assert readable_zones(machine.root / "nothing") == ()


def test_a_counter_that_stands_still_is_not_believed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(machine, monkeypatch, 0, 0)
    assert energy(product(), product(), feeds(1, 16)).method == "estimate"


@pytest.fixture
def no_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POWERCAP", tmp_path / "nothing")


@pytest.mark.usefixtures("no_counters")
def test_estimate_is_labelled_and_compares() -> None:
    found = energy(product(), product(), feeds(3, 16))
    assert (found.method, found.ratio) == ("estimate", 1.0)
    assert found.source.startswith("estimate: ") and "Horowitz, ISSCC 2014, 45 nm" in found.source
    better = energy(product(), quantized(), feeds(3, 16))
    assert better.original_mj == found.original_mj
    assert better.ratio == pytest.approx(better.original_mj / better.result_mj) and 1.5 < better.ratio < 15


@given(st.integers(1, 50), st.sampled_from(["N", "ROWS", "?"]))
def test_float_product_by_hand(n: int, rows: str) -> None:
    pj = n * 16 * 8 * MAC["float32"] + DRAM * 4 * 16 * 8 + CACHE * 4 * (n * 16 + n * 8)
    assert estimate_mj(product(rows), feeds(n, 16)) == pytest.approx(pj / 1e9)


def test_weights_and_what_exceeds_the_cache_come_from_memory() -> None:
    w = np.ones((512, 513), np.float32)  # just over 1 MiB
    model = parse("g (float[N,512] x) => (float[N,513] y) { y = MatMul(x, w) }", w=w)
    pj = 512 * 513 * MAC["float32"] + DRAM * w.nbytes + CACHE * 4 * (512 + 513)
    assert estimate_mj(model, feeds(1, 512)) == pytest.approx(pj / 1e9)
    pj = 512 * 512 * 513 * MAC["float32"] + DRAM * w.nbytes + CACHE * 4 * 512 * 512 + DRAM * 4 * 512 * 513
    assert estimate_mj(model, feeds(512, 512)) == pytest.approx(pj / 1e9)


def quantized() -> Model:
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    config = {"operators": ["MatMul"]}
    return run(Step("quantize_static", config), product(), Evidence(samples_from_arrays({"x": x}))).model


def test_quantized_product_by_hand() -> None:
    weights = 16 * 8 + 8 * 4 + 8  # integers, scales, zero points
    pair = 2 * (4 + 1)  # the scale and zero point of the input, read by both halves
    activations = (16 * 4 + 16) + (16 + 8 * 4)  # quantized, multiplied
    pj = 16 * 8 * MAC["int8"] + DRAM * (weights + pair) + CACHE * activations
    assert estimate_mj(quantized(), feeds(1, 16)) == pytest.approx(pj / 1e9)


INTEGERS = """g (float[4,16] x) => (float[4,8] y) <float s = {0.1}, uint8 z = {0}, int8 zw = {0}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear(w, s, zw)
    NODE
}"""


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ("y = MatMul(d, wd)", "int8"),
        ("y = Gemm(d, wd)", "int8"),
        ("y = MatMul(x, wd)", "float32"),  # only the weight is stored small
        ("i = MatMulInteger(q, w)  y = Cast<to=1>(i)", "int8"),
        ("h = Cast<to=10>(x)  v = Cast<to=10>(wd)  o = MatMul(h, v)  y = Cast<to=1>(o)", "float16"),
        ("h = Cast<to=11>(x)  v = Cast<to=11>(wd)  o = MatMul(h, v)  y = Cast<to=1>(o)", "float32"),
    ],
)
def test_type_of_multiply_accumulates(node: str, kind: str) -> None:
    model = parse(INTEGERS.replace("NODE", node), w=np.ones((16, 8), np.int8))
    shapes = module.static_shapes(model)
    layer = next(n for n in model.ir.graph if n.op_type in ("MatMul", "Gemm", "MatMulInteger"))
    assert module.mac_type(layer, shapes) == kind


def test_sixteen_bit_activations_are_no_int8() -> None:
    text = INTEGERS.replace("uint8 z", "uint16 z").replace("NODE", "y = MatMul(d, wd)")
    model = parse(text, w=np.ones((16, 8), np.int8))
    assert module.mac_type(model.ir.graph[-1], module.static_shapes(model)) == "float32"


def moved(model: Model) -> dict[str, list[int]]:
    shapes = module.static_shapes(model)
    return {node.op_type: module._moved_bytes(model, node, shapes) for node in model.ir.graph}


def test_fused_quantizers_and_views_move_nothing() -> None:
    model = parse(
        """g (float[4,16] x) => (float[64] y) <float s = {0.1}, uint8 z = {0}, int64[1] flat = {-1}> {
            a = Relu(x)
            q = QuantizeLinear(a, s, z)
            d = DequantizeLinear(q, s, z)
            b = Neg(d)
            y = Reshape(b, flat)
        }"""
    )
    nothing: dict[str, list[int]] = {op: [] for op in ("QuantizeLinear", "DequantizeLinear", "Reshape")}
    assert moved(model) == {"Relu": [256, 64], "Neg": [64, 256], **nothing}


def test_a_layer_takes_what_ends_it_along() -> None:
    nodes = "a = MatMul(x, w)  b = Add(a, bias)  c = Relu(b)"
    text = f"g (float[4,16] x) => (float[4,8] y) <float s = {{0.1}}, uint8 z = {{0}}> {{ {nodes}  y = Neg(c) }}"
    weights = {"w": np.ones((16, 8), np.float32), "bias": np.ones(8, np.float32)}
    floats = moved(parse(text, **weights))
    assert floats == {"MatMul": [256, 128], "Add": [], "Relu": [], "Neg": [128, 128]}
    pair = "q = QuantizeLinear(c, s, z)  d = DequantizeLinear(q, s, z)"
    assert moved(parse(text.replace("y = Neg(c)", f"{pair}  y = Neg(d)"), **weights))["MatMul"] == [256, 32]
    seen = moved(parse(text.replace("y = Neg(c)", "n = Neg(a)  y = Mul(n, c)"), **weights))  # a is read elsewhere
    assert seen == {"MatMul": [256, 128], "Add": [128, 128], "Relu": [128, 128], "Neg": [128, 128], "Mul": [128] * 3}


def test_a_quantizer_beside_other_readers_moves_both() -> None:
    model = parse(
        """g (float[4,16] x) => (float[4,16] y, float[4,16] a) <float s = {0.1}, uint8 z = {0}> {
            a = Relu(x)
            q = QuantizeLinear(a, s, z)
            y = DequantizeLinear(q, s, z)
        }"""
    )
    assert moved(model) == {"Relu": [256, 256], "QuantizeLinear": [256, 64], "DequantizeLinear": [64, 256]}


@pytest.mark.parametrize("length", [1_000, 200_000])
@pytest.mark.parametrize("stored", [np.float32, np.int8])
def test_of_a_table_only_the_rows_looked_up_are_read(stored: type, length: int) -> None:
    table = np.ones((length, 8), stored)
    nodes = "y = Gather(t, x)" if stored is np.float32 else "d = DequantizeLinear(t, s, z)  y = Gather(d, x)"
    model = parse(f"g (int64[N,3] x) => (float[N,3,8] y) <float s = {{1}}, int8 z = {{0}}> {{ {nodes} }}", t=table)
    pj = DRAM * 48 * table.itemsize + CACHE * (6 * 8 + 48 * 4)
    assert estimate_mj(model, {"x": np.ones((2, 3), np.int64)}) == pytest.approx(pj / 1e9)


@pytest.mark.usefixtures("no_counters")
def test_what_cannot_be_known_is_refused() -> None:
    text = """g (bool c, float[2, 2] x) => (float[2, 2] y) {
        y = If(c) <then_branch = t () => (float[2, 2] a) { a = MatMul(x, x) },
                   else_branch = e () => (float[2, 2] b) { b = Relu(x) }>
    }"""
    model = parse(text)
    with pytest.raises(ModelError, match=r"the energy of If .* cannot be estimated, as its multiply-accumulates are"):
        energy(model, model, {"c": np.array(True), **feeds(2, 2)})
    loose = parse("g (float[N,4] x, float[M,4] v) => (float[K,4] y) { y = Concat<axis=0>(x, v) }")
    with pytest.raises(ModelError, match=r"the shape of tensor 'v' is unknown; .*give the model fixed shapes"):
        loose.ir.graph.inputs[1].shape = None
        energy(loose, loose, feeds(2, 4))
