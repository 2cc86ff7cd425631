"""The ONNX door: what is wrong with a file is said in one line, and nothing outside its folder is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gossamer.errors import ModelError
from gossamer.intake.onnx_file import load, read
from gossamer.nouns.model import save, size_bytes
from gossamer.runtimes.onnxruntime import open_session

W = np.arange(16, dtype=np.float32).reshape(4, 4)


def dense(weight: np.ndarray = W, opset: int = 17, body: str = "y = MatMul(x, w)") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[N,4] x) => (float[N,4] y) {{ {body} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


def external(folder: Path, location: str = "weights.bin", **entries: str) -> Path:
    """A model whose weight lies in another file."""
    proto = dense()
    tensor = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"\0" * 8 + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "8", "length": "64", **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def assert_refused(source: object, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_path_a_message_and_a_model_give_the_same(tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    from_path, from_text, from_message = load(tmp_path / "m.onnx"), load(str(tmp_path / "m.onnx")), load(dense())
    assert from_path.path == tmp_path / "m.onnx" and from_path.name == "m.onnx" and from_message.name == "net"
    given = {"x": np.ones((2, 4), np.float32)}
    for model in (from_path, from_text, from_message, load(from_path)):
        np.testing.assert_allclose(open_session(model).run(given)[0], given["x"] @ W)


def test_external_data_is_mapped_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = load("model.onnx")
    monkeypatch.chdir("/")  # a relative path is remembered whole
    tensor = model.ir.graph.initializers["w"].const_value
    assert tensor is not None and not tensor.numpy().flags.owndata and not tensor.numpy().flags.writeable
    np.testing.assert_array_equal(tensor.numpy(), W)
    assert size_bytes(path) == path.stat().st_size + 72


def test_weights_beyond_2_gb_are_read_without_memory(tmp_path: Path) -> None:
    """A sparse file stands in for the weights: 5 GB declared, no block of it on the disk."""
    rows = 1_250_000
    proto = dense(np.zeros((4, 4), np.float32))
    tensor = proto.graph.initializer[0]
    tensor.dims[:] = [1000, rows]
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.INT32  # whole numbers are not searched for NaN, so the file is never read
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "big.bin", "offset": "0", "length": str(4 * 1000 * rows)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("Cast", ["w"], ["y"], to=1))
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(4 * 1000 * rows)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert load(tmp_path / "m.onnx").weight_bytes() == 5_000_000_000


def test_missing_external_data_names_file_and_tensor(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert_refused(path, "tensor 'w' needs the external data file .*weights.bin, which is missing")


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "/etc/hostname", "..\\weights.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\0" * 72)
    assert_refused(
        external(tmp_path / "inner", location), "tensor 'w' has its data at .* refused: external data must lie"
    )


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = external(tmp_path / "inner", "link.bin")
    os.rename(tmp_path / "inner" / "weights.bin", tmp_path / "weights.bin")
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "weights.bin")
    assert_refused(path, "a link that leaves the folder, which is refused")


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    path = external(tmp_path, "link.bin")
    (tmp_path / "link.bin").symlink_to("weights.bin")
    open_session(load(path))


def test_a_hard_link_is_refused_early(tmp_path: Path) -> None:
    path = external(tmp_path)
    os.link(tmp_path / "weights.bin", tmp_path / "other.bin")
    assert_refused(path, "several hard links, which is refused: copy it")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"length": "60"}, r"shape \[4, 4\] of FLOAT, 64 bytes, and declares 60"),
        ({"offset": "16"}, "needs bytes 16 to 80 of .*weights.bin, which has 72; the file is cut short"),
        ({"offset": "-8"}, "needs bytes -8 to 56"),
        ({"offset": "much"}, "an offset or length that is no number"),
        ({"location": ""}, "names no external data file"),
    ],
)
def test_external_data_that_disagrees(tmp_path: Path, entries: dict[str, str], match: str) -> None:
    assert_refused(external(tmp_path, **entries), match)


def test_a_message_with_external_data_needs_its_path(tmp_path: Path) -> None:
    proto = onnx.load(external(tmp_path), load_external_data=False)
    assert_refused(proto, "lies in the external file 'weights.bin'; give the model's path")


def test_external_weights_survive_normalising_and_saving(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    save(model, tmp_path / "out" / "m.onnx")
    given = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(open_session(tmp_path / "out" / "m.onnx").run(given)[0], given["x"] @ W)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("absent.onnx", None, "no such file"),
        ("empty.onnx", b"", "is empty"),
        ("text.onnx", b"hello, this is not a model at all\n", "is not an ONNX (file|model)"),
        ("zeros.onnx", b"\0" * 100, "is not an ONNX file"),
        ("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        ("net.pt", b"PK\x03\x04", "a Python pickle, never loaded here; .*gossamer.load_torch"),
        ("net.pth", b"", "gossamer.load_torch"),
        ("net.pkl", b"", "a Python pickle, never loaded"),
        ("net.pt2", b"", "a torch program; .*gossamer.load_torch"),
        ("net.tflite", b"", "is not a TFLite file, or is cut short"),
        ("net.safetensors", b"", "weights without a graph"),
        ("renamed_torch.onnx", b"PK\x03\x04....", "a Python pickle, never loaded here"),
        ("renamed_pickle.onnx", b"\x80\x04\x95", "a Python pickle, never loaded here"),
        ("renamed_keras.onnx", b"\x89HDF\r\n", "a Keras model"),
        ("renamed_tflite.onnx", b"\x1c\0\0\0TFL3", "a TFLite model"),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, match)


def test_a_folder_names_the_models_in_it(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is a folder; there is no .onnx file in it")
    (tmp_path / "a.onnx").touch()
    assert_refused(tmp_path, "is a folder; give the file in it: a.onnx")


def test_other_objects_are_refused() -> None:
    class Module:
        def state_dict(self) -> dict[str, int]:
            return {}

    assert_refused(Module(), "a torch module needs example inputs: gossamer.load_torch")
    assert_refused(3, "a model of type int")


@pytest.mark.parametrize("opset", [7, 10])
def test_old_opsets_are_refused(opset: int) -> None:
    assert_refused(dense(opset=opset), f"has opset {opset}; 11 and up are read")


CONTENT = dense(np.ones((4, 4), np.float32)).SerializeToString()


@given(cut=st.integers(0, len(CONTENT) - 1))
def test_truncated_anywhere_it_is_one_clear_line(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.onnx"
    path.write_bytes(CONTENT[:cut])
    assert_refused(path, "m.onnx")


@given(content=st.binary(min_size=1, max_size=200))
def test_random_bytes_are_one_clear_line(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("random") / "m.onnx"
    path.write_bytes(content)
    assert_refused(path, "m.onnx")


@given(changes=st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_never_crash(changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(CONTENT)
    for position, byte in changes:
        content[position] = byte
    path = tmp_path_factory.mktemp("changed") / "m.onnx"
    path.write_bytes(content)
    try:
        load(path)
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a\xff\xff\xff\xff\x07",  # a graph that claims 2 GB
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # or 2^64 bytes
        b"\x08\x08" + b"\x3a\x7f" * 50,  # graphs in graphs that end early
    ],
)
def test_hostile_sizes_cost_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert_refused(tmp_path / "m.onnx", "m.onnx is not an ONNX file, or is cut short")


def test_deeply_nested_graphs_are_one_clear_line(tmp_path: Path) -> None:
    inner = b""
    for _ in range(4000):  # GraphProto.node{ attribute{ g{ ... } } }, hand-written: protobuf refuses to build it
        for field in (0x32, 0x2A, 0x0A):
            inner = bytes([field]) + _varint(len(inner)) + inner
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + _varint(len(inner)) + inner)
    assert_refused(tmp_path / "m.onnx", "m.onnx is not an ONNX file, or is cut short")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("dims", [[4, 5], [1 << 40, 1 << 40], [-4, -4], []])
def test_weights_whose_length_disagrees(dims: list[int]) -> None:
    proto = dense()
    proto.graph.initializer[0].dims[:] = dims
    assert_refused(proto, "tensor 'w' (has shape .* and holds 64|is damaged)")


@pytest.mark.parametrize("field", ["float_data", "none"])
def test_typed_fields_whose_length_disagrees(field: str) -> None:
    proto = dense()
    proto.graph.initializer[0].ClearField("raw_data")
    if field == "float_data":
        proto.graph.initializer[0].float_data.extend([0.0] * 15)
    assert_refused(proto, r"tensor 'w' has shape \[4, 4\] of FLOAT, 16 numbers, and holds (15|0)")


@pytest.mark.parametrize("dtype", [d for d in ir.DataType if d.name not in ("UNDEFINED", "FLOAT6E2M3", "FLOAT6E3M2")])
def test_every_type_of_tensor_is_counted_right(dtype: ir.DataType) -> None:
    """Both ways of holding numbers, for every type onnx can write."""
    text = dtype == ir.DataType.STRING
    values = ["a", "b", "c"] if text else [1, 0, 1]
    for raw in (False,) if text else (False, True):
        tensor = helper.make_tensor("c", dtype.value, [3], values)
        if raw:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "c")
        proto = dense()
        proto.graph.initializer.append(tensor)
        read(proto)
        tensor.dims[:] = [6]
        proto.graph.initializer[1].CopyFrom(tensor)
        assert_refused(proto, "tensor 'c' has shape .6. of")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda p: p.graph.ClearField("output"), "it holds no graph or no opset"),
        (lambda p: p.ClearField("opset_import"), "it holds no graph or no opset"),
        (lambda p: p.graph.node[0].input.__setitem__(0, "z"), "node MatMul 'y' reads 'z', which nothing makes"),
        (lambda p: p.graph.node[0].output.__setitem__(0, "z"), "output 'y' is made by no node"),
        (lambda p: p.graph.node.append(p.graph.node[0]), "value 'y' is made twice"),
        (lambda p: setattr(p.graph.initializer[0], "data_type", 99), "tensor 'w' has the unknown type 99"),
        (lambda p: p.graph.sparse_initializer.add(), "is a sparse initializer"),
    ],
)
def test_damaged_graphs(damage: object, match: str) -> None:
    proto = dense()
    damage(proto)  # type: ignore[operator]
    assert_refused(proto, match)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["raw", "external", "constant", "half"])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, place: str) -> None:
    weight = W.copy()
    weight[2, 1] = value
    name = "NaN" if np.isnan(value) else "Inf"
    if place == "external":
        path = external(tmp_path)
        (tmp_path / "weights.bin").write_bytes(b"\0" * 8 + weight.tobytes())
        assert_refused(path, f"weight 'w' holds {name}")
    elif place == "constant":
        proto = dense(body="k = Constant() y = MatMul(x, k)")
        proto.graph.node[0].attribute.append(helper.make_attribute("value", numpy_helper.from_array(weight)))
        assert_refused(proto, f"weight 'k' holds {name}")
    elif place == "half":
        body = (
            "h = Cast<to=1>(w) y = MatMul(x, h)"
            if np.isnan(value)
            else "h = Mul(w, w) g = Cast<to=1>(h) y = MatMul(x, g)"
        )
        assert_refused(dense(weight.astype(np.float16), body=body), f"weight 'w' holds {name}")
    else:
        assert_refused(dense(weight), f"weight 'w' holds {name}")


def test_infinity_is_allowed_where_it_has_a_meaning() -> None:
    mask = np.where(np.tri(4) > 0, 0, -np.inf).astype(np.float32)
    load(dense(mask, body="y = Add(x, w)"))
    load(dense(np.array(np.inf, np.float32), body="y = Clip(x, , w)"))
    assert_refused(dense(-mask, body="y = Add(x, w)"), "weight 'w' holds Inf")


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_memory_of_the_search_for_nan_is_small(tmp_path: Path, dtype: ir.DataType) -> None:
    """Chunks are read, never the whole tensor at once."""
    from gossamer.intake.weights import CHUNK_BYTES, _chunks

    count = 1_000_000
    array = np.resize(np.arange(100), count).astype(dtype.numpy())
    (tmp_path / "w.bin").write_bytes(b"12345" + array.tobytes())
    shape = ir.Shape([count])
    tensor = ir.ExternalTensor("w.bin", 5, array.nbytes, dtype, shape=shape, name="w", base_dir=tmp_path)
    chunks = [chunk.copy() for chunk in _chunks(tensor)]
    assert max(chunk.nbytes for chunk in chunks) <= CHUNK_BYTES and tensor.raw is None
    np.testing.assert_array_equal(np.concatenate(chunks), array)
