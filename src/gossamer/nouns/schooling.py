"""Schooling: how long a compressed model is trained; and the school, which has the samples and the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from gossamer.errors import OptionError

if TYPE_CHECKING:
    from gossamer.nouns.model import Model

TRAIN_S = 600.0  # seconds for training, unless a person says how long
LEAST = {"epochs": 1, "samples": 0, "batch": 1, "seed": 0}


class Schooling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of the pass `train_weights`, and of `constrain_weights` with solver train.

    Attributes:
        epochs: times that the training samples are seen; the one that validates best is kept.
        samples: so many of them, drawn by the seed; 0 takes all.
        batch: samples that go through at once.
        rate: the highest learning rate; None takes the usual one.
        learn_steps: the steps of the grids are trained too; else they stay where calibration put them.
        seed: of the split, the draw and the order.

    Raises:
        OptionError: a number that is out of range.
    """

    epochs: int = 5
    samples: int = 0
    batch: int = 64
    rate: float | None = None
    learn_steps: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise OptionError(f"schooling: {name} is {getattr(self, name)}; allowed is {least} or more")


class School(Protocol):
    """Where compressed models are trained; `gossamer.training.school` has it."""

    def fit(self, model: Model, seconds: float) -> Schooling | None:
        """The schooling that so many seconds suffice for, if they suffice for any."""
        ...

    def train(self, model: Model, schooling: Schooling, nodes: frozenset[str] | None = None) -> tuple[Model, str]:
        """A trained copy, or the model itself if nothing better was found; and what is to be said of it.

        Only what these nodes read is trained; None stands for all.
        """
        ...

    def digest(self) -> str:
        """A text equal for equal samples."""
        ...
