"""Gossamer's side of the records bench: pruned in rounds, shared, trained within both, and packed.

Weights go by one score over all layers, at the nearest: what training makes of the rest later outweighs what second
order gains at once (of LeNet-300-100 on validation images, and at a tenth of the time).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import gossamer
import training_cases
from gossamer.constraints.contract import as_text
from gossamer.constraints.sparse import Sparse
from gossamer.graph.edit import constant
from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.passes.contract import run, run_plan
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.in_form import Course, Outcome, train_in_form
from gossamer.training.lessons import Lessons
from gossamer.training.options import Options
from gossamer.training.spread import aims_by_layer
from gossamer.training.teacher import Voice
from gossamer.training.teaching import Distillation, Parts, Student, teach
from gossamer.training.watching import Watch
from records_files import Made, made_once, write_facts
from records_nets import Precision
from training_nets import Part

CALIBRATION = 1_000
BATCH = 64
FLOAT_BITS = 5  # of biases and tables
FINISH = (
    Step("round_floats", {"bits": FLOAT_BITS}),
    Step("fold_constants", {"growth_bytes": 1 << 30}),  # an archive stores few values smaller than indices and tables
    Step("remove_dead_channels"),
)
TRAINED_BY = ("arith", "constraints", "graph", "solvers", "training", "passes/constrain_weights.py", "solving.py")


@dataclass(frozen=True)
class Task:
    """What is made small.

    Attributes:
        name: for messages.
        dense: the network's file, in float; it teaches what is made of it.
        learn, choose: what trains, and what chooses epochs and settings.
        densities: shares of all weights that stay, round by round.
        rates: of training after a removal, and of shared values.
        epochs: the same.
        batch, precision, average: of both, see `Options`.
        beside: further networks that teach; the mean of all teaches.
    """

    name: str
    dense: Path
    learn: Part
    choose: Part
    densities: tuple[float, ...]
    rates: tuple[float, float]
    epochs: tuple[int, int]
    seed: int
    batch: int = BATCH
    precision: Precision = "float32"
    average: float = 0.0
    beside: tuple[Path, ...] = ()

    def key(self) -> list[object]:
        """What everything made of it depends on."""
        how = (self.batch, self.precision, self.average)
        files = [training_cases.digest_of(file) for file in (self.dense, *self.beside)]
        return [files, self.images, how, self.seed, recipe()]

    @cached_property
    def images(self) -> str:
        """A digest of all images."""
        return digest_of(self.learn) + digest_of(self.choose)

    def said(self, part: Part) -> list[Voice]:
        """What its teachers say of images."""
        return [Voice(said_once(file, part)) for file in (self.dense, *self.beside)]


def pruned(task: Task, rung: int) -> Made:
    """So many rounds of removal, each trained."""

    def fill(folder: Path) -> None:
        begin = time.process_time()
        model = normalise(read(task.dense if rung == 0 else pruned(task, rung - 1).path))
        evidence = evidence_of(task)
        aims = aims_by_layer(model, Sparse(ratio=1 - task.densities[rung]), evidence)
        config = {"solver": "nearest", "by_layer": {node: as_text(aim) for node, aim in aims.items()}}
        sparse = run(Step("constrain_weights", {"constraint": "sparse:0.5", **config}), model, evidence).model
        outcome = taught(task, sparse, task.rates[0], task.epochs[0])
        save(outcome.model, folder / "model.onnx")
        best = outcome.trained.best_epoch
        right = training_cases.accuracy(folder / "model.onnx", task.choose)
        told = {"validation": right, "best": best, "ratios": {node: aim.ratio for node, aim in aims.items()}}
        write_facts(folder, {**told, "cpu_s": time.process_time() - begin})
        training_cases.tell(f"{task.name} {task.densities[rung]:.2%}: {right:.2%}, epoch {best}")

    return made_once("pruned", [*task.key(), task.densities[: rung + 1], task.rates[0], task.epochs[0]], fill)


def shared(task: Task, rung: int, share: str) -> Made:
    """Values shared behind so many rounds, and trained; without a share what the rounds left."""
    if not share:
        return pruned(task, rung)

    def fill(folder: Path) -> None:
        begin, model = time.process_time(), normalise(read(pruned(task, rung).path))
        zeros = {uses[0].node.name or "": share_of_zeros(uses[0].value) for uses in weights_of(model).values()}
        by_layer = {node: f"sparse:{ratio:.6f}+{share}" if ratio else share for node, ratio in zeros.items()}
        config = {"constraint": share, "solver": "nearest", "by_layer": by_layer}
        coded = run(Step("constrain_weights", config), model, evidence_of(task)).model
        outcome = taught(task, coded, task.rates[1], task.epochs[1])
        save(outcome.model, folder / "model.onnx")
        write_facts(folder, {"best": outcome.trained.best_epoch, "cpu_s": time.process_time() - begin})

    key = [*task.key(), task.densities[: rung + 1], task.rates, task.epochs, share]
    return made_once("shared", key, fill)


def packed(task: Task, rung: int, share: str) -> Made:
    """The same, rounded, folded, without dead channels, and packed: `model.goss` lies beside `model.onnx`."""
    made = shared(task, rung, share)
    before = {one.folder: one.facts["cpu_s"] for one in (*(pruned(task, each) for each in range(rung + 1)), made)}

    def fill(folder: Path) -> None:
        begin = time.process_time()
        model = normalise(read(made.path))
        steps = FINISH if share else FINISH[1:]
        write_light(run_plan(Plan("finish", steps), model).model, folder / "model.onnx")
        found = gossamer.pack_file(folder / "model.onnx", folder / "model.goss").bytes
        told = {"bytes": found.archive, "graph": found.archive - found.tensors, "density": task.densities[rung]}
        right = training_cases.accuracy(folder / "model.onnx", task.choose)
        spent = time.process_time() - begin + sum(before.values())
        write_facts(folder, {**told, "validation": right, "cpu_s": spent})
        training_cases.tell(f"  {task.name} {task.densities[rung]:.2%} {share}: {right:.2%}, {told}")

    return made_once("packed", [made.folder.name, [step.key() for step in FINISH], training_cases.code_digest()], fill)


def taught(task: Task, model: Model, rate: float, epochs: int) -> Outcome:
    """As `train_model` trains, by labels and the dense net, but that the validation part chooses the epoch."""
    parts = [samples_of(part, model) for part in (task.learn, task.choose)]
    options = Options(
        epochs=epochs,
        batch=task.batch,
        rate=rate,
        seed=task.seed,
        device="cpu",
        precision=task.precision,
        average=task.average,
    )
    student, watch = Student(model, open_session(model, 1)), Watch(say=lambda _: None)
    how = Distillation(), options, watch.say
    learn, choose = (
        teach(student, Parts(samples, samples, samples, samples, True), task.said(part), *how)
        for part, samples in zip((task.learn, task.choose), parts, strict=True)
    )
    lessons = Lessons(parts[0], learn.learn), Lessons(parts[1], choose.choose)
    return train_in_form(model, Course(learn.losses, (), *lessons, None, watch), options, sparse=True)


def said_once(file: Path, part: Part) -> np.ndarray:
    """A network's logits; they lie beside it."""
    kept = file.with_name(f"{file.stem}-said-{digest_of(part)[:12]}.npy")
    if not kept.exists():
        np.save(kept, training_cases.logits(file, part.image))
    return np.asarray(np.load(kept))


