"""Archives on disk, and in place of models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packaged import demo_in
from tests.quick import time_little
from typer.testing import CliRunner

import gossamer
from gossamer.archive import reader
from gossamer.archive.files import Archive, PackFacts
from gossamer.cli import app
from gossamer.errors import ArchiveError, ModelError, OptionError, OutputError

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with weights of eight bits, a table and biases."""
    folder = tmp_path_factory.mktemp("archive")
    demo_in(folder, 30)
    return folder / "original.onnx"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_same_bytes_come_back_and_every_byte_is_accounted_for(model: Path, tmp_path: Path) -> None:
    facts = gossamer.pack_file(model, tmp_path / "m.goss")
    size = (tmp_path / "m.goss").stat().st_size
    assert facts.bytes.archive == size == facts.bytes.header + facts.bytes.graph + facts.bytes.tensors
    assert facts.bytes.model == model.stat().st_size > size
    assert gossamer.unpack_file(tmp_path / "m.goss", tmp_path / "back.onnx") == facts.bytes.model
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()
    assert gossamer.read_archive((tmp_path / "m.goss").read_bytes()) == model.read_bytes()
    with pytest.raises(ArchiveError, match=r"the archive: not a \.goss archive"):
        gossamer.read_archive(b"anything")
    archive = gossamer.inspect_archive(tmp_path / "m.goss")
    assert archive.bytes == facts.bytes and archive.bits_per_weight == pytest.approx(facts.bits_per_weight)
    names = {tensor.name for tensor in onnx.load(model).graph.initializer if tensor.raw_data}
    assert {one.name for one in archive.tensors} <= names | {""}
    tables = facts.bytes.tensors - sum(one.archive_bytes for one in archive.tensors)
    assert 0 <= tables < 0.02 * size


