"""torchao's runs, each in a process and an environment of its own; what they made is kept like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fetch
import training_nets
import training_peer
from gossamer.nouns.samples import samples_from_arrays
from gossamer.training.holding_out import hold_out
from training_cases import (
    BATCH,
    Case,
    Made,
    accuracy,
    digest_of,
    floated,
    logits,
    made_once,
    nets_script,
    tell,
    validation,
    write_facts,
)

PEER_PACKAGES = (
    "torch==2.13.0",
    "torchao==0.18.0",
    "onnx==1.23.2",
    "onnxruntime==1.31.1",
    "onnxscript==0.7.2",
)
PATIENCE_S = 1800


def peer_tuned(case: Case, bits: int, rate: float) -> Made:
    """As `training_cases.tuned`, with torchao.

    Raises:
        subprocess.SubprocessError: it failed; the message says how.
    """
    return _peer(case, bits, case.effort.tune_epochs, rate)


def peer_steps(case: Case, bits: int) -> dict[str, float]:
    """Processor milliseconds of a step of torchao's, and of a float step in the same process.

    Raises:
        subprocess.SubprocessError: as above.
    """
    return _peer(case, bits, 0, 0.0).facts


def _peer(case: Case, bits: int, epochs: int, rate: float) -> Made:
    effort, source, script = case.effort, floated(case).path, Path(training_peer.__file__)
    setting: dict[str, Any] = {
        "net": case.net,
        "state": str(source.with_name("state.pt")),
        "bits": bits,
        "rate": rate,
        "epochs": epochs,
        "batch": BATCH,
        "seed": case.seed,
        "threads": torch.get_num_threads(),
    }

    def fill(folder: Path) -> None:
        np.savez(folder / "rows.npz", **rows_for_peer(case, source))  # type: ignore[arg-type]
        told = {**setting, "rows": str(folder / "rows.npz"), "out": str(folder / "model.onnx")}
        (folder / "setting.json").write_text(json.dumps(told))
        command = [str(python()), str(script), str(folder / "setting.json")]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise subprocess.SubprocessError(lines[-1][:200] if lines else f"ended with {done.returncode}")
        facts = json.loads((folder / "model.json").read_text())
        write_facts(
            folder, facts | ({"validation": accuracy(folder / "model.onnx", validation(effort))} if epochs else {})
        )

    key = [setting, asdict(effort), digest_of(source), script.read_text(), nets_script(), PEER_PACKAGES]
    return made_once("torchao", key, fill)


def rows_for_peer(case: Case, teacher: Path) -> dict[str, np.ndarray]:
    """Which images `train_model` learns from and chooses on, and what the float network says of the former."""
    part = training_nets.data().train.take(slice(case.effort.tune_samples))
    (choose,), learn = hold_out(samples_from_arrays({"image": part.image}, part.labels), case.seed)
    taught = logits(teacher, part.image[learn.rows])
    return {"learn": learn.rows, "choose": choose.rows, "taught": taught}


@cache
def python() -> Path:
    """The interpreter of torchao's environment, made at first use; the stamp is the last thing written."""
    home = fetch.cache() / "torchao-venv"
    stamp, wanted = home / "installed", "\n".join(PEER_PACKAGES)
    if not stamp.exists() or stamp.read_text() != wanted:
        tell(f"installing {', '.join(PEER_PACKAGES)} into {home}; this takes some minutes")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, *PEER_PACKAGES], check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    return home / "bin" / "python"
