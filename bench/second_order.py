"""Second-order compression beside the nearest point: weights only, activations in float.

    python bench/second_order.py [--nets demo,digits,lite0,minilm] [--parts bits,sparse,codebook,corrected,eighth]
                                 [--solvers nearest,second_order,sequential] [--only grid:4,sparse:2:4]

- bits, sparse, codebook: every weight of the network under one constraint, as each solver does it.
- corrected: EfficientNet-Lite0 at 4 bits a channel, with what stands before and behind the solver.
- eighth: whole networks at 1/8 of their float bytes, mixed by the ledger, beside uniform constraints.

What is judged lies in `judge.npz`, which no solver saw; solvers see at most 300 samples of `data.npz`. Noise, agreement
and accuracy repeat to the digit; seconds are processor seconds of one thread, taken beside whatever else ran.
Every case is kept in the cache under the digest of model, samples, steps and code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

import fetch
import gallery
import gossamer
import judge
import second_order_nets
from gossamer.constraints.contract import constraint_from_text
from gossamer.errors import GossamerError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.intervals import matched_pairs, wilson
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan, Step, plan_from_yaml
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning.budgeted import fitted
from gossamer.planning.candidates import CLEAN
from gossamer.planning.ledger import Entry, ledger
from gossamer.runtimes.onnxruntime import open_session

SAMPLES = 300
NETS = ("demo", "digits", "lite0", "minilm")
CONSTRAINTS = {
    "bits": [f"grid:{bits}" for bits in (8, 6, 5, 4, 3, 2)],
    "sparse": [*(f"sparse:{ratio}" for ratio in (0.5, 0.7, 0.9, 0.95)), "sparse:2:4"],
    "codebook": ["codebook:32", "codebook:16"],
}
SOLVERS: dict[str, dict[str, Any]] = {
    "nearest": {"solver": "nearest"},
    "second_order": {"solver": "second_order"},
    "sequential": {"solver": "second_order", "sequential": True},
}
GRIDS = [f"grid:{bits}" for bits in (2, 3, 4, 5, 6, 8)]
MENUS = {
    "grids": GRIDS,
    "grids and codebooks": [*GRIDS, "codebook:4:channel", "codebook:8", "codebook:16", "codebook:32"],
}
UNIFORM = ("grid:2", "grid:3", "grid:4", "codebook:8", "codebook:16")
LEDGER_S = 900.0
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
    def entries(self) -> tuple[Entry, ...]:
        """What every weight could become, for the mixed plans."""
        texts = dict.fromkeys(text for menu in MENUS.values() for text in menu)
        return ledger(self.clean, self.evidence, [constraint_from_text(text) for text in texts], budget_s=LEDGER_S)

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
    for path in sorted(path for room in ROOMS for path in (home / room).rglob("*.py")):
        sha.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:8]


def constrained(constraint: str, solver: str) -> Step:
    """The step that puts every weight under a constraint; computed in float, so that only weights differ."""
    form = "cast" if "grid" in constraint else "fastest"
    config = {"constraint": constraint, "form": form, **SOLVERS[solver]}
    return Step("constrain_weights", config)


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


def side_by_side(net: Net, part: str, constraints: Iterable[str], solvers: Sequence[str]) -> None:
    """One table: every constraint, every solver."""
    print(f"### {net.name}, {part}, judged on {len(net.original)} samples\n\n{HEAD}\n" + 8 * "|---" + "|")
    for constraint in constraints:
        nearest = net.made([constrained(constraint, "nearest")])
        for solver in solvers:
            made = nearest if solver == "nearest" else net.made([constrained(constraint, solver)])
            print(row(net, f"{constraint} {solver}", made, None if solver == "nearest" else nearest), flush=True)
    print()


def corrected(net: Net) -> None:
    """4 bits a channel: what each part of the whole brings."""
    print(f"### {net.name}, grid:4 and what stands around it\n\n{HEAD}\n" + 8 * "|---" + "|")
    nearest = net.made([constrained("grid:4", "nearest")])
    equalize, correct = Step("equalize_channels"), Step("correct_bias", {"statistics": "sequential"})
    for solver in SOLVERS:
        step = constrained("grid:4", solver)
        cases = {"": [step], ", bias": [step, correct], ", equalized": [equalize, step]}
        cases[", equalized, bias"] = [equalize, step, correct]
        for name, steps in cases.items():
            print(row(net, solver + name, net.made(steps), nearest), flush=True)
    print()


def eighth(net: Net) -> None:
    """1/8 of the float file's bytes: what the ledger mixes, one shot and sequential, and constraints for all alike."""
    limit = net.work.model.stat().st_size / 8
    print(f"### {net.name} within {limit / 1e6:.3f} MB, 1/8 of its float bytes\n\n{HEAD}\n" + 8 * "|---" + "|")
    for menu in MENUS:
        steps = _mixed(net, menu, limit)
        for solver in ("nearest", "second_order", "sequential"):
            made = net.made([replace(step, config={**step.config, **SOLVERS[solver]}) for step in steps])
            print(row(net, f"mixed from {menu}, {solver}", made), flush=True)
    for constraint in UNIFORM:
        made = net.made([constrained(constraint, "second_order")])
        over = " (too large)" if made.facts.get("bytes", 0) > limit else ""
        print(row(net, f"all {constraint}, second_order{over}", made), flush=True)
    print()


def _mixed(net: Net, menu: str, limit: float) -> tuple[Step, ...]:
    """The plan that the ledger leads to, from the cache or found now."""
    kept = net.folder / f"mixed-{menu.replace(' ', '-')}-{code_digest()}.yaml"
    if not kept.exists():
        allowed = {constraint_from_text(text) for text in MENUS[menu]}
        entries = [
            entry._replace(options=tuple(one for one in entry.options if one.constraint in {None, *allowed}))
            for entry in net.entries
        ]
        config = {"solver": "second_order", "form": "cast"}
        other_bytes = len(to_bytes(net.clean)) - sum(entry.options[0].stored_bytes for entry in entries)
        found = fitted(entries, limit, other_bytes, Plan("none"), config, menu, partial(_size_of, net))
        kept.write_text(found.plan.to_yaml())
        print(f"{net.name}, {menu}: predicted noise {found.allocation.loss:.4g}", file=sys.stderr, flush=True)
    return plan_from_yaml(kept.read_text()).steps


def _size_of(net: Net, plan: Plan) -> int:
    """Bytes of the file; the nearest point has as many as any other."""
    steps = tuple(replace(step, config={**step.config, "solver": "nearest"}) for step in plan.steps)
    return len(to_bytes(run_plan(Plan("size", steps), net.clean).model))


def main() -> None:
    """Each network's tables in turn."""
    arguments = parsed()
    print(judge.header(f"python bench/second_order.py --nets {arguments.nets} --parts {arguments.parts}"), flush=True)
    only = set(filter(None, arguments.only.split(",")))
    for name in arguments.nets.split(","):
        net = Net(name)
        for part in arguments.parts.split(","):
            if part in CONSTRAINTS:
                chosen = [one for one in CONSTRAINTS[part] if not only or one in only]
                side_by_side(net, part, chosen, arguments.solvers.split(","))
            elif part == "corrected" and name == "lite0":
                corrected(net)
            elif part == "eighth" and name in ("lite0", "minilm"):
                eighth(net)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--parts", default="bits,sparse,codebook,corrected,eighth")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--only", default="", help="constraints, of those of the parts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
