"""Who teaches what: the teacher that was given, losses that suit it, and what it gives for each part of the samples."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import nn

from gossamer.errors import DataError, OptionError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.fetching import with_outputs
from gossamer.measuring.machine import available_cores
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.training import teacher as teachers
from gossamer.training.hints import propose
from gossamer.training.lessons import Taught
from gossamer.training.losses.features import Features, Hint
from gossamer.training.losses.hard_labels import HardLabels
from gossamer.training.losses.outputs import Outputs
from gossamer.training.losses.soft_labels import SoftLabels, are_probabilities
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss

LOSSES = ("hard_labels", "soft_labels", "features", "outputs")
STORED = (".npy", ".npz")
ALPHA = 0.9  # the teacher's share beside labels; Hinton et al. gave the labels much the lower weight


class Distillation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is lessened.

    Attributes:
        losses: of `LOSSES`; empty takes those that suit: `hard_labels` without a teacher; with one `soft_labels` for
            classifiers, else `outputs`.
        temperature: of soft labels.
        alpha: the teacher's share where there are labels too; None is 0.9 with labels and 1 without.
    """

    losses: tuple[str, ...] = ()
    temperature: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        for name in self.losses:
            if name not in LOSSES:
                near = get_close_matches(name, LOSSES, 1)
                hint = f", did you mean {near[0]}?" if near else ";"
                raise OptionError(f"loss {name!r} is unknown{hint} allowed are {', '.join(LOSSES)}")


class Student(NamedTuple):
    """A model that is to learn, and it opened in the runtime."""

    model: Model
    session: Session


class Parts(NamedTuple):
    """Samples bound to the student.

    Attributes:
        everything: as they were read; `learn` and `choose` are of it.
        learn, choose, verify: what trains, what chooses the epoch, and what the result is measured on.
        apart: `verify` was read from elsewhere.
    """

    everything: Samples
    learn: Samples
    choose: Samples
    verify: Samples
    apart: bool


class Teaching(NamedTuple):
    """What training lessens, ready.

    Attributes:
        graph: the student's, with its hints as further outputs.
        losses: with their shares.
        learn, choose, verify: what the teacher gives for these samples; None without one.
        name: the teacher's; empty without one.
    """

    graph: Model
    losses: tuple[WeightedLoss, ...]
    learn: Taught | None
    choose: Taught | None
    verify: Taught | None
    name: str


def teach(
    student: Student,
    parts: Parts,
    teacher: Any,
    wanted: Distillation,
    options: Options,
    say: Callable[[str], None],
) -> Teaching:
    """Choose losses, ask the teacher for all samples once, and pair tensors if features are to be followed.

    Args:
        teacher: None, a path of a model or of outputs (.npy, .npz), a Model, an `nn.Module`, or arrays.

    Raises:
        OptionError: nothing to learn from, or a loss that does not suit what there is.
        DataError, ModelError, CandidateError: the teacher cannot be read or run, or does not fit the student.
    """
    labelled = parts.everything.labels is not None
    feeds = next(parts.learn.first(1).batches(1)).feeds
    given = dict(zip(student.session.outputs, student.session.run(feeds), strict=True))
    names = wanted.losses or _suitable(list(given.values()), teacher is not None, labelled, parts.everything.source)
    model = _as_model(teacher)
    hints = _hints(student.model, model, feeds) if "features" in names else ()
    graph = with_outputs(student.model, [hint.student for hint in hints], "features") if hints else student.model
    losses = _losses(names, list(given.values()), hints, wanted, labelled and teacher is not None, options.seed)
    if teacher is None:
        return Teaching(graph, losses, None, None, None, "")
    threads = available_cores() if options.devices == 1 else 1  # threads do not outlive the copying of a process
    taught = _taught(teacher, model, list(given), hints, parts.everything, threads)
    say("asking the teacher")
    learn, choose = teachers.remembered(taught, parts.learn), teachers.remembered(taught, parts.choose)
    stored = model is None and not isinstance(teacher, nn.Module)
    return Teaching(graph, losses, learn, choose, None if stored and parts.apart else taught, _name_of(teacher, model))


def _suitable(given: list[np.ndarray], taught: bool, labelled: bool, source: str) -> tuple[str, ...]:
    """The losses for what there is to learn from."""
    if not taught and not labelled:
        raise OptionError(
            f"{source} has no labels and there is no teacher, so there is nothing to learn; "
            "give --teacher: another model, or the original that this one was made from"
        )
    if not taught:
        return ("hard_labels",)
    return ("outputs",) if _scores_at(given) is None else ("soft_labels",)


def _losses(
    names: tuple[str, ...],
    given: list[np.ndarray],
    hints: tuple[Hint, ...],
    wanted: Distillation,
    mixed: bool,
    seed: int,
) -> tuple[WeightedLoss, ...]:
    scores = _scores_at(given) or 0
    alpha = wanted.alpha if wanted.alpha is not None else (ALPHA if mixed else 1.0)
    ends_in_softmax = are_probabilities(torch.from_numpy(np.array(given[scores], np.float32)))
    made: list[WeightedLoss] = []
    for name in names:
        if name == "hard_labels":
            made.append(WeightedLoss(HardLabels(scores, probabilities=ends_in_softmax)))
        elif name == "soft_labels":
            made.append(WeightedLoss(SoftLabels(wanted.temperature, alpha, scores, ends_in_softmax)))
        elif name == "outputs":
            made.append(WeightedLoss(Outputs(len(given))))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # of the adapters
                made.append(WeightedLoss(Features(hints)))
    return tuple(made)


def _scores_at(given: list[np.ndarray]) -> int | None:
    """Which output has the scores of classes (B, C); None where none has."""
    shaped = (index for index, array in enumerate(given) if array.ndim == 2 and array.shape[1] > 1)
    return next((index for index in shaped if given[index].dtype.kind == "f"), None)


def _hints(student: Model, teacher: Model | None, feeds: dict[str, np.ndarray]) -> tuple[Hint, ...]:
    if teacher is None:
        raise OptionError("loss features needs a teacher that is an ONNX model, whose inner tensors can be seen")
    return propose(student, teacher, feeds)


def _as_model(teacher: Any) -> Model | None:
    """The teacher as a graph, if it is one."""
    if isinstance(teacher, (str, Path)) and Path(teacher).suffix.lower() not in STORED:
        return normalise(read(teacher))
    return normalise(teacher) if isinstance(teacher, Model) else None


def _taught(
    teacher: Any, model: Model | None, outputs: list[str], hints: tuple[Hint, ...], samples: Samples, threads: int
) -> Taught:
    if model is not None:
        return teachers.from_model(model, outputs, [hint.teacher for hint in hints], threads)
    if isinstance(teacher, nn.Module):
        return teachers.from_module(teacher)
    if isinstance(teacher, (str, Path, np.ndarray)) or _are_arrays(teacher):
        return teachers.from_arrays(teacher, samples)
    raise DataError(
        f"a teacher of type {type(teacher).__name__}; give the path of an ONNX model or of its outputs (.npy, .npz), "
        "an nn.Module, or arrays"
    )


def _are_arrays(teacher: Any) -> bool:
    return isinstance(teacher, (list, tuple)) and all(isinstance(part, np.ndarray) for part in teacher)


def _name_of(teacher: Any, model: Model | None) -> str:
    if model is not None:
        return model.name
    return str(teacher) if isinstance(teacher, (str, Path)) else type(teacher).__name__
