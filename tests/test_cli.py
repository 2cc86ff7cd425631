"""The command line as a person meets it: what it prints, how it ends, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.quick import first_round_only, time_little

from gossamer import cli, options


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, with little timing and the first round only."""
    time_little(monkeypatch)
    first_round_only(monkeypatch)

    def command(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gossamer", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return Ended(int(stop.value.code or 0), out, err)

    return command


def weight(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.2).astype(np.float32), name)


def net(path: Path, poison: float | None = None) -> Path:
    """A small classifier: two convolutions, a pool, a Gemm."""
    rng = np.random.default_rng(0)
    weights = [weight(rng, "w1", 16, 3, 3, 3), weight(rng, "w2", 16, 16, 3, 3), weight(rng, "w3", 5, 16)]
    if poison is not None:
        array = numpy_helper.to_array(weights[1]).copy()
        array[3, 2, 1, 0] = poison
        weights[1] = numpy_helper.from_array(array, "w2")
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1] * 4, name="conv1"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, name="conv2"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("Gemm", ["e", "w3"], ["logits"], transB=1, name="dense"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "net", [image], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def data(path: Path, count: int = 64, labels: int | None = None, **changed: np.ndarray) -> Path:
    """Images and labels; `labels` changes their number."""
    rng = np.random.default_rng(1)
    arrays = {"image": rng.standard_normal((count, 3, 16, 16)).astype(np.float32)}
    arrays["labels"] = rng.integers(0, 5, count if labels is None else labels)
    np.savez(path, **{**arrays, **changed})
    return path


@pytest.fixture
def good(tmp_path: Path) -> tuple[Path, Path]:
    return net(tmp_path / "net.onnx"), data(tmp_path / "data.npz")


def test_compress_json_is_one_object_with_the_promised_words(run: Run, good: tuple[Path, Path], tmp_path: Path) -> None:
    model, samples = good
    ended = run("compress", model, "--data", samples, "--max-drop", "20%", "-o", tmp_path / "out", "--json")
    told = json.loads(ended.out)
    assert ended.status == (0 if told["met"] else 3)
    assert Path(told["artifact"]) == tmp_path / "out" / "model.onnx"
    assert {"metric", "original", "result", "drop", "low", "high", "n"} <= told["accuracy"].keys()
    assert {"original", "result"} <= told["bytes"].keys()
    latency = told["latency_ms"]
    assert {"original", "result", "ratio", "threads", "runtime"} <= latency.keys()
    assert told["seconds"] > 0 and told["peak_rss_bytes"] > 1e6
    assert "float" in ended.err  # progress went to standard error


def test_the_printed_table_and_report_name_the_artifact(run: Run, good: tuple[Path, Path], tmp_path: Path) -> None:
    model, samples = good
    ended = run("compress", model, "--data", samples, "--max-drop", "20%", "-o", tmp_path / "out")
    assert "original" in ended.out and "latency" in ended.out
    assert str(tmp_path / "out" / "report.html") in ended.out


def test_inspect_lists_layers(run: Run, good: tuple[Path, Path]) -> None:
    ended = run("inspect", good[0])
    assert ended.status == 0
    assert "conv2" in ended.out and "opset" in ended.out
    told = json.loads(run("inspect", good[0], "--json").out)
    assert told["parameters"] == 16 * 27 + 16 * 144 + 80


def test_compare_says_whether_the_floor_holds(run: Run, good: tuple[Path, Path], tmp_path: Path) -> None:
    model, samples = good
    same = run("compare", model, model, "--data", samples, "--json")
    told = json.loads(same.out)
    assert same.status == 0 and told["met"] and told["accuracy"]["drop"] == 0
    assert {"met", "artifact", "accuracy", "bytes", "latency_ms", "seconds", "peak_rss_bytes"} <= told.keys()
    other = onnx.load(model)
    array = numpy_helper.to_array(other.graph.initializer[2])
    other.graph.initializer[2].CopyFrom(numpy_helper.from_array(-array, "w3"))
    onnx.save(other, tmp_path / "other.onnx")
    ended = run("compare", model, tmp_path / "other.onnx", "--data", samples, "--metric", "agreement")
    assert ended.status == 3
    assert "logits" in ended.out  # the layer that differs


def test_apply_replays_what_compress_wrote(run: Run, good: tuple[Path, Path], tmp_path: Path) -> None:
    model, samples = good
    run("compress", model, "--data", samples, "--max-drop", "50%", "--minimize", "size", "-o", tmp_path / "out")
    ended = run("apply", tmp_path / "out/plan.yaml", model, "-o", tmp_path / "again", "--json")
    assert ended.status == 0
    assert json.loads(ended.out)["artifact"] == str(tmp_path / "again/model.onnx")
    assert (tmp_path / "again/model.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()


def test_what_a_person_s_own_metric_prints_does_not_spoil_the_json(
    run: Run, good: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy_metric.py").write_text(
        "def right(outputs, labels):\n    print('hello')\n    return (outputs['logits'].argmax(1) == labels) * 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    model, samples = good
    ended = run("compare", model, model, "--data", samples, "--metric", "noisy_metric:right", "--json")
    assert json.loads(ended.out)["accuracy"]["metric"] == "noisy_metric:right"
    assert "hello" in ended.err


def test_apply_of_a_plan_that_changes_nothing_copies_the_model(
    run: Run, good: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text("name: original\n")
    assert run("apply", tmp_path / "plan.yaml", good[0], "-o", tmp_path / "out").status == 0
    assert (tmp_path / "out/model.onnx").read_bytes() == good[0].read_bytes()
    (tmp_path / "taken").write_text("")
    ended = run("apply", tmp_path / "plan.yaml", good[0], "-o", tmp_path / "taken")
    assert ended.status == 2 and ended.err.startswith("error: ") and "taken" in ended.err


Spoil = Callable[[Path], tuple[Path, Path, list[object]]]


def truncated(folder: Path) -> tuple[Path, Path, list[object]]:
    model = net(folder / "net.onnx")
    model.write_bytes(model.read_bytes()[:-1000])
    return model, data(folder / "data.npz"), []


def random_bytes(folder: Path) -> tuple[Path, Path, list[object]]:
    (folder / "net.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder / "net.onnx", data(folder / "data.npz"), []


def absent(folder: Path) -> tuple[Path, Path, list[object]]:
    return folder / "nowhere.onnx", data(folder / "data.npz"), []


def external(folder: Path, location: str, keep: bool) -> Path:
    proto = onnx.load(net(folder / "net.onnx"))
    onnx.save(proto, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    proto = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    if not keep:
        (folder / "weights.bin").unlink()
    return folder / "net.onnx"


def missing_external_data(folder: Path) -> tuple[Path, Path, list[object]]:
    return external(folder, "weights.bin", keep=False), data(folder / "data.npz"), []


def climbing_external_data(folder: Path) -> tuple[Path, Path, list[object]]:
    (folder / "inner").mkdir()
    model = external(folder / "inner", "../weights.bin", keep=True)
    (folder / "inner/weights.bin").rename(folder / "weights.bin")
    return model, data(folder / "data.npz"), []


def wrong_name(folder: Path) -> tuple[Path, Path, list[object]]:
    np.savez(folder / "data.npz", picture=np.zeros((40, 3, 16, 16), np.float32), extra=np.zeros((40, 2), np.float32))
    return net(folder / "net.onnx"), folder / "data.npz", []


def wrong_shape(folder: Path) -> tuple[Path, Path, list[object]]:
    samples = data(folder / "data.npz", image=np.zeros((64, 16, 16, 3), np.float32))
    return net(folder / "net.onnx"), samples, []


def wrong_labels(folder: Path) -> tuple[Path, Path, list[object]]:
    return net(folder / "net.onnx"), data(folder / "data.npz", labels=63), []


def nan_data(folder: Path) -> tuple[Path, Path, list[object]]:
    image = np.zeros((64, 3, 16, 16), np.float32)
    image[17, 1, 2, 3] = np.nan
    return net(folder / "net.onnx"), data(folder / "data.npz", image=image), []


def inf_weight(folder: Path) -> tuple[Path, Path, list[object]]:
    return net(folder / "net.onnx", poison=float("inf")), data(folder / "data.npz"), []


def no_samples(folder: Path) -> tuple[Path, Path, list[object]]:
    return net(folder / "net.onnx"), data(folder / "data.npz", count=0), []


def pickled(folder: Path) -> tuple[Path, Path, list[object]]:
    np.savez(folder / "data.npz", image=np.array([{"a": 1}] * 4, dtype=object))
    return net(folder / "net.onnx"), folder / "data.npz", []


def custom_operator(folder: Path) -> tuple[Path, Path, list[object]]:
    proto = onnx.load(net(folder / "net.onnx"))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Twist", "house"
    proto.opset_import.append(helper.make_opsetid("house", 1))
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx", data(folder / "data.npz"), []


def file_as_folder(folder: Path) -> tuple[Path, Path, list[object]]:
    (folder / "taken").write_text("a file")
    return net(folder / "net.onnx"), data(folder / "data.npz"), ["-o", folder / "taken"]


def image_options_for_arrays(folder: Path) -> tuple[Path, Path, list[object]]:
    return net(folder / "net.onnx"), data(folder / "data.npz"), ["--size", "16", "-o", folder / "out"]


def bad_metric(folder: Path) -> tuple[Path, Path, list[object]]:
    return net(folder / "net.onnx"), data(folder / "data.npz"), ["--metric", "f1", "-o", folder / "out"]


def checkpoint(folder: Path) -> tuple[Path, Path, list[object]]:
    (folder / "net.pt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    return folder / "net.pt", data(folder / "data.npz"), []


BAD = {
    truncated: "net.onnx",
    random_bytes: "net.onnx",
    absent: "nowhere.onnx",
    missing_external_data: "weights.bin",
    climbing_external_data: "../weights.bin",
    wrong_name: "'image'",
    wrong_shape: "(3, 16, 16)",
    wrong_labels: "63",
    nan_data: "17",
    inf_weight: "w2",
    no_samples: "empty",
    pickled: "data.npz",
    custom_operator: "Twist",
    file_as_folder: "taken",
    bad_metric: "f1",
    image_options_for_arrays: "folder of images",
    checkpoint: "net.pt",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_input_gives_one_line_and_status_2_and_leaves_earlier_files(spoil: Spoil, run: Run, tmp_path: Path) -> None:
    model, samples, more = spoil(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"an earlier result")
    ended = run("compress", model, "--data", samples, *(more or ["-o", out]))
    assert ended.status == 2
    assert ended.out == ""
    lines = [line for line in ended.err.splitlines() if not line.startswith("  ")]  # progress is indented
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert BAD[spoil] in lines[0]
    assert (out / "model.onnx").read_bytes() == b"an earlier result"
    assert [path.name for path in out.iterdir()] == ["model.onnx"]


def test_a_full_disk_is_said_and_the_earlier_result_stays(
    run: Run, good: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = good
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"an earlier result")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ended = run("compress", model, "--data", samples, "-o", out)
    assert ended.status == 2 and "No space left on device" in ended.err
    assert (out / "model.onnx").read_bytes() == b"an earlier result"
    assert [path.name for path in out.iterdir()] == ["model.onnx"]


def test_a_constant_activation_is_no_obstacle(run: Run, tmp_path: Path) -> None:
    samples = data(tmp_path / "data.npz", image=np.zeros((64, 3, 16, 16), np.float32))
    ended = run("compress", net(tmp_path / "net.onnx"), "--data", samples, "-o", tmp_path / "out", "--json")
    assert ended.status == 0
    told = json.loads(ended.out)
    assert any(c["plan"]["name"].startswith("int8") and not c["error"] for c in told["candidates"])


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("100%", 1.0), ("0", 0.0)])
def test_a_drop_is_a_fraction_or_percent(text: str, value: float) -> None:
    assert options.fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1,5%", "two", "-1%", "150%", "2"])
def test_another_drop_is_refused(text: str, run: Run, good: tuple[Path, Path]) -> None:
    ended = run("compress", good[0], "--data", good[1], f"--max-drop={text}")
    assert ended.status == 2 and "1%" in ended.err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a child there")
def test_ctrl_c_in_the_shell_leaves_the_best_so_far(tmp_path: Path) -> None:
    model = tmp_path / "original.onnx"
    model.write_bytes(files("gossamer.demo").joinpath("original.onnx").read_bytes())
    (tmp_path / "data.npz").write_bytes(files("gossamer.demo").joinpath("data.npz").read_bytes())
    words = ["compress", str(model), "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out")]
    child = subprocess.Popen(
        [sys.executable, "-m", "gossamer.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs are deaf to it
    )
    assert child.stderr is not None
    deadline = time.monotonic() + 120
    for line in child.stderr:  # wait for the first integer candidate to be through the gate
        if line.strip().startswith("int8") or time.monotonic() > deadline:
            break
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 0, out
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["interrupted"] and record["met"]
    assert onnx.load(tmp_path / "out/model.onnx").graph.node
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_constrain_with_samples_measures_what_it_made(run: Run, good: tuple[Path, Path], tmp_path: Path) -> None:
    model, samples = good
    words = ("--constraint", "grid:4", "--layers", "conv*", "--max-drop", "100%")
    ended = run("constrain", model, "--data", samples, *words, "-o", tmp_path / "out", "--json")
    told = json.loads(ended.out)
    assert ended.status == 0 and told["met"] and told["chosen"] == "grid:4"
    assert told["bytes"]["result"] == (tmp_path / "out/model.onnx").stat().st_size < told["bytes"]["original"]
    assert {one["plan"]["name"] for one in told["candidates"]} == {"original", "grid:4"}


def test_constrain_without_samples_writes_a_model_and_a_plan(run: Run, good: tuple[Path, Path], tmp_path: Path) -> None:
    for solver in ("nearest", "second_order"):
        ended = run(
            "constrain", good[0], "--constraint", "grid:4", "--solver", solver, "-o", tmp_path / solver, "--json"
        )
        told = json.loads(ended.out)
        assert ended.status == 0
        assert told["bytes"]["result"] == (tmp_path / solver / "model.onnx").stat().st_size
        assert "constraint: grid:4" in (tmp_path / solver / "plan.yaml").read_text()
    assert "second moments from" in ended.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--constraint", "gird:4"), "there is no 'gird'"),
        (("--constraint", "shared"), "constrain_weights: no weight to put into shared"),
        (("--constraint", "grid:4:rate=2"), "the rate must be at most 1; allowed are 2 to 8 or 16 bits"),
        (("--constraint", "grid:4:rate=1e-6", "--solver", "nearest"), "the solver nearest knows no loss to weigh bits"),
        (("--constraint", "grid:4", "--layers", "conv9"), "scope 'conv9' matches no node of net.onnx; did you mean"),
        (("--constraint", "low_rank:99", "--layers", "dense"), "cannot put node 'dense' into low_rank:99"),
        (("--constraint", "sparse:2:4", "--layers", "pool"), "GlobalAveragePool has no weight"),
    ],
)
def test_a_constraint_that_cannot_be_is_one_line(
    words: tuple[str, ...], told: str, run: Run, good: tuple[Path, Path], tmp_path: Path
) -> None:
    for data_too in ((), ("--data", good[1])):
        ended = run("constrain", good[0], *words, *data_too, "-o", tmp_path / "out")
        assert ended.status == 2
        assert told in ended.err.splitlines()[-1] and ended.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [("--max-size", "3", "is no size"), ("--max-latency", "5", "is no share of the original's latency")],
)
def test_limits_that_are_none_are_refused(option: str, text: str, told: str, run: Run, good: tuple[Path, Path]) -> None:
    ended = run("compress", good[0], "--data", good[1], option, text)
    assert ended.status == 2 and told in " ".join(ended.err.replace("│", " ").split())
