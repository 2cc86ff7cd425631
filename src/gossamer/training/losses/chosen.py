"""The losses that were asked for by name, made for the student and teacher at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import nn

from gossamer.errors import OptionError
from gossamer.training.losses.attention import Attention
from gossamer.training.losses.contrast import Contrast
from gossamer.training.losses.correlation import Correlation
from gossamer.training.losses.decoupled import Decoupled
from gossamer.training.losses.embeddings import Embedding
from gossamer.training.losses.features import Features, Hint
from gossamer.training.losses.hard_labels import HardLabels
from gossamer.training.losses.labelled import ONLY, Column, Labelled
from gossamer.training.losses.outputs import Outputs
from gossamer.training.losses.relations import Relations
from gossamer.training.losses.similarities import Similarities
from gossamer.training.losses.soft_labels import SoftLabels
from gossamer.training.pupil import WeightedLoss
from gossamer.training.tasks import Task, place_of

LOSSES = (
    "hard_labels",
    "soft_labels",
    "features",
    "outputs",
    "attention",
    "relations",
    "similarities",
    "contrast",
    "correlation",
    "decoupled",
)
INSIDE = ("features", "attention")  # follow pairs of inner tensors
AMONG = ("relations", "similarities", "contrast")  # compare samples: by inner tensors if there are pairs, else outputs
OF_SCORES = ("correlation", "decoupled")  # know classes
OF_TASKS = ("hard_labels", "soft_labels", *OF_SCORES)  # one for each task of a model that has several
AT = (*OF_TASKS, "outputs")  # can be asked for at one output


class Wanted(NamedTuple):
    """A loss by name, its weight, of which 1 is what its paper recommends, and the output that it is for, if one is."""

    name: str
    weight: float
    output: str = ""


class Setting(NamedTuple):
    """What losses are made for.

    Attributes:
        scores: which output of the student has the scores of classes (B, C); None where none has.
        outputs: how many outputs it has.
        width: of the output that stands for a sample, where it is (B, D); None where it is not.
        probabilities: the scores come out of a softmax.
        hints: pairs of inner tensors.
        temperature, alpha: of soft labels.
        seed: of the layers that losses bring with them.
        names: of the student's outputs.
        tasks: what is learned at which of them; without any, it is the scores.
    """

    scores: int | None
    outputs: int
    width: int | None
    probabilities: bool
    hints: tuple[Hint, ...]
    temperature: float
    alpha: float
    seed: int
    names: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """What labels speak of."""
        return tuple(Column(task.output, task.column) for task in self.tasks if task.labelled)


def parse(losses: Sequence[str]) -> tuple[Wanted, ...]:
    """Losses as they are spelled: a name, with `@output` if it is for one output alone, and `:weight` if not 1.

    Raises:
        OptionError: an unknown name, one that comes twice, one that is for no single output, or a weight that is not
            above 0.
    """
    wanted = tuple(_parse(spelled) for spelled in losses)
    for index, loss in enumerate(wanted):
        if any((loss.name, loss.output) == (other.name, other.output) for other in wanted[:index]):
            raise OptionError(f"loss {loss.name} comes twice; give it once, with the weight that it is to have")
    return wanted


def build(wanted: Sequence[Wanted], setting: Setting) -> tuple[WeightedLoss, ...]:
    """The losses, those that look at pairs of inner tensors joined in one.

    Raises:
        OptionError: a loss that does not suit the student, or a temperature or alpha out of range.
    """
    looking = [loss for loss in wanted if loss.name in INSIDE + (AMONG if setting.hints else ())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        made = [
            WeightedLoss(one, loss.weight) for loss in wanted if loss not in looking for one in _made(loss, setting)
        ]
        if looking:
            follow = sum(loss.weight for loss in looking if loss.name == "features")
            others = [(_of_pairs(loss.name, setting.hints), loss.weight) for loss in looking if loss.name != "features"]
            made.append(WeightedLoss(Features(setting.hints, follow, others)))
    return tuple(made)


def _parse(spelled: str) -> Wanted:
    at = spelled.rpartition(":") if "@" in spelled and ":" in spelled else spelled.partition(":")
    name, colon, text = (part.strip() for part in at)
    name, _, output = name.partition("@")
    if name not in LOSSES:
        near = get_close_matches(name, LOSSES, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise OptionError(f"loss {name!r} is unknown{hint} allowed are {', '.join(LOSSES)}")
    try:
        weight = float(text) if colon else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise OptionError(f"loss {name} has the weight {text!r}; allowed is a number above 0, such as {name}:0.5")
    if output and name not in AT:
        raise OptionError(f"loss {name}@{output}: only {', '.join(AT)} can be asked for at one output")
    return Wanted(name, weight, output)


def _made(loss: Wanted, setting: Setting) -> list[nn.Module]:
    """A loss that compares outputs, or outputs with labels: once, or for each task."""
    if loss.name not in OF_TASKS:
        one = _of_all(loss, setting)
        return [one if setting.columns in ((), ONLY) else Labelled(one, None, setting.columns)]
    if loss.name in OF_SCORES and setting.scores is None:
        raise OptionError(
            f"loss {loss.name} needs scores of classes, an output (N, C) of floats, and the student gives none; "
            "for such models take outputs, relations or similarities"
        )
    return [_seeing(_of_task(loss.name, task, setting), task, setting) for task in _tasks_for(loss, setting)]


def _tasks_for(loss: Wanted, setting: Setting) -> list[Task]:
    """The one that is asked for; else all that it suits."""
    tasks = setting.tasks or (Task("", setting.scores or 0, True, None, True, setting.probabilities),)
    if loss.output:
        place = place_of(loss.output, setting.names)
        return [next((task for task in tasks if task.output == place), Task(loss.output, place))]
    suited = [task for task in tasks if (task.labelled if loss.name == "hard_labels" else task.taught)]
    return suited or [tasks[0]]


def _of_task(name: str, task: Task, setting: Setting) -> nn.Module:
    """A loss of one output's scores."""
    temperature, output, probabilities = setting.temperature, task.output, task.probabilities
    match name:
        case "hard_labels":
            return HardLabels(output, probabilities=probabilities)
        case "soft_labels":
            return SoftLabels(temperature, setting.alpha if task.labelled else 1.0, output, probabilities)
        case "correlation":
            return Correlation(temperature, output, probabilities)
        case _:
            return Decoupled(temperature, output, probabilities)


