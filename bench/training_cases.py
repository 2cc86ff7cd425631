"""What the training bench makes, each thing once into the cache: networks in float, quantized, trained; students.

A thing lies under $GOSSAMER_BENCH_CACHE/training/KIND-KEY; the key is a digest of all that determines it, code too, so
that a bench that was cut short goes on where it was (`train_model` even within an epoch).
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fetch
import gossamer
import training_nets
import training_peer
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import save
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.command import train_model
from gossamer.training.lower import lower
from gossamer.training.options import Options
from gossamer.training.teaching import Distillation
from gossamer.training.twin import twin
from gossamer.training.watching import Watch
from training_nets import Part

CALIBRATION = 512
BATCH = 64
STUDENT_BATCH = 128
ROOMS = ("arith", "constraints", "graph", "passes", "solvers", "training")  # what a result depends on


@dataclass(frozen=True)
class Effort:
    """How much of everything: epochs and images of training in float, of fine-tuning and of students; rates tried."""

    float_epochs: int
    float_samples: int
    tune_epochs: int
    tune_samples: int
    student_epochs: int
    student_samples: int
    tune_rates: tuple[float, ...] = (1e-3, 3e-3)
    student_rates: tuple[float, ...] = (3e-3, 1e-2)
    validation: int = training_nets.VALIDATION
    test: int = 10_000


FULL = Effort(7, 55_000, 2, 12_000, 3, 30_000)
QUICK = Effort(2, 8_000, 1, 1_500, 1, 3_000, (1e-3,), (3e-3,), 1_000, 2_000)


@dataclass(frozen=True)
class Case:
    """A network from a seed."""

    net: str
    seed: int
    effort: Effort


@dataclass(frozen=True)
class Made:
    """A file, and what is known of it.

    Attributes:
        facts: cpu_s, and of a file that was trained validation, the accuracy that rates are chosen by.
    """

    path: Path
    facts: dict[str, Any]


# --- made once


def floated(case: Case) -> Made:
    """Trained in float by torch, and exported with its norms folded; `state.pt` beside it has them."""

    def fill(folder: Path) -> None:
        begin = time.process_time()
        net, scores = training_nets.trained(case.net, case.seed, case.effort.float_epochs, case.effort.float_samples)
        torch.save(net.state_dict(), folder / "state.pt")
        save(gossamer.load_torch(net, torch.zeros(2, 1, 28, 28)), folder / "model.onnx")
        write_facts(folder, {"cpu_s": time.process_time() - begin, "validation": max(scores), "scores": scores})

    effort = case.effort
    return made_once(
        "float",
        [case.net, case.seed, effort.float_epochs, effort.float_samples, training_nets.HALVED, nets_script()],
        fill,
    )


def quantized(case: Case, bits: int) -> Made:
    """Post-training, weights rounded together for the least error, biases corrected."""
    steps = (Step("quantize_static", {"weight_bits": bits, "rounding": "second_order"}), Step("correct_bias"))
    return quantized_by(floated(case).path, steps, training_nets.data().train.image[:CALIBRATION])


def quantized_by(source: Path, steps: tuple[Step, ...], images: np.ndarray) -> Made:
    """Constants and norms folded, then these steps.

    Raises:
        GossamerError: a step refuses.
    """
    key = [digest_of(source), hashlib.sha256(images.tobytes()).hexdigest()]

    def fill(folder: Path) -> None:
        begin = time.process_time()
        evidence = Evidence(samples_from_arrays({"image": images}))
        applied = run_plan(Plan("static", (*CLEAN.steps, *steps)), normalise(read(source)), evidence)
        save(applied.model, folder / "model.onnx")
        write_facts(folder, {"cpu_s": time.process_time() - begin, "notes": list(applied.notes)})

    return made_once("ptq", [*key, *(step.key() for step in (*CLEAN.steps, *steps)), code_digest()], fill)


def tuned(case: Case, bits: int, rate: float) -> Made:
    """Quantization-aware training with Gossamer, of what `quantized` gave, taught by the float network alone."""
    effort = case.effort
    options = Options(epochs=effort.tune_epochs, batch=BATCH, rate=rate, seed=case.seed, device="cpu")
    samples, verify = part_file("train", effort.tune_samples, False), part_file("validation", effort.validation)
    return trained_by("qat", quantized(case, bits).path, samples, options, floated(case).path, verify=verify)


def our_steps(case: Case, bits: int) -> dict[str, float]:
    """The same of the twin of a quantized file."""
    net = training_nets.build(case.net, case.seed).train()
    module = lower(twin(normalise(read(quantized(case, bits).path)))).train()
    part = training_nets.data().train.take(slice(BATCH))
    taught = logits(floated(case).path, part.image)
    return training_peer.in_turns(net, module, part.image, part.labels, taught)


def begun(net: str, seed: int) -> Path:
    """A network before training, with its norms, in ONNX."""

    def fill(folder: Path) -> None:
        module = training_nets.build(net, seed)
        save(gossamer.load_torch(module, torch.zeros(2, 1, 28, 28), keep_batchnorm=True), folder / "model.onnx")
        write_facts(folder, {})

    return made_once("begun", [net, seed, nets_script()], fill).path


def student(case: Case, losses: Sequence[str], rate: float, teacher: Path | None, batch: int = STUDENT_BATCH) -> Made:
    """A network trained from nothing by Gossamer, in ONNX from the start; norms are folded in the end."""
    effort = case.effort
    options = Options(epochs=effort.student_epochs, batch=batch, rate=rate, seed=case.seed, device="cpu", decay=5e-4)
    samples, verify = part_file("train", effort.student_samples), part_file("validation", effort.validation)
    made = trained_by("student", begun(case.net, case.seed), samples, options, teacher, tuple(losses), verify)
    return folded(made)


def folded(made: Made) -> Made:
    """With its norms folded into the layers before them."""
    path = made.path.with_name("folded.onnx")
    if not path.exists():
        save(run_plan(CLEAN, normalise(read(made.path))).model, path)
    return Made(path, made.facts)


def trained_by(
    kind: str,
    source: Path,
    samples: Path,
    options: Options,
    teacher: Path | None,
    losses: tuple[str, ...] = (),
    verify: Path | None = None,
    head: int | None = None,
) -> Made:
    """`train_model`, as `gossamer train` calls it; a tenth of the samples chooses the epoch.

    Args:
        verify: see `train_model`'s `data`; its accuracy is what rates are chosen by.

    Raises:
        GossamerError: it refuses.
    """
    files = [source, samples, *([] if teacher is None else [teacher]), *([] if verify is None else [verify])]
    key = [[digest_of(file) for file in files], teacher is None, repr(options), losses, code_digest()]
    folder = _place(kind, key if head is None else [*key, head])
    facts = folder / "facts.json"
    if not facts.exists():
        tell(f"{folder.name}: from {source.parent.name}, rate {options.rate or 'found'} {' '.join(losses)}")
        begin = time.process_time()
        summary = train_model(
            source,
            samples,
            folder,
            teacher=teacher,
            distillation=Distillation(losses=losses),
            options=options,
            data=verify,
            watch=Watch(say=tell),
            head=head,
        )
        epochs = [epoch.right for epoch in summary.trained.epochs]
        told = {"cpu_s": time.process_time() - begin, "epochs": epochs, "best": summary.trained.best_epoch}
        write_facts(folder, {**told, "rate": summary.trained.rate, "validation": summary.accuracy.result})
    return Made(folder / "model.onnx", json.loads(facts.read_text()))


def part_file(name: str, count: int, labelled: bool = True) -> Path:
    """The first images of a part as a file, as users have them, with labels or without."""

    def fill(folder: Path) -> None:
        part: Part = getattr(training_nets.data(), name)
        labels = {"labels": part.labels[:count]} if labelled else {}
        np.savez(folder / "samples.npz", image=part.image[:count], **labels)

    return once("data", [name, count, nets_script(), *([] if labelled else ["unlabelled"])], fill) / "samples.npz"


# --- judged


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Of a file in onnxruntime, a hundred images at a time."""
    session = open_session(path)
    name = next(iter(session.inputs))
    parts = [session.run({name: images[at : at + 100]})[0] for at in range(0, len(images), 100)]
    return np.concatenate(parts)


