from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.intake.normalise import normalise
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Scope, Step
from gossamer.passes.contract import Result, run
from gossamer.passes.fuse_attention import ONLY_EXTENDED, OPSET
from gossamer.runtimes.onnxruntime import open_session

LOWEST = np.finfo(np.float32).min
PARTS = "q4 = Reshape(x, hd) k4 = Reshape(z, hd) v4 = Reshape(w, he) q = Transpose<perm=[0,2,1,3]>(q4) "
KEYS = {
    "at once": "kt = Transpose<perm=[0,2,3,1]>(k4)",
    "in two steps": "k = Transpose<perm=[0,2,1,3]>(k4) kt = Transpose<perm=[0,1,3,2]>(k)",
    "in rank 3": "k = Transpose<perm=[0,2,1,3]>(k4) kr = Reshape(k, flat) ku = Transpose<perm=[0,2,1]>(kr) "
    "kt = Reshape(ku, bhdt)",
}
SCALES = {
    "none": "s = MatMul(q, kt)",
    "divided": "s0 = MatMul(q, kt) s = Div(s0, two)",
    "multiplied": "s0 = MatMul(q, kt) s = Mul(two, s0)",
    "on q": "qs = Mul(q, two) s = MatMul(qs, kt)",
    "on both": "qs = Mul(q, third) ks = Div(kt, two) s = MatMul(qs, ks)",
    "thrice": "qs = Div(q, two) ks = Mul(kt, third) s0 = MatMul(qs, ks) s = Mul(s0, two)",
}
SUMS = {"behind": "t = Add(s, mask)", "in front": "t = Add(mask, s)"}
END = "p = Softmax<axis=-1>({scores}) o = MatMul(p, v) b = Transpose<perm=[0,2,1,3]>(o) y = Reshape(b, whole)"
MASKS = ("B11T", "B1ST", "BHST", "11ST", "1HST", "11S1", "ST", "1T", "T", "")


def text(keys: str = "at once", scale: str = "divided", masked: str = "behind", end: str = END) -> str:
    values = "v = Transpose<perm=[0,2,1,3]>(v4) "
    tail = end.format(scores="t" if masked else "s")
    return " ".join([PARTS, values, KEYS[keys], SCALES[scale], SUMS.get(masked, ""), tail])


def build(body: str, feeds: dict[str, np.ndarray], batch: str = "", opset: int = 21, **constants: Any) -> Model:
    """A graph of the feeds that its text reads; the first axis of three-dimensional feeds may be free."""
    (b, _, qw), t, e = feeds["x"].shape, feeds["z"].shape[1], feeds["w"].shape[2]
    h = int(constants.pop("heads", 2))
    lengths = {"hd": [0, 0, h, qw // h], "he": [0, 0, h, e // h], "whole": [0, 0, e]}
    lengths |= {"flat": [-1, t, qw // h], "bhdt": [b, h, qw // h, t]}
    values = {name: np.array(x, np.int64) for name, x in lengths.items()}
    values |= {"two": np.float32(2), "third": np.array([0.3], np.float32), **constants}
    words = re.findall(r"\w+", body)
    sides = []
    for name in [name for name in feeds if name in words]:
        axes = [str(size) for size in feeds[name].shape]
        axes[:1] = [batch] if batch and len(axes) == 3 else axes[:1]
        sides.append(f"float[{','.join(axes)}] {name}" if axes else f"float {name}")  # float[] is of any rank
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g ({", ".join(sides)}) => (float[] y) {{ {body} }}'
    )
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for name, value in values.items():
        if name in words:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True)), "test")


