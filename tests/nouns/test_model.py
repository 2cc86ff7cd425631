from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.errors import OutputError
from gossamer.nouns import model as model_file
from gossamer.nouns.model import Model, save, sha256, size_bytes, to_bytes, write_file


def small() -> Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>\nnet (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    return Model(ir.serde.deserialize_model(proto), "small")


def test_save_counts_the_bytes_it_wrote_and_repeats_itself(tmp_path: Path) -> None:
    written = save(small(), tmp_path / "deep" / "a.onnx")
    assert written == (tmp_path / "deep" / "a.onnx").stat().st_size == size_bytes(tmp_path / "deep" / "a.onnx")
    save(small(), tmp_path / "b.onnx")
    assert sha256(tmp_path / "b.onnx") == sha256(tmp_path / "deep" / "a.onnx")


def test_weights_too_big_for_one_message_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "PROTO_LIMIT_BYTES", 40)
    big = small()
    big.ir.graph.initializers["w"].const_value = ir.tensor(np.ones((400, 3), np.float32), name="w")
    written = save(big, tmp_path / "a.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert written == sum(path.stat().st_size for path in tmp_path.iterdir()) == size_bytes(tmp_path / "a.onnx")
    loaded = onnx.load(tmp_path / "a.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), np.ones((400, 3)))


def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "a", b"earlier")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*a: No space left on device; choose another -o"):
        write_file(tmp_path / "a", b"later")
    assert (tmp_path / "a").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        write_file(tmp_path / "taken" / "a", b"")


def test_a_clone_can_be_edited_without_touching_its_source() -> None:
    source = small()
    before = to_bytes(source)
    clone = source.clone()
    clone.ir.graph[0].name = "changed"
    clone.ir.graph.initializers["w"].const_value = ir.tensor(np.zeros((4, 3), np.float32), name="w")
    assert to_bytes(source) == before != to_bytes(clone)