def test_several_processes_give_the_same_bytes_and_the_same_errors(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.archive.unpacking.WORTH_BYTES", 0)
    monkeypatch.setattr("gossamer.archive.pack.CHUNK_BYTES", 1 << 14)  # some tensors in several
    gossamer.pack_file(model, tmp_path / "m.goss")
    sections = len(reader.read_header((tmp_path / "m.goss").read_bytes()).sections)
    assert sections > 10
    assert gossamer.read_archive(tmp_path / "m.goss", processes=2) == model.read_bytes()
    run("unpack", tmp_path / "m.goss", "--processes", 2, "-o", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()
    with pytest.raises(OptionError, match="processes are 0"):
        gossamer.read_archive(tmp_path / "m.goss", processes=0)
    data = bytearray((tmp_path / "m.goss").read_bytes())
    data[-9] ^= 4
    (tmp_path / "m.goss").write_bytes(data)
    with pytest.raises(ArchiveError, match="do not match their checksum"):
        gossamer.read_archive(tmp_path / "m.goss", processes=2)


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "m.goss"
    facts = msgspec.json.decode(run("pack", model, "-o", packed, "--json"), type=PackFacts)
    assert facts.bytes.archive == packed.stat().st_size
    assert "bits a weight" in run("pack", model, "-o", packed)
    archive = msgspec.json.decode(run("inspect", packed, "--json"), type=Archive)
    shown = run("inspect", packed)
    assert "in the archive" in shown and "code tables" in shown and archive.bytes == facts.bytes
    told = msgspec.json.decode(run("unpack", packed, "-o", tmp_path / "back.onnx", "--json"))
    assert told == {"artifact": str(tmp_path / "back.onnx"), "bytes": model.stat().st_size}
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()


def test_an_archive_stands_in_for_its_model(model: Path, tmp_path: Path) -> None:
    gossamer.pack_file(model, tmp_path / "m.goss")
    read, packed = gossamer.load(model), gossamer.load(tmp_path / "m.goss")
    for loaded in (read, packed):
        gossamer.save(loaded, tmp_path / f"{loaded.name}.onnx")
    assert (tmp_path / "original.onnx.onnx").read_bytes() == (tmp_path / "m.goss.onnx").read_bytes()


def test_an_archive_is_compared_by_its_own_bytes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_little(monkeypatch)
    gossamer.pack_file(model, tmp_path / "m.goss")
    found = gossamer.compare(model, tmp_path / "m.goss", model.parent / "data.npz")
    assert found.met and found.accuracy.drop == 0
    assert found.bytes.original == model.stat().st_size
    assert found.bytes.result == (tmp_path / "m.goss").stat().st_size


def test_an_update_is_small_and_needs_its_base(tmp_path: Path) -> None:
    before = RNG.normal(size=(200, 300)).astype(np.float32)
    after = before.copy()
    after[::7] *= np.float32(1.0001)
    old, new = (written(tmp_path / f"{name}.onnx", array) for name, array in (("old", before), ("new", after)))
    gossamer.pack_file(old, tmp_path / "old.goss")
    whole = gossamer.pack_file(new, tmp_path / "new.goss")
    update = gossamer.pack_file(new, tmp_path / "update.goss", tmp_path / "old.goss")
    assert update.bytes.archive < 0.2 * whole.bytes.archive
    assert update.base_saved == whole.bytes.archive - update.bytes.archive
    for base in ("old.goss", "old.onnx"):
        gossamer.unpack_file(tmp_path / "update.goss", tmp_path / "back.onnx", tmp_path / base)
        assert (tmp_path / "back.onnx").read_bytes() == new.read_bytes()
    with pytest.raises(ArchiveError, match=r"packed against a model whose SHA-256 begins .*; none was given"):
        gossamer.load(tmp_path / "update.goss")
    with pytest.raises(ArchiveError, match="the one given begins"):
        gossamer.unpack_file(tmp_path / "update.goss", tmp_path / "x.onnx", tmp_path / "new.goss")
    assert gossamer.inspect_archive(tmp_path / "update.goss", old).base


def test_a_base_that_does_not_help_is_not_needed(tmp_path: Path) -> None:
    old, new = (written(tmp_path / f"{at}.onnx", RNG.normal(size=(100, 80)).astype(np.float32)) for at in range(2))
    facts = gossamer.pack_file(new, tmp_path / "m.goss", old)
    assert facts.base_saved == 0 and not gossamer.inspect_archive(tmp_path / "m.goss").base
    gossamer.unpack_file(tmp_path / "m.goss", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == new.read_bytes()


def written(path: Path, weight: np.ndarray) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_bad_files_are_named(tmp_path: Path, model: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    for path, words in (("text.onnx", "not an ONNX file"), ("none.onnx", "cannot be read"), (".", "is a folder")):
        with pytest.raises(ModelError, match=words):
            gossamer.pack_file(tmp_path / path, tmp_path / "m.goss")
    with pytest.raises(ModelError, match=r"text\.onnx is not an ONNX file"):
        gossamer.pack_file(model, tmp_path / "m.goss", tmp_path / "text.onnx")
    assert not (tmp_path / "m.goss").exists()
    (tmp_path / "broken.goss").write_bytes(b"PK")
    for use in (gossamer.load, gossamer.inspect_archive):
        with pytest.raises(ArchiveError, match=r"not a \.goss archive"):
            use(tmp_path / "broken.goss")


def test_nothing_that_is_read_is_written_over(model: Path, tmp_path: Path) -> None:
    packed, other = tmp_path / "m.goss", tmp_path / "m.onnx"
    gossamer.pack_file(model, packed)
    gossamer.unpack_file(packed, other)
    for use in (
        lambda: gossamer.pack_file(other, other),
        lambda: gossamer.pack_file(other, packed, packed),
        lambda: gossamer.unpack_file(packed, packed),
    ):
        with pytest.raises(OutputError, match="is read as well, and would be lost"):
            use()
    before = packed.read_bytes()
    assert "would be lost" in reader.main([str(packed), str(packed)]) and packed.read_bytes() == before
    for nowhere in ("", tmp_path):
        with pytest.raises(OutputError, match="names no file"):
            gossamer.pack_file(other, nowhere)
    assert other.read_bytes() == model.read_bytes() and gossamer.unpack_file(packed, tmp_path / "again.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_what_is_no_file_is_not_replaced_and_links_are_followed(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="it is there and no file"):
        gossamer.pack_file(model, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link.goss").symlink_to(tmp_path / "real.goss")
    gossamer.pack_file(model, tmp_path / "link.goss")
    assert (tmp_path / "link.goss").is_symlink() and gossamer.load(tmp_path / "real.goss")


@pytest.mark.parametrize(
    ("kind", "item_bytes"),
    [
        (TensorProto.FLOAT8E4M3FN, 1),
        (TensorProto.FLOAT8E5M2, 1),
        (TensorProto.COMPLEX64, 8),
        (TensorProto.COMPLEX128, 16),
    ],
)
def test_floats_of_8_bits_and_complex_numbers_are_coded(kind: int, item_bytes: int, tmp_path: Path) -> None:
    numbers = RNG.normal(size=(100, 300)).astype(np.float32)
    raw = (numbers + 1j * numbers[::-1] if item_bytes > 1 else numbers).astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor = helper.make_tensor("w", kind, raw.shape, raw.tobytes(), raw=True)
    output = helper.make_tensor_value_info("w", kind, raw.shape)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [output], [tensor])).SerializeToString())
    facts = gossamer.pack_file(path, tmp_path / "m.goss")
    assert 1 < facts.bits_per_weight < 0.95 * 8 * item_bytes
    assert facts.bits_per_weight < 1.1 * facts.order0_bits_per_weight
    assert gossamer.read_archive(tmp_path / "m.goss") == path.read_bytes()


def test_a_model_without_tensors_has_no_bits_a_weight(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert "no tensor is coded" in run("pack", path, "-o", tmp_path / "m.goss")
    assert msgspec.json.decode(run("inspect", tmp_path / "m.goss", "--json"), type=Archive).bits_per_weight == 0


def test_a_result_does_not_replace_the_archive_it_is_made_from(model: Path, tmp_path: Path) -> None:
    gossamer.pack_file(model, tmp_path / "model.goss")
    with pytest.raises(OptionError, match="is the model that was given"):
        gossamer.compress(tmp_path / "model.goss", tmp_path / "data.npz", out=tmp_path)
    (tmp_path / "model.goss").rename(tmp_path / "original.onnx")
    with pytest.raises(OptionError, match="is the model that was given"):
        gossamer.compress(tmp_path / "original.onnx", tmp_path / "data.npz", out=tmp_path)


def test_an_archive_is_known_by_how_it_begins(model: Path, tmp_path: Path) -> None:
    gossamer.pack_file(model, tmp_path / "plain")
    assert gossamer.load(tmp_path / "plain").ir.graph.name == gossamer.load(model).ir.graph.name
    assert "in the archive" in run("inspect", tmp_path / "plain")
    facts = gossamer.pack_file(tmp_path / "plain", tmp_path / "again.goss")  # packed anew
    assert facts.bytes.model == model.stat().st_size


def test_plans_apply_to_archives_and_bad_input_leaves_earlier_results(model: Path, tmp_path: Path) -> None:
    gossamer.pack_file(model, tmp_path / "m.goss")
    run("constrain", tmp_path / "m.goss", "--constraint", "grid:8", "--solver", "nearest", "-o", tmp_path / "out")
    before = (tmp_path / "out" / "plan.yaml").read_bytes()
    run("apply", tmp_path / "out" / "plan.yaml", tmp_path / "m.goss", "-o", tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()
    words = ["constrain", str(tmp_path / "none.onnx"), "--constraint", "sparse:0.9", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, words).exit_code == 2
    assert (tmp_path / "out" / "plan.yaml").read_bytes() == before


def test_the_reader_is_a_program(model: Path, tmp_path: Path) -> None:
    gossamer.pack_file(model, tmp_path / "m.goss")
    assert reader.main([str(tmp_path / "m.goss"), str(tmp_path / "b.onnx")]) == ""
    assert (tmp_path / "b.onnx").read_bytes() == model.read_bytes()
    assert reader.main([]).startswith("usage: ")
    assert "not a .goss archive" in reader.main([str(model), str(tmp_path / "c.onnx")])


def test_weights_in_other_files_are_not_lost(tmp_path: Path) -> None:
    proto = onnx.load(written(tmp_path / "m.onnx", RNG.normal(size=(64, 64)).astype(np.float32)))
    onnx.save(proto, tmp_path / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ModelError, match="the weight 'w' lies in another file"):
        gossamer.pack_file(tmp_path / "out.onnx", tmp_path / "m.goss")


def test_a_kill_while_packing_leaves_no_half_file(model: Path, tmp_path: Path) -> None:
    """At random moments; the name holds what was there before, or the whole archive."""
    target = tmp_path / "m.goss"
    target.write_bytes(b"before")
    code = "import sys, gossamer; print('ready', flush=True); gossamer.pack_file(sys.argv[1], sys.argv[2])"
    for delay in (0.0, 0.1, 0.25, 0.5):
        child = subprocess.Popen([sys.executable, "-c", code, str(model), str(target)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        content = target.read_bytes()
        assert content == b"before" or gossamer.unpack_file(target, tmp_path / "back.onnx")