def arrays(sizes: dict[str, int], mask: str | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    b, h = sizes["B"], sizes["H"]
    shapes: dict[str, tuple[int, ...]] = {"x": (b, sizes["S"], h * sizes["D"]), "z": (b, sizes["T"], h * sizes["D"])}
    shapes["w"] = (b, sizes["T"], h * sizes["E"])
    if mask is not None:
        shapes["mask"] = tuple(1 if axis == "1" else sizes[axis] for axis in mask)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


def fuse(before: Model, skip: tuple[str, ...] = ()) -> Result:
    return run(Step("fuse_attention", scope=Scope(skip=skip)), before)


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    names = [value.name for value in model.ir.graph.inputs]
    return open_session(model).run({name: feeds[name] for name in names if name})[0]


def check_same(before: Model, after: Model, feeds: dict[str, np.ndarray]) -> None:
    onnx.checker.check_model(onnx.load_from_string(to_bytes(after)), full_check=True)
    wanted, got = outputs(before, feeds), outputs(after, feeds)
    assert wanted.shape == got.shape and wanted.dtype == got.dtype
    assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()


SIZES = dict(zip("BHSTDE", (2, 2, 3, 5, 4, 6), strict=True))


@settings(max_examples=100)
@given(
    sizes=st.fixed_dictionaries({axis: st.integers(1, 4) for axis in "BHSTDE"}),
    keys=st.sampled_from(list(KEYS)),
    scale=st.sampled_from(list(SCALES)),
    masked=st.sampled_from(["", *SUMS]),
    mask=st.sampled_from(MASKS),
    stored=st.booleans(),
    free=st.booleans(),
)
def test_every_form_becomes_one_node(
    sizes: dict[str, int], keys: str, scale: str, masked: str, mask: str, stored: bool, free: bool
) -> None:
    feeds = arrays(sizes, mask)
    constants: dict[str, Any] = {"mask": feeds.pop("mask")} if stored else {}
    free = free and keys != "in rank 3" and not (mask[:1] == "B" and masked)  # their batch is written in the graph
    before = build(text(keys, scale, masked), feeds, "N" if free else "", heads=sizes["H"], **constants)
    result = fuse(before)
    assert operators(result.model)["Attention"] == 1
    assert not {"Softmax", "MatMul", "Transpose", "Add"} & set(operators(result.model))
    check_same(before, result.model, feeds)


@pytest.mark.parametrize("stored", [True, False])
def test_rows_wholly_masked_keep_equal_shares(stored: bool) -> None:
    """The kernel itself gives zeros where every score is the lowest float32."""
    feeds = arrays(SIZES, "B1ST")
    feeds["mask"][:] = 0
    feeds["mask"][..., 3:] = -np.inf
    feeds["mask"][0, 0, 1] = LOWEST
    feeds["mask"][1, 0, :2, 1:] = LOWEST
    constants: dict[str, Any] = {"mask": feeds.pop("mask")} if stored else {}
    before = build(text(), feeds, **constants)
    check_same(before, fuse(before).model, feeds)


def two_layers() -> str:
    """The second layer reads the first one's output as its queries."""
    first = text()
    own = "|".join(re.findall(r"(\w+) = ", first))
    second = re.sub(r"\bx\b", "y", re.sub(rf"\b({own})\b", r"\1_", first))
    return re.sub(r"\by\b", "middle", f"{first} {second}").replace("y_", "y")


@pytest.mark.parametrize("free", [False, True])
def test_layers_share_the_expanded_mask(free: bool) -> None:
    sizes = {**SIZES, "T": 3, "E": 4}
    feeds = arrays(sizes, "B11T")
    before = build(two_layers(), feeds)
    before = with_free_length(before) if free else before
    result = fuse(before)
    found = operators(result.model)
    assert (found["Attention"], found["Expand"], found["Where"]) == (2, 1, 1)
    check_same(before, result.model, feeds)
    if free:
        check_same(before, result.model, arrays({**sizes, "S": 7, "T": 7, "B": 3}, "B11T"))


def with_free_length(model: Model) -> Model:
    proto = onnx.load_from_string(to_bytes(model))
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "N"
        dims[1 if len(dims) == 3 else 3].dim_param = "L"
    return Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True)), "free")


