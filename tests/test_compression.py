"""The story end to end: on the packaged network and photographs, and on nets whose answer is known beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packaged import demo_in
from tests.quick import first_round_only, time_little
from typer.testing import CliRunner

import gossamer
from gossamer import search, trials
from gossamer.cli import app
from gossamer.errors import CandidateError
from gossamer.measuring.latency import Timing
from gossamer.nouns.record import record_from_json
from gossamer.passes import quantize_static

OUTPUTS = {"model.onnx", "plan.yaml", "record.json", "report.html"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round only, and little timing: nothing here depends on a close race."""
    time_little(monkeypatch)
    first_round_only(monkeypatch)


def test_the_demo_compresses_what_it_lays_down(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {*OUTPUTS, "original.onnx", "data.npz"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packaged network and 300 of its images."""
    return demo_in(tmp_path_factory.mktemp("demo"), 300)


@pytest.fixture(scope="module")
def finished(demo: Path) -> Iterator[tuple[gossamer.Record, Path]]:
    """One run with part of the second round, shared by the tests that look at it."""
    with pytest.MonkeyPatch.context() as patch:
        time_little(patch)
        whole = search.refine
        patch.setattr(search, "refine", lambda *given: whole(*given)[1:3])
        yield gossamer.compress(demo / "original.onnx", str(demo / "data.npz"), out=demo / "out"), demo / "out"


def test_the_demo_network_becomes_an_int8_file_that_keeps_its_accuracy(
    finished: tuple[gossamer.Record, Path],
) -> None:
    record, folder = finished
    assert record.met and record.accuracy.drop <= 0.01
    assert {path.name for path in folder.iterdir()} == OUTPUTS  # no candidate is left lying about
    assert record.bytes.result == (folder / "model.onnx").stat().st_size < record.bytes.original / 3
    assert record.latency_ms.ratio > 1.2
    types = {tensor.data_type for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    assert TensorProto.INT8 in types


def test_the_splits_share_no_sample_and_the_shown_figure_is_that_of_verify(
    finished: tuple[gossamer.Record, Path],
) -> None:
    record, _ = finished
    splits = record.splits
    assert splits.calibrate.n + splits.select.n + splits.verify.n == 300
    assert len({splits.calibrate.digest, splits.select.digest, splits.verify.digest}) == 3
    assert record.accuracy.n == splits.verify.n
    assert splits.optimistic == ()
    assert all(c.facts.accuracy.n == splits.select.n for c in record.candidates if c.facts)


def test_the_record_on_disk_is_the_record_returned(finished: tuple[gossamer.Record, Path]) -> None:
    record, folder = finished
    assert record_from_json((folder / "record.json").read_bytes()) == record
    assert record.artifact_sha256 == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()


def test_replaying_the_plan_gives_the_same_bytes(
    finished: tuple[gossamer.Record, Path], demo: Path, tmp_path: Path
) -> None:
    _, folder = finished
    model = gossamer.apply(folder / "plan.yaml", demo / "original.onnx")
    gossamer.save(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_the_artifact_passes_the_gate_again_by_itself(finished: tuple[gossamer.Record, Path], demo: Path) -> None:
    _, folder = finished
    assert gossamer.verify(demo / "original.onnx", folder / "model.onnx", demo / "data.npz")
    comparison = gossamer.compare(demo / "original.onnx", folder / "model.onnx", demo / "data.npz")
    assert comparison.met and comparison.layers
    assert comparison.layers[0].snr_db == min(layer.snr_db for layer in comparison.layers)


def test_without_labels_the_quality_is_agreement_with_the_original(demo: Path, tmp_path: Path) -> None:
    images = np.load(demo / "data.npz")["image"][:90]
    record = gossamer.compress(demo / "original.onnx", {"image": images}, out=tmp_path)
    assert record.accuracy.metric == "agreement" and not record.labelled
    assert record.accuracy.original == 1.0


def test_a_candidate_that_raises_is_recorded_and_the_run_goes_on(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(quantize_static, "apply", broken)
    record = gossamer.compress(demo / "original.onnx", demo / "data.npz", out=tmp_path)
    failed = [candidate for candidate in record.candidates if candidate.error]
    assert any(candidate.error == "planted" for candidate in failed)
    assert record.met and (tmp_path / "model.onnx").exists()


def test_an_interrupt_keeps_the_best_so_far(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_lines: list[str] = []

    def interrupting(line: str) -> None:
        finished_lines.append(line)
        if line.startswith("int8:"):
            raise KeyboardInterrupt

    record = gossamer.compress(demo / "original.onnx", demo / "data.npz", out=tmp_path, say=interrupting)
    assert record.interrupted
    assert (tmp_path / "model.onnx").exists() and (tmp_path / "report.html").exists()
    assert record.met


def test_an_interrupt_during_verification_returns_the_choice_marked_as_optimistic(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "_first_that_holds", interrupted)
    record = gossamer.compress(demo / "original.onnx", demo / "data.npz", out=tmp_path)
    assert record.interrupted and "accuracy" in record.splits.optimistic
    assert record.accuracy.n == record.splits.select.n


def test_a_choice_that_breaks_the_floor_on_verify_gives_way_to_the_next(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_judge = trials.judge
    refused: list[str] = []

    def strict(path: Path, *rest: object) -> gossamer.Facts:
        facts = true_judge(path, *rest)  # type: ignore[arg-type]
        if rest[-1] == trials.PROOF and not refused:
            refused.append(path.name)
            return gossamer.Facts(_dropped(facts), facts.bytes, facts.latency_ms)
        return facts

    monkeypatch.setattr(trials, "judge", strict)
    record = gossamer.compress(demo / "original.onnx", demo / "data.npz", out=tmp_path)
    assert refused and record.met
    assert any("the next candidate was taken" in warning for warning in record.warnings)
    assert "accuracy" in record.splits.optimistic  # its samples had a say in the choice


def _dropped(facts: gossamer.Facts) -> object:
    from dataclasses import replace

    return replace(facts.accuracy, drop=0.5)


def test_with_the_interval_demanded_and_few_samples_nothing_meets_the_floor(demo: Path, tmp_path: Path) -> None:
    data = np.load(demo / "data.npz")
    few = {"image": data["image"][:40], "labels": data["labels"][:40]}
    record = gossamer.compress(demo / "original.onnx", few, gossamer.Budget(0.0, confident=True), tmp_path)
    assert not record.met
    assert (tmp_path / "model.onnx").exists()
    assert "not" in (tmp_path / "report.html").read_text().lower()


def test_one_sample_is_enough_to_run_and_the_record_says_what_is_optimistic(demo: Path, tmp_path: Path) -> None:
    data = np.load(demo / "data.npz")
    record = gossamer.compress(
        demo / "original.onnx", {"image": data["image"][:1], "labels": data["labels"][:1]}, out=tmp_path
    )
    assert "accuracy" in record.splits.optimistic


def lenet(path: Path) -> Path:
    """LeNet-5 from a seed: so little work per layer that integers only add calls."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        fan_in = int(np.prod(shape[1:])) or 1
        return numpy_helper.from_array((rng.standard_normal(shape) / fan_in**0.5).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[2, 2, 2, 2], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], name="pool1"),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], name="conv2"),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2], name="pool2"),
        helper.make_node("Flatten", ["p2"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g1"], transB=1, name="dense1"),
        helper.make_node("Relu", ["g1"], ["r3"], name="relu3"),
        helper.make_node("Gemm", ["r3", "w4", "b4"], ["g2"], transB=1, name="dense2"),
        helper.make_node("Relu", ["g2"], ["r4"], name="relu4"),
        helper.make_node("Gemm", ["r4", "w5", "b5"], ["logits"], transB=1, name="dense3"),
    ]
    shapes = {"w1": (6, 1, 5, 5), "w2": (16, 6, 5, 5), "w3": (120, 400), "w4": (84, 120), "w5": (10, 84)}
    weights = [weight(name, *shape) for name, shape in shapes.items()]
    weights += [weight(f"b{index}", shapes[f"w{index}"][0]) for index in range(1, 6)]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "lenet", [image], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_lenet_is_left_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TRIAL", Timing(budget_s=0.4))
    images = np.random.default_rng(1).standard_normal((60, 1, 28, 28)).astype(np.float32)
    record = gossamer.compress(lenet(tmp_path / "lenet.onnx"), images, gossamer.Budget(0.05), tmp_path / "out")
    assert record.chosen in ("original", "float") and record.met
    if record.chosen == "original":
        assert (tmp_path / "out/model.onnx").read_bytes() == (tmp_path / "lenet.onnx").read_bytes()
        replayed = gossamer.apply(tmp_path / "out/plan.yaml", tmp_path / "lenet.onnx")
        assert replayed.path == tmp_path / "lenet.onnx"
    slower = [c.facts.latency_ms.ratio for c in record.candidates if c.facts and c.plan.name.startswith("int8")]
    assert slower and max(slower) < 1


def test_a_model_with_external_data_that_is_left_alone_comes_out_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    proto = onnx.load(lenet(tmp_path / "lenet.onnx"))
    onnx.save(proto, tmp_path / "in/net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    images = np.random.default_rng(1).standard_normal((40, 1, 28, 28)).astype(np.float32)
    record = gossamer.compress(tmp_path / "in/net.onnx", images, gossamer.Budget(0.0), tmp_path / "out")
    comparison = gossamer.measure(tmp_path / "in/net.onnx", tmp_path / "out/model.onnx", images)
    assert comparison.accuracy.drop == record.accuracy.drop == 0
    assert record.bytes.result == sum(
        p.stat().st_size for p in (tmp_path / "out").iterdir() if p.suffix in (".onnx", ".bin")
    )
    if record.chosen == "original":
        assert (tmp_path / "out/model.onnx").read_bytes() == (tmp_path / "in/net.onnx").read_bytes()


def test_the_result_never_takes_the_place_of_its_own_original(tmp_path: Path) -> None:
    model = lenet(tmp_path / "model.onnx")
    before = model.read_bytes()
    images = np.zeros((40, 1, 28, 28), np.float32)
    with pytest.raises(gossamer.GossamerError, match="is the model that was given"):
        gossamer.compress(model, images, out=tmp_path)
    assert model.read_bytes() == before and list(tmp_path.iterdir()) == [model]


def test_another_model_s_weights_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    proto = onnx.load(lenet(tmp_path / "lenet.onnx"))
    onnx.save(proto, tmp_path / "in/net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "out/w.bin").write_bytes(b"of another model")
    with pytest.raises(gossamer.GossamerError, match="weights of another model"):
        gossamer.compress(tmp_path / "in/net.onnx", np.zeros((40, 1, 28, 28), np.float32), out=tmp_path / "out")
    assert (tmp_path / "out/w.bin").read_bytes() == b"of another model"


@pytest.mark.parametrize("seed", [-1, "a"])
def test_a_seed_that_is_none_is_refused(seed: object, demo: Path, tmp_path: Path) -> None:
    with pytest.raises(gossamer.GossamerError, match="allowed is a whole number from 0 up"):
        gossamer.compress(demo / "original.onnx", demo / "data.npz", out=tmp_path, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, 100_000])
def test_threads_that_the_machine_does_not_have_are_refused(threads: int, demo: Path, tmp_path: Path) -> None:
    with pytest.raises(gossamer.GossamerError, match=f"threads is {threads}; allowed is 1 to"):
        target = gossamer.Target(threads=threads)
        gossamer.compress(demo / "original.onnx", demo / "data.npz", out=tmp_path, target=target)


def test_a_budget_that_is_none_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(gossamer.GossamerError, match=r"give a gossamer\.Budget"):
        gossamer.compress(demo / "original.onnx", demo / "data.npz", 0.01, tmp_path)  # type: ignore[arg-type]


def test_a_plan_whose_samples_have_changed_is_refused(
    finished: tuple[gossamer.Record, Path], demo: Path, tmp_path: Path
) -> None:
    _, folder = finished
    data = np.load(demo / "data.npz")
    np.savez(tmp_path / "data.npz", image=data["image"][::-1] + 1, labels=data["labels"][::-1])
    text = (folder / "plan.yaml").read_text().replace("../data.npz", "data.npz")
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(gossamer.GossamerError, match="not those the plan was made with"):
        gossamer.apply(tmp_path / "plan.yaml", demo / "original.onnx")
    assert gossamer.apply(tmp_path / "plan.yaml", demo / "original.onnx", tmp_path / "data.npz").weight_bytes()


def test_plan_alone_names_what_would_be_tried(demo: Path) -> None:
    names = [plan.name for plan in gossamer.plan(demo / "original.onnx")]
    assert names[:3] == ["original", "float", "int8"]


def test_measure_refuses_a_file_that_does_not_open(demo: Path, tmp_path: Path) -> None:
    broken = onnx.load(demo / "original.onnx")
    broken.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises((CandidateError, gossamer.GossamerError), match="NoSuchOperator"):
        gossamer.measure(demo / "original.onnx", tmp_path / "broken.onnx", demo / "data.npz")


def loud_chain(path: Path, layers: int = 8, channels: int = 48, at: int = 3, loud: float = 3000.0) -> None:
    """Convolutions one of which has a channel `loud` times as loud as the others, read as much fainter."""
    nodes, weights, x = [], [], "x"
    for index in range(layers):
        w = np.random.default_rng(index).normal(0, 1 / 20, (channels, channels, 3, 3)).astype(np.float32)
        w[0] *= loud if index == at else 1
        w[:, 0] /= loud if index == at + 1 else 1
        weights.append(numpy_helper.from_array(w, f"w{index}"))
        y = "y" if index == layers - 1 else f"c{index}"
        nodes.append(helper.make_node("Conv", [x, f"w{index}"], [y], name=f"conv{index}", pads=[1, 1, 1, 1]))
        x = y
    shape = ["n", channels, 20, 20]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_the_guard_raises_only_the_layers_to_blame(tmp_path: Path) -> None:
    loud_chain(tmp_path / "chain.onnx")
    x = np.random.default_rng(0).normal(size=(48, 48, 20, 20)).astype(np.float32)
    record = gossamer.compress(tmp_path / "chain.onnx", {"x": x}, gossamer.Budget(0.01), tmp_path / "out")
    first = next(candidate for candidate in record.candidates if candidate.plan.name == "int8")
    assert first.facts and not first.met and first.facts.accuracy.snr_db < 10  # 8 bits cannot hold that tensor
    chosen = next(candidate for candidate in record.candidates if candidate.plan.name == record.chosen)
    assert record.met and "raised" in record.chosen, record.chosen
    raised = next(step for step in chosen.plan.steps if step.method == "quantize_static").scope.skip
    assert {"conv3", "conv4"} <= set(raised) and len(raised) <= 4
    assert record.accuracy.snr_db > 20 and record.latency_ms.ratio > 1.1


def test_a_failing_search_for_the_guilty_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("a slip")

    monkeypatch.setattr(trials, "blame", fail)
    loud_chain(tmp_path / "chain.onnx", layers=5)
    x = np.random.default_rng(0).normal(size=(24, 48, 20, 20)).astype(np.float32)
    record = gossamer.compress(tmp_path / "chain.onnx", {"x": x}, gossamer.Budget(0.01), tmp_path / "out")
    assert record.met and record.diagnosis is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS
