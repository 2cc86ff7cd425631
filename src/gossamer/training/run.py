"""A training run: what it is to do, where it is, and how it is kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from gossamer.training import checkpoints
from gossamer.training.averages import State, load, snapshot
from gossamer.training.checkpoints import Identity, Place
from gossamer.training.lessons import Lessons
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil
from gossamer.training.watching import Watch

SAVE_S = 60.0  # between checkpoints within an epoch
FEW = 16  # samples that tell one teacher from another


@dataclass(frozen=True)
class Job:
    """What training is to do.

    Attributes:
        pupil: the student, any `nn.Module` that takes the samples' columns in order and gives a tensor or a tuple of
            them, first axis the batch; and the losses to lessen. It is trained in place.
        data: to learn from.
        validation: other samples, which choose the epoch that is kept, and so not those that the result is reported on.
        options: how to train.
        checkpoint: a file that is written now and then, and that a killed run goes on from; None for none.
        watch: whom to tell.
        save_s: seconds between checkpoints within an epoch; each epoch ends with one.
        name: of the model, for messages.
    """

    pupil: Pupil
    data: Lessons
    validation: Lessons
    options: Options = Options()  # noqa: RUF009  # frozen, so it can be shared
    checkpoint: Path | None = None
    watch: Watch = Watch()  # noqa: RUF009
    save_s: float = SAVE_S
    name: str = "the model"


@dataclass
class Run:
    """Training under way, in one process.

    Attributes:
        fabric: the engine.
        job: what to do.
        wrapped: the pupil as the engine calls it, with precision and other processes.
        optimizer: of all that takes a gradient.
        place: where the run is.
        average: moving average of the student's values, if asked for.
        best: the student's values that validated best so far.
        identity: what a checkpoint must agree with; None without one.
    """

    fabric: Any
    job: Job
    wrapped: Any
    optimizer: Optimizer
    place: Place
    average: State | None
    best: State
    identity: Identity | None


def begin(fabric: Any, job: Job) -> Run:
    """A run at its first step; the pupil is on the engine's device, in training mode."""
    identity = None if job.checkpoint is None else identify(job)
    optimizer = build_optimizer(job.pupil, job.options)
    wrapped, engaged = fabric.setup(job.pupil, optimizer)
    student = job.pupil.student
    average = snapshot(student) if job.options.average else None
    job.pupil.train()
    return Run(fabric, job, wrapped, engaged, Place(job.options.batch), average, snapshot(student), identity)


def build_optimizer(pupil: nn.Module, options: Options) -> Optimizer:
    """The optimizer of all parameters that take a gradient; vectors and numbers do not decay.

    A parameter that has an attribute `rate_ratio` gets that share of the learning rate, see `set_rate`.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in pupil.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim <= 1, getattr(parameter, "rate_ratio", 1.0)), []).append(parameter)
    used = [
        {"params": members, "weight_decay": 0.0 if is_vector else options.decay, "ratio": ratio}
        for (is_vector, ratio), members in sorted(groups.items(), key=lambda item: item[0])
    ]
    if options.optimizer == "sgd":
        return SGD(used, lr=0.1, momentum=0.9, nesterov=True)
    return AdamW(used, lr=1e-3)


def save(run: Run) -> None:
    """Write the checkpoint, if one is kept; of several processes the first does."""
    path, identity = run.job.checkpoint, run.identity
    if path is None or identity is None or not run.fabric.is_global_zero:
        return
    parts = {
        "pupil": run.job.pupil.state_dict(),
        "optimizer": checkpoints.optimizer_state(run.optimizer),
        "best": run.best,
        "average": run.average or {},
    }
    if any(not torch.isfinite(value).all() for value in parts["pupil"].values() if value.is_floating_point()):
        return  # the last good one stays; the next step will say which layer it is
    texts = {"identity": msgspec.json.encode(identity).decode(), "place": msgspec.json.encode(run.place).decode()}
    checkpoints.write(path, checkpoints.joined(parts), texts)


def resume(run: Run) -> bool:
    """Go on from the checkpoint, if there is one.

    Raises:
        ModelError: it is damaged, or of another run; the text says in what they differ.
    """
    path, identity = run.job.checkpoint, run.identity
    if path is None or identity is None or not path.exists():
        return False
    state, texts = checkpoints.read(path)
    checkpoints.check_identity(path, texts.get("identity", ""), identity)
    place = msgspec.json.decode(texts["place"], type=Place)
    load(run.job.pupil, checkpoints.part(state, "pupil"))
    checkpoints.load_optimizer(run.optimizer, checkpoints.part(state, "optimizer"))
    device = run.fabric.device
    run.best = {name: value.to(device) for name, value in checkpoints.part(state, "best").items()}
    if run.average is not None:
        run.average = {name: value.to(device) for name, value in checkpoints.part(state, "average").items()}
    run.place = place
    if run.fabric.is_global_zero:
        run.job.watch.say(f"going on from {path.name}: epoch {place.epoch + 1}, step {place.step + 1}")
    return True


def identify(job: Job) -> Identity:
    """What the run is, before its first step."""
    pupil = job.pupil
    shares = zip(pupil.losses, pupil.weights, strict=True)
    losses = ", ".join(f"{weight:g} {described(loss)}" for loss, weight in shares)
    digests = [data_digest(lessons) for lessons in (job.data, job.validation)]
    version = f"torch {torch.__version__}"
    penalties = "" if pupil.penalties is None else pupil.penalties.described()
    removal = "" if pupil.shaper is None else pupil.shaper.described()
    student = checkpoints.digest(pupil.student)
    return Identity(student, digests[0], digests[1], losses, job.options, version, penalties, removal)


def described(loss: nn.Module) -> str:
    """A loss's name and its settings."""
    settings = {name: value for name, value in vars(loss).items() if not name.startswith("_") and name != "training"}
    return f"{type(loss).__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"


def data_digest(lessons: Lessons) -> str:
    """Of the samples, and of what is taught about the first of them."""
    sha = hashlib.sha256(lessons.samples.digest().encode())
    for piece in lessons.pieces(np.arange(min(FEW, len(lessons))), FEW):
        for taught in piece.taught:
            sha.update(taught.numpy().tobytes())
    return sha.hexdigest()