def _seeing(loss: nn.Module, task: Task, setting: Setting) -> nn.Module:
    """The loss, seeing the labels of its task alone; they need no parting where there are none but the first's."""
    columns = setting.columns
    if not columns or (columns == ONLY and task.labelled):
        return loss
    return Labelled(loss, Column(task.output, task.column) if task.labelled else None, columns)


def _of_all(loss: Wanted, setting: Setting) -> nn.Module:
    """A loss of all outputs, or of what stands for a sample."""
    taught = (task for task in setting.tasks if task.taught)
    first = next(taught, Task("", setting.scores or 0, probabilities=setting.probabilities))
    embedding = Embedding(first.output, probabilities=first.probabilities)
    match loss.name:
        case "relations":
            return Relations(embedding)
        case "similarities":
            return Similarities()
        case "contrast":
            return _contrast(setting.width, embedding)
        case _:
            only = place_of(loss.output, setting.names) if loss.output else None
            return Outputs(setting.outputs, only)


def _of_pairs(name: str, hints: tuple[Hint, ...]) -> nn.Module:
    """A loss that compares inner tensors; the embedding of a sample is the last one, its positions averaged."""
    embedding = Embedding(-1, pooled=True)
    match name:
        case "attention":
            return Attention()
        case "relations":
            return Relations(embedding)
        case "similarities":
            return Similarities()
        case _:
            return Contrast(hints[-1].student_channels, hints[-1].teacher_channels, embedding)


def _contrast(width: int | None, embedding: Embedding) -> Contrast:
    if width is None:
        raise OptionError(
            "loss contrast needs one vector a sample: an output (N, D), or a teacher that is an ONNX model with "
            "tensors of the student's positions inside; take relations or similarities"
        )
    return Contrast(width, width, embedding)