CHANGES = {
    "softmax over another axis": ("axis=-1", "axis=2"),
    "negative scale": ("two", "negative"),
    "scale a head": ("two", "each"),
    "scaled values": ("o = MatMul(p, v)", "u = Mul(v, two) o = MatMul(p, u)"),
    "divided the other way": ("Div(s0, two)", "Div(two, s0)"),
    "probabilities read twice": ("y = Reshape(b, whole)", "y0 = Reshape(b, whole) m = ReduceMax(p) y = Add(y0, m)"),
    "scores read twice": ("y = Reshape(b, whole)", "y0 = Reshape(b, whole) m = ReduceMax(s) y = Add(y0, m)"),
    "mask wider than the scores": ("mask", "wide"),
    "masked by choice": ("t = Add(s, mask)", "t = Where(chosen, s, mask)"),
    "another operator between": ("t = Add(s, mask)", "a = Add(s, mask) t = Tanh(a)"),
    "parted another way": ("Reshape(z, hd)", "Reshape(z, mixed)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_forms_are_left_alone(change: str) -> None:
    constants: dict[str, Any] = {
        "negative": np.float32(-2),
        "each": np.full((2, 1, 1), 2, np.float32),
        "mixed": [4, 2, 2, 4],
    }
    constants |= {"wide": np.zeros((2, 2, 4, 4, 4), np.float32), "chosen": np.array(True), "rows": [-1, 4]}
    feeds = arrays(dict.fromkeys("BHSTDE", 4) | {"B": 2, "H": 2}, "B11T")
    assert fuse(build(text(), feeds)).modified
    before = build(text().replace(*CHANGES[change]), feeds, **constants)
    result = fuse(before)
    assert not result.modified and result.model is before and result.notes == ()


def test_a_mask_of_unequal_rank_and_size_is_refused() -> None:
    """One row of queries and a mask of three: the sum is wider than the product."""
    feeds = arrays({**SIZES, "S": 1}, "11T") | {"mask": np.zeros((3, 5), np.float32)}
    assert not fuse(build(text(end=END.replace("whole", "free")), feeds, free=[2, -1, 12])).modified


HEADS_APART = {
    "turned back another way": ("b = Transpose<perm=[0,2,1,3]>", "b = Transpose<perm=[0,2,3,1]>"),
    "values turned another way": ("v = Transpose<perm=[0,2,1,3]>", "v = Transpose<perm=[0,2,3,1]>"),
    "keys not turned": ("kt = Transpose<perm=[0,2,3,1]>", "kt = Transpose<perm=[0,2,1,3]>"),
    "merged another way": ("Reshape(b, whole)", "Reshape(b, rows)"),
}
ROWS: dict[str, Any] = {"rows": np.array([-1, 4])}


@pytest.mark.parametrize("change", HEADS_APART)
def test_other_ways_to_part_and_join_keep_the_heads_apart(change: str) -> None:
    feeds = arrays(dict.fromkeys("BHSTDE", 4) | {"B": 2, "H": 2}, "B11T")
    before = build(text().replace(*HEADS_APART[change]), feeds, **ROWS)
    check_apart(before, feeds)


@pytest.mark.parametrize(
    ("keys", "constants"),
    [
        ("at once", {"hd": [4, 2, 2, 4], "he": [4, 2, 2, 4], "whole": [2, 4, 8]}),  # half a sample each
        ("in rank 3", {"flat": [4, 8, 2]}),
    ],
)
def test_axes_that_only_look_alike_keep_the_heads_apart(keys: str, constants: dict[str, Any]) -> None:
    feeds = arrays(dict.fromkeys("BHSTDE", 4) | {"B": 2, "H": 2}, "1111")
    mask = feeds.pop("mask")
    integers: dict[str, Any] = {name: np.array(value, np.int64) for name, value in constants.items()}
    assert attention_of(fuse(build(text(keys), feeds, mask=mask))).attributes.get_int("q_num_heads", 0) == 2
    check_apart(build(text(keys), feeds, mask=mask, **integers), feeds)


def attention_of(result: Result) -> ir.Node:
    return next(node for node in result.model.ir.graph if node.op_type == "Attention")


def check_apart(before: Model, feeds: dict[str, np.ndarray]) -> None:
    result = fuse(before)
    assert "q_num_heads" not in attention_of(result).attributes
    assert not {"Softmax", "MatMul", "Add"} & set(operators(result.model))
    check_same(before, result.model, feeds)


EXPORTED = """
b0 = Shape<start=0, end=1>(m) t0 = Shape<start=1, end=2>(m) c = Cast<to=1>(m) u = Unsqueeze(c, inner)
i = Sub(one, u) mask = Mul(i, lowest) to = Concat<axis=0>(b0, t0, h, d) back = Concat<axis=0>(b0, t0, hd)
place = Slice(table, zero, t0, zero) x = Add(ids, place)
"""
LAYER = """
q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) q4 = Reshape(q0, to) k4 = Reshape(k0, to)
v4 = Reshape(v0, to) q = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4)
v = Transpose<perm=[0,2,1,3]>(v4) s0 = MatMul(q, kt) s = Div(s0, root) a = Add(s, mask) p = Softmax<axis=-1>(a)
o = MatMul(p, v) o4 = Transpose<perm=[0,2,1,3]>(o) merged = Reshape(o4, back) y = Add(merged, x)
"""
ROOT = "root = Constant<value_float=2.8>()"
ROOT_OF_SHAPE = "all = Shape(q4) ends = Gather(all, three) wide = Cast<to=1>(ends) root = Sqrt(wide)"  # TorchScript
SHAPE_OF_RESULT = "all = Shape(o4) n0 = Gather(all, zero) n1 = Gather(all, two1) back = Concat<axis=0>(n0, n1, hd)"
GUARDED = "e = Softmax<axis=-1>(a) n = IsNaN(e) p = Where(n, nothing, e)"
CAUSAL = "g0 = Shape<start=1, end=2>(m) g1 = Concat<axis=0>(g0, g0) g = Slice(tri, zeros, g1, axes) "
EXPORTS: dict[str, tuple[tuple[str, str], ...]] = {
    "torch": (),
    "root of a shape": ((ROOT, ""), ("s = Div", f"{ROOT_OF_SHAPE} s = Div")),
    "shape of the result": (
        ("merged =", SHAPE_OF_RESULT.replace("back", "own") + " merged ="),
        ("(o4, back)", "(o4, own)"),
    ),
    "guarded against NaN": (("p = Softmax<axis=-1>(a)", GUARDED),),
    "idle casts": (
        ("a = Add(s, mask)", "sc = Cast<to=1>(s) a = Add(sc, mask)"),
        ("MatMul(p, v)", "MatMul(pc, v)"),
        ("o = ", "pc = Cast<to=1>(p) o = "),
    ),
    "causal, then padded": (("a = Add(s, mask)", CAUSAL + "f = Where(g, s, lowest) a = Add(f, mask)"),),
    "padded, then causal": (("a = Add(s, mask)", CAUSAL + "f = Add(s, mask) ng = Not(g) a = Where(ng, lowest, f)"),),
}


def exported(changes: tuple[tuple[str, str], ...], layers: int = 2) -> Model:
    """Layers as exporters write them: shapes are computed at run time, batch and length free, places added."""
    layer = f"{ROOT} {LAYER}"
    for old, new in changes:
        layer = layer.replace(old, new)
    own = "|".join(set(re.findall(r"(\w+) = ", layer)))
    body, last = EXPORTED, "x"
    for index in range(layers):
        body += re.sub(rf"\b({own})\b", rf"\1_{index}", re.sub(r"\bx\b", last, layer))
        last = f"y_{index}"
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("wq", "wk", "wv", "table")}
    values |= {name: np.float32(x) for name, x in {"one": 1, "lowest": LOWEST, "nothing": 0}.items()}
    numbers = {"inner": [1, 2], "h": [2], "d": [4], "hd": [8], "zero": [0], "two1": [1], "three": [3]}
    numbers |= {"zeros": [0, 0], "axes": [2, 3]}
    values |= {name: np.array(x, np.int64) for name, x in numbers.items()}
    values["tri"] = np.tril(np.ones((1, 1, 8, 8), bool))
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N, L, 8] ids, int64[N, L] m) => (float[] {last}) '
        f"{{ {body} }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    words = set(re.findall(r"\w+", body))
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(x), k) for k, x in values.items() if k in words
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    source = Model(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True)), "test")
    return normalise(source)


