"""Checkpoints: a killed run goes on bit by bit, and what is not of this run is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.training.small_jobs import job, network, same_bits, samples  # noqa: E402
from torch import nn  # noqa: E402

from gossamer.errors import ModelError, OutputError  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.training import checkpoints  # noqa: E402
from gossamer.training.loop import train  # noqa: E402
from gossamer.training.losses.hard_labels import HardLabels  # noqa: E402
from gossamer.training.pupil import WeightedLoss  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"epochs": 3, "rate": None, "average": 0.9}
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.training.small_jobs import job, network
from tests.training.test_checkpoints import OPTIONS
from gossamer.training.loop import train
from gossamer.training.watching import Watch

torch.set_num_threads(1)

def die(done, steps):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train(job(network(dropout=0.2), checkpoint=Path(sys.argv[1]), watch=Watch(steps=die), save_s=0.0, options=OPTIONS))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_a_run_killed_in_an_epoch_goes_on_bit_by_bit(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), "9"], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    said: list[str] = []
    resumed, whole = network(dropout=0.2), network(dropout=0.2)
    after = train(job(resumed, checkpoint=file, watch=Watch(said.append), options=OPTIONS))
    before = train(job(whole, options=OPTIONS))
    assert said[0] == "going on from run.safetensors: epoch 2, step 3"
    assert same_bits(resumed, whole)
    assert after == before


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop_at", [1, 6, 11])
def test_wherever_a_run_stops_it_goes_on_bit_by_bit(tmp_path: Path, stop_at: int, optimizer: str) -> None:
    options = {"optimizer": optimizer, "average": 0.9}

    def stop(done: int, _: int) -> None:
        if done == stop_at:
            raise _Stopped

    file = tmp_path / "run.safetensors"
    resumed, whole = network(dropout=0.2), network(dropout=0.2)
    first = network(dropout=0.2)
    with pytest.raises(_Stopped):
        train(job(first, checkpoint=file, watch=Watch(steps=stop), save_s=0.0, options=options))
    train(job(resumed, checkpoint=file, options=options))
    train(job(whole, options=options))
    assert same_bits(resumed, whole)


def test_a_run_that_was_done_is_done_again_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    once, again = network(), network()
    steps: list[int] = []
    train(job(once, checkpoint=file))
    train(job(again, checkpoint=file, watch=Watch(steps=lambda done, _: steps.append(done))))
    assert same_bits(once, again)
    assert not steps


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of its own."""
    file = tmp_path_factory.mktemp("finished") / "run.safetensors"
    train(job(checkpoint=file, options={"epochs": 1}))
    return file


def _other_model() -> nn.Module:
    module = network()
    with torch.no_grad():
        module[0].bias[0] += 1
    return module


def _other_labels() -> Any:
    data = samples()
    return samples_from_arrays(data.columns, np.roll(data.labels, 1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"module": _other_model()},
            r"is a checkpoint of a run with another model \(was \w{12}, is \w{12}\); give the",
        ),
        ({"data": samples(seed=1)}, "is a checkpoint of a run with other data"),
        ({"data": _other_labels()}, "is a checkpoint of a run with other data"),
        ({"options": {"epochs": 2}}, r"with other options \(epochs was 1, is 2\); give the same options, or remove"),
        ({"losses": (WeightedLoss(HardLabels(smoothing=0.1)),)}, "is a checkpoint of a run with other losses"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(finished: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        train(job(checkpoint=finished, **{"options": {"epochs": 1}, **changed}))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x10" * 400])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"run.safetensors is no whole checkpoint: .*; remove it to begin anew"):
        train(job(checkpoint=file))


def test_a_file_that_is_cut_short_is_refused(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    file.write_bytes(finished.read_bytes()[:-7])
    with pytest.raises(ModelError, match="is no whole checkpoint"):
        train(job(checkpoint=file, options={"epochs": 1}))


def test_safetensors_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    checkpoints.write(file, {"a": torch.zeros(2)}, {})
    with pytest.raises(ModelError, match="was not written by this version of gossamer; remove it to begin anew"):
        train(job(checkpoint=file))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*taken.run.safetensors: .*; free some space or choose"):
        train(job(checkpoint=tmp_path / "taken" / "run.safetensors"))


@settings(max_examples=20)
@given(
    st.dictionaries(
        st.text("abc./_", min_size=1, max_size=8),
        st.lists(st.floats(width=32, allow_nan=False), min_size=0, max_size=5),
        max_size=4,
    ),
    st.text(max_size=20),
)
def test_tensors_and_texts_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, list[float]], text: str
) -> None:
    file = tmp_path_factory.mktemp("written") / "state.safetensors"
    tensors = {name: torch.tensor(values) for name, values in state.items()}
    checkpoints.write(file, tensors, {"text": text})
    read, texts = checkpoints.read(file)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert texts == {"text": text}
    assert [path.name for path in file.parent.iterdir()] == [file.name]
