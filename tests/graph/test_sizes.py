from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.graph.sizes import ONE, Size, Sizes

SIZES = st.builds(
    Size, st.integers(1, 50), st.lists(st.sampled_from("abc"), max_size=3).map(lambda x: tuple(sorted(x)))
)


@given(a=SIZES, b=SIZES, c=SIZES)
def test_products_and_quotients_undo_each_other(a: Size, b: Size, c: Size) -> None:
    assert a.times(b) == b.times(a) and a.times(ONE) == a
    assert a.times(b).over(b) == a
    quotient = a.over(c)
    assert quotient is None or quotient.times(c) == a


def sizes_of(body: str, **constants: list[int] | np.ndarray) -> tuple[Sizes, dict[str, ir.Value]]:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N, L, 12] x, float[M, L] z) => (float[] y) {{ {body} }}'
    )
    for name, value in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    graph = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)).graph
    values = {output.name or "": output for node in graph for output in node.outputs}
    return Sizes(graph), values | {value.name or "": value for value in graph.inputs}


N, L = Size(1, ("N",)), Size(1, ("L",))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("n = Shape<start=0, end=2>(x) t = Concat<axis=0>(n, four, rest) y = Reshape(x, t)", (N, L, Size(4), Size(3))),
        ("s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, rest) y = Reshape(x, t)", (N, Size(12, ("L",)))),
        ("y = Reshape(x, rows)", (N.times(L), Size(12))),
        ("f = Reshape(x, rows) s = Shape(x) y = Reshape(f, s)", (N, L, Size(12))),
        ("y = Reshape(x, kept)", (N, L, Size(4), Size(3))),
        ("t = Transpose<perm=[1,0,2]>(x) y = Relu(t)", (L, N, Size(12))),
        (
            "s = Shape(x) h = Gather(s, two) q = Div(h, four) t = Concat<axis=0>(q, rest) y = Reshape(z, t)",
            (Size(3), None),
        ),
        ("s = Shape(x) e = Equal(s, rest) y = Where(e, s, s)", (Size(3),)),
        ("u = Unsqueeze(z, two) c = Cast<to=1>(u) s = Squeeze(c, two) y = Neg(s)", (Size(1, ("M",)), L)),
        ("o = Shape<start=0, end=1>(x) t = Concat<axis=0>(o, one, one) y = Expand(x, t)", (N, L, Size(12))),
        ("m = Shape(one) e = ConstantOfShape(m) t = Concat<axis=0>(e, four) y = Reshape(x, t)", (None, Size(4))),
        ("a = Add(x, x) y = MatMul(a, w)", (N, L, Size(5))),
        ("y = Slice(x, zero, four, one)", (N, None, Size(12))),
    ],
)
def test_sizes_are_followed(body: str, wanted: tuple[Size | None, ...]) -> None:
    constants: dict[str, list[int] | np.ndarray] = {
        "zero": [0],
        "one": [1],
        "two": [2],
        "four": [4],
        "rest": [-1],
        "rows": [-1, 12],
        "kept": [0, 0, 4, -1],
    }
    constants |= {"w": np.zeros((12, 5), np.float32)}
    used = {name: value for name, value in constants.items() if name in re.findall(r"\w+", body)}
    found, values = sizes_of(body, **used)
    got = found.of(values["y"])
    assert len(got) == len(wanted)
    assert all(size is None or size == other for size, other in zip(wanted, got, strict=True))


def test_two_names_are_one_where_a_reshape_says_so() -> None:
    """The sum of a fed length and one cut from a table is the fed one, or the Reshape would fail."""
    found, values = sizes_of(
        "s = Shape<start=0, end=2>(x) e = Shape<start=1, end=2>(x) p = Slice(table, zero, e, zero) a = Add(x, p) "
        "t = Concat<axis=0>(s, four, three) y = Reshape(a, t)",
        table=np.zeros((9, 12), np.float32),
        zero=[0],
        four=[4],
        three=[3],
    )
    assert found.of(values["a"]) == (N, L, Size(12))
    assert found.of(values["p"])[0] != L  # it may be 1


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("s = Shape(x) g = Gather(s, two) c = Cast<to=1>(g) y = Sqrt(c)", 12**0.5),
        ("s = Shape(x) g = Gather(s, two) c = Cast<to=1>(g) y = Pow(c, half)", 12**0.5),
        ("s = Shape(x) g = Gather(s, two) c = Cast<to=1>(g) q = Sqrt(c) y = Div(one, q)", 12**-0.5),
        ("s = Shape(x) g = Gather(s, two) y = Sub(g, two)", 10),
        ("s = Shape(x) g = Gather(s, zero) y = Mul(g, two)", None),
        ("c = Cast<to=1>(two) y = Div(c, nothing)", None),
    ],
)
def test_numbers_that_never_change(body: str, wanted: float | None) -> None:
    constants: dict[str, list[int] | np.ndarray] = {"two": [2], "zero": [0]}
    constants |= {name: np.array([x], np.float32) for name, x in {"half": 0.5, "one": 1, "nothing": 0}.items()}
    words = re.findall(r"\w+", body)
    found, values = sizes_of(body, **{name: value for name, value in constants.items() if name in words})
    assert found.number(values["y"]) == (None if wanted is None else pytest.approx(wanted))
