"""One network under some steps that change nothing but its weights: its outputs, what they lose, a line of a table.

Every case is kept in the cache under the digest of model, samples, steps and code.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

import fetch
import gallery
import gossamer
import judge
import second_order_nets
from gossamer.errors import GossamerError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.intervals import matched_pairs, wilson
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN
from gossamer.runtimes.onnxruntime import open_session

SAMPLES = 300
SOLVERS: dict[str, dict[str, Any]] = {
    "nearest": {"solver": "nearest"},
    "second_order": {"solver": "second_order"},
    "sequential": {"solver": "second_order", "sequential": True},
}
CORRECT = Step("correct_bias", {"statistics": "sequential"})
ROOMS = ("arith", "constraints", "graph", "measuring", "passes", "solvers")  # what a case depends on
HEAD = "| | SNR dB | agreement (95 %) | accuracy, change (95 %) | noise left | disagreement left | MB | CPU s |"


@dataclass(frozen=True)
class Made:
    """What some steps made of a network: its outputs on the judge's samples, and facts.

    Attributes:
        outputs: None where the steps failed; `facts["notes"]` says why.
        facts: bytes of the file, cpu_s, wall_s, notes; loss and nearest_loss as shares of the signal, over all weights.
    """

    outputs: np.ndarray | None
    facts: dict[str, Any]


class Net:
    """A network of the gallery, read when something is not in the cache."""

    def __init__(self, name: str) -> None:
        self.name, self.work = name, second_order_nets.work(name)
        self.inputs, self.labels = self.work.judged_on()

    @cached_property
    def clean(self) -> Model:
        """Constants and norms folded, as every plan begins."""
        return run_plan(CLEAN, normalise(read(self.work.model))).model

    @cached_property
    def evidence(self) -> Evidence:
        """The first samples that tools are given."""
        arrays = dict(np.load(self.work.data))
        arrays.pop("labels", None)
        return Evidence(samples_from_arrays(arrays).first(SAMPLES))

    @cached_property
    def folder(self) -> Path:
        """Where its cases are kept."""
        sha = hashlib.sha256(self.work.model.read_bytes() + self.work.data.read_bytes() + str(SAMPLES).encode())
        found = fetch.cache() / "runs" / f"second-order-{self.name}-{sha.hexdigest()[:8]}"
        found.mkdir(parents=True, exist_ok=True)
        return found

    @cached_property
    def original(self) -> np.ndarray:
        """The float network's outputs on the judge's samples."""
        kept = self.folder / "float.npy"
        if not kept.exists():
            np.save(kept, outputs_of(self.work.model, self.inputs))
        return np.asarray(np.load(kept))

    def made(self, steps: Sequence[Step]) -> Made:
        """The outputs behind these steps, from the cache or computed now."""
        key = hashlib.sha256("".join(step.key() for step in steps).encode()).hexdigest()[:12]
        kept = self.folder / f"{key}-{code_digest()}.npz"
        if not kept.exists():
            words = (
                f"{step.method} {step.config.get('constraint', '')} {step.config.get('solver', '')}" for step in steps
            )
            print(f"{self.name}: {', '.join(words)}", file=sys.stderr, flush=True)
            made = self._make(steps)
            np.savez(kept, outputs=np.zeros(0) if made.outputs is None else made.outputs, facts=json.dumps(made.facts))
        with np.load(kept) as file:
            outputs, facts = np.asarray(file["outputs"]), json.loads(str(file["facts"]))
        return Made(outputs if outputs.size else None, facts)

    def _make(self, steps: Sequence[Step]) -> Made:
        self.evidence.moments(self.clean, [])  # read and fold before the clock starts
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            applied = run_plan(Plan("case", tuple(steps)), self.clean, self.evidence)
        except (GossamerError, ArithmeticError, ValueError) as error:
            return Made(None, {"notes": [f"{type(error).__name__}: {error}"]})
        facts: dict[str, Any] = {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}
        stored = to_bytes(applied.model)
        heard = [one for one in applied.predicted if one.zero_loss > 0]
        facts["loss"] = float(sum(one.loss / one.zero_loss for one in heard))
        facts["nearest_loss"] = float(sum(one.nearest_loss / one.zero_loss for one in heard))
        facts |= {"bytes": len(stored), "notes": list(applied.notes)}
        target = self.folder / "case.onnx"
        target.write_bytes(stored)
        return Made(outputs_of(target, self.inputs), facts)


def outputs_of(path: Path, arrays: gallery.Arrays) -> np.ndarray:
    """The first output for every sample, one at a time; what a mask hides at the end of a text is cut off."""
    session = open_session(path, 1)
    rows = []
    for row in range(len(next(iter(arrays.values())))):
        one = {name: array[row : row + 1] for name, array in arrays.items()}
        if "attention_mask" in one:
            length = int(one["attention_mask"].sum())
            one = {name: array[:, :length] for name, array in one.items()}
        rows.append(session.run(one)[0])
    return np.concatenate(rows)


@cache
def code_digest() -> str:
    """Of the code that a case depends on."""
    home, sha = Path(gossamer.__file__).parent, hashlib.sha256()
    for path in sorted([home / "solving.py", *(path for room in ROOMS for path in (home / room).rglob("*.py"))]):
        sha.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:8]


def constrained(constraint: str, solver: str) -> Step:
    """The step that puts every weight under a constraint; computed in float, so that only weights differ."""
    form = "cast" if "grid" in constraint else "fastest"
    config = {"constraint": constraint, "form": form, **SOLVERS[solver]}
    return Step("constrain_weights", config)


def in_a_way(steps: Sequence[Step], way: str) -> list[Step]:
    """The same constraints with another solver, and biases corrected behind it where the way says so."""
    solver, _, then = way.partition("+")
    solved = [replace(step, config={**step.config, **SOLVERS[solver]}) for step in steps]
    return [*solved, CORRECT] if then == "bias" else solved


def row(net: Net, name: str, made: Made, nearest: Made | None = None) -> str:
    """A line of a table; what is left of the nearest point's noise and disagreement, where that is given."""
    if made.outputs is None:
        return f"| {name} | failed: {' '.join(made.facts['notes'])} | | | | | | |"
    agree = made.outputs.argmax(-1) == net.original.argmax(-1)
    low, high = wilson(int(agree.sum()), len(agree))
    left = ("", "")
    if nearest is not None and nearest.outputs is not None:
        noise = _noise(made.outputs, net.original) / max(_noise(nearest.outputs, net.original), 1e-30)
        others = (nearest.outputs.argmax(-1) != net.original.argmax(-1)).sum()
        left = (f"{noise:.2f}", f"{(~agree).sum()} of {others}")
    return (
        f"| {name} | {judge.snr_db(made.outputs, net.original):.1f} | {agree.mean():.3f} ({low:.3f}-{high:.3f}) | "
        f"{accuracy(net, made.outputs)} | {left[0]} | {left[1]} | {made.facts['bytes'] / 1e6:.2f} | "
        f"{made.facts['cpu_s']:.0f} |"
    )


def accuracy(net: Net, outputs: np.ndarray) -> str:
    """Share of right answers, and its change against float with the interval of paired samples."""
    if net.labels is None:
        return "-"
    right, before = (
        (each.argmax(-1)[:, None] == net.labels.reshape(len(each), -1)).any(1) for each in (outputs, net.original)
    )
    low, high = matched_pairs(int((right & ~before).sum()), int((before & ~right).sum()), len(right))
    return f"{right.mean():.3f}, {right.mean() - before.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _noise(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(got.astype(np.float64) - expected).sum())