def accuracy(path: Path, part: Part) -> float:
    """Top-1."""
    return float(np.mean(logits(path, part.image).argmax(1) == part.labels))


def hits(made: Made, effort: Effort) -> np.ndarray:
    """Which test images a file gets right (N,) bool."""
    kept = made.path.with_name(f"{made.path.stem}-hits-{effort.test}.npy")
    if not kept.exists():
        part = training_nets.data().test.take(slice(effort.test))
        np.save(kept, logits(made.path, part.image).argmax(1) == part.labels)
    return np.asarray(np.load(kept))


def best_rate(made: Callable[[float], Made], rates: Sequence[float]) -> float:
    """The one whose result is most accurate on validation."""
    return max(rates, key=lambda rate: float(made(rate).facts["validation"])) if len(rates) > 1 else rates[0]


def validation(effort: Effort) -> Part:
    return training_nets.data().validation.take(slice(effort.validation))


# --- the cache


def tell(line: str) -> None:
    """Progress, away from the tables."""
    print(line, file=sys.stderr, flush=True)


def once(kind: str, key: Sequence[object], fill: Callable[[Path], None]) -> Path:
    """A folder that is filled at first use; work cut short or failed leaves none behind."""
    return fetch.once(f"training/{_place(kind, key).name}", fill)


def made_once(kind: str, key: Sequence[object], fill: Callable[[Path], None]) -> Made:
    """The same, with `model.onnx` and `facts.json` in it."""
    if not _place(kind, key).exists():
        tell(_place(kind, key).name)
    folder = once(kind, key, fill)
    return Made(folder / "model.onnx", json.loads((folder / "facts.json").read_text()))


def _place(kind: str, key: Sequence[object]) -> Path:
    return fetch.cache() / "training" / f"{kind}-{hashlib.sha256(repr(list(key)).encode()).hexdigest()[:12]}"


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "facts.json").write_text(json.dumps(facts))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def nets_script() -> str:
    """Networks, splits and their training."""
    return Path(training_nets.__file__).read_text()


@cache
def code_digest() -> str:
    """Of the code that a result depends on."""
    home, sha = Path(gossamer.__file__).parent, hashlib.sha256()
    for path in sorted([home / "solving.py", *(path for room in ROOMS for path in (home / room).rglob("*.py"))]):
        sha.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:8]