@pytest.mark.parametrize("changes", EXPORTS)
def test_exports_with_shapes_computed_at_run_time(changes: str) -> None:
    before = exported(EXPORTS[changes])
    result = fuse(before)
    found = operators(result.model)
    assert found["Attention"] == 2 and not {"Softmax", "Transpose", "Div"} & set(found)
    assert attention_of(result).attributes.get_int("q_num_heads", 0) == 2
    assert found["Expand"] == (2 if "causal" in changes else 1)  # each layer cuts its own causal mask
    rng = np.random.default_rng(1)
    for batch, length in ((1, 1), (2, 5), (3, 8)):
        mask = np.ones((batch, length), np.int64)
        mask[-1, length // 2 :] = 0
        mask[0, 0] = 0  # with a causal mask, a row that sees nothing
        feeds: dict[str, np.ndarray] = {"ids": rng.normal(size=(batch, length, 8)).astype(np.float32), "m": mask}
        check_same(before, result.model, feeds)
        assert np.isfinite(outputs(result.model, feeds)).all()


def test_a_weak_choice_is_left_alone() -> None:
    """Where puts -10000 in the place of a score; adding it would keep what the score was."""
    causal = (
        ("a = Add(s, mask)", CAUSAL + "f = Where(g, s, weak) a = Add(f, mask)"),
        (ROOT, f"{ROOT} weak = Constant<value_float=-10000.0>()"),
    )
    assert not fuse(exported(causal)).modified


def test_a_full_mask_is_taken_as_it_is() -> None:
    feeds = arrays(SIZES, "B1ST")
    before = build(text(), feeds, mask=feeds.pop("mask"))
    result = fuse(before)
    assert not {"Expand", "Where", "Shape"} & set(operators(result.model))
    check_same(before, result.model, feeds)


def test_scope_names_the_last_reshape() -> None:
    feeds = arrays({**SIZES, "T": 3, "E": 4}, "B11T")
    before = build(two_layers(), feeds)
    after = fuse(before, skip=("middle",)).model
    assert operators(after)["Attention"] == 1 and operators(after)["Softmax"] == 1
    assert fuse(before, skip=("*",)).model is before
    check_same(before, after, feeds)


@pytest.mark.parametrize(
    ("opset", "body", "reason"),
    [
        (20, text(), "opset 20 is below 21"),
        (
            21,
            f"{text()} e = EyeLike(b4)".replace("e = EyeLike(b4)", "n = LpPool<kernel_shape=[1]>(y)"),
            "LpPool of node n",
        ),
        (22, f"{text()} n = AveragePool<kernel_shape=[1]>(y)", ""),
    ],
)
def test_the_opset_is_raised_only_if_all_operators_keep_their_meaning(opset: int, body: str, reason: str) -> None:
    feeds = arrays(SIZES, "B11T")
    result = fuse(build(body, feeds, opset=opset))
    assert result.modified is not bool(reason)
    assert reason in " ".join(result.notes)
    assert result.model.ir.graph.opset_imports[""] == (opset if reason else OPSET)


def test_a_newer_opset_stays() -> None:
    assert fuse(build(text(), arrays(SIZES, "B11T"), opset=24)).model.ir.graph.opset_imports[""] == 24


@pytest.mark.parametrize("op_type", sorted(ONLY_EXTENDED))
def test_the_listed_operators_only_gained_types(op_type: str) -> None:
    old, new = (onnx.defs.get_schema(op_type, max_inclusive_version=version) for version in (21, OPSET))
    assert old.since_version != new.since_version  # else it need not be listed
    for side in ("inputs", "outputs"):
        for a, b in zip(getattr(old, side), getattr(new, side), strict=True):
            assert (a.name, a.option, a.min_arity) == (b.name, b.option, b.min_arity)
            assert set(a.types) <= set(b.types)
    defaults = [
        {name: (a.type, a.required, str(a.default_value)) for name, a in s.attributes.items()} for s in (old, new)
    ]
    assert defaults[0].items() <= defaults[1].items()
    added = {name for name in defaults[1] if name not in defaults[0]}
    assert added <= {"precision", "output_dtype"}  # of QuantizeLinear and DequantizeLinear: 0, the scale's type decides