def digest_of(part: Part) -> str:
    return hashlib.sha256(part.image.tobytes()).hexdigest()


def samples_of(part: Part, model: Model) -> Samples:
    """As samples of a model's one input."""
    return samples_from_arrays({next(iter(model.ir.graph.inputs)).name or "": part.image}, part.labels)


def evidence_of(task: Task) -> Evidence:
    """What scores are taken from."""
    return Evidence(samples_from_arrays({"image": task.learn.image[:CALIBRATION]}))


# --- each layer's share of zeros


def weights_of(model: Model) -> dict[str, tuple[WeightMatrix, ...]]:
    return matrices_by_weight(model.ir.graph)


def share_of_zeros(value: ir.Value) -> float:
    return float(np.mean(np.asarray(constant(value)) == 0))


# --- files


def write_light(model: Model, path: Path) -> None:
    """Save a file without the shapes of inner values, which every runtime infers itself: a tenth of a kilobyte."""
    save(model, path)
    file = onnx.load(path)
    del file.graph.value_info[:]
    onnx.save(file, path)


@cache
def recipe() -> str:
    """The code that pruned and shared networks depend on."""
    home, sha = Path(gossamer.__file__).parent, hashlib.sha256(Path(__file__).read_bytes())
    for part in TRAINED_BY:
        for path in [home / part] if part.endswith(".py") else sorted((home / part).rglob("*.py")):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


def chosen(candidates: Sequence[str], made: Callable[[str], Made], tolerance: float) -> str:
    """The fewest bytes among those that lose no more validation accuracy to the best."""
    facts = {one: made(one).facts for one in candidates}
    floor = max(each["validation"] for each in facts.values()) - tolerance
    return min((one for one in candidates if facts[one]["validation"] >= floor), key=lambda one: facts[one]["bytes"])
