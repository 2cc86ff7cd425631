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
from gossamer.training.losses.outputs import Outputs
from gossamer.training.losses.relations import Relations
from gossamer.training.losses.similarities import Similarities
from gossamer.training.losses.soft_labels import SoftLabels
from gossamer.training.pupil import WeightedLoss

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


class Wanted(NamedTuple):
    """A loss by name and its weight; 1 is what its paper recommends."""

    name: str
    weight: float


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
    """

    scores: int | None
    outputs: int
    width: int | None
    probabilities: bool
    hints: tuple[Hint, ...]
    temperature: float
    alpha: float
    seed: int


def parse(losses: Sequence[str]) -> tuple[Wanted, ...]:
    """Losses as they are spelled: a name, or `name:weight`.

    Raises:
        OptionError: an unknown name, one that comes twice, or a weight that is not above 0.
    """
    wanted = tuple(_parse(spelled) for spelled in losses)
    for index, loss in enumerate(wanted):
        if any(loss.name == other.name for other in wanted[:index]):
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
        made = [WeightedLoss(_of_outputs(loss.name, setting), loss.weight) for loss in wanted if loss not in looking]
        if looking:
            follow = sum(loss.weight for loss in looking if loss.name == "features")
            others = [(_of_pairs(loss.name, setting.hints), loss.weight) for loss in looking if loss.name != "features"]
            made.append(WeightedLoss(Features(setting.hints, follow, others)))
    return tuple(made)


def _parse(spelled: str) -> Wanted:
    name, colon, text = (part.strip() for part in spelled.partition(":"))
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
    return Wanted(name, weight)


def _of_outputs(name: str, setting: Setting) -> nn.Module:
    """A loss that compares outputs, or outputs with labels."""
    scores, temperature, probabilities = setting.scores or 0, setting.temperature, setting.probabilities
    if name in OF_SCORES and setting.scores is None:
        raise OptionError(
            f"loss {name} needs scores of classes, an output (N, C) of floats, and the student gives none; "
            "for such models take outputs, relations or similarities"
        )
    embedding = Embedding(scores, probabilities=probabilities)
    match name:
        case "hard_labels":
            return HardLabels(scores, probabilities=probabilities)
        case "soft_labels":
            return SoftLabels(temperature, setting.alpha, scores, probabilities)
        case "correlation":
            return Correlation(temperature, scores, probabilities)
        case "decoupled":
            return Decoupled(temperature, scores, probabilities)
        case "relations":
            return Relations(embedding)
        case "similarities":
            return Similarities()
        case "contrast":
            return _contrast(setting.width, embedding)
        case _:
            return Outputs(setting.outputs)


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
