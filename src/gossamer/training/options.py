"""How to train: one noun, the same words from the command line to the arithmetic."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from gossamer.errors import OptionError

WORDS = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "constant"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("float32", "bfloat16"),
}
MOST_SHARE = 100
WHOLE = {"epochs": 1, "batch": 1, "patience": 0, "seed": 0, "devices": 1, "accumulate": 1}


class RatePart(NamedTuple):
    """Weights by pattern, and their share of the learning rate."""

    pattern: str
    share: float


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training run is, apart from its module, data and losses.

    Attributes:
        epochs: times that all samples are seen.
        batch: samples that go through the module at once, in each process.
        optimizer: "adamw" (Loshchilov and Hutter 2019; betas 0.9, 0.999), or "sgd" with Nesterov momentum 0.9.
        rate: the highest learning rate; None lets a range test find it.
        decay: weight decay of tensors with two axes or more.
        schedule: "cosine" falls to nothing in the end (Loshchilov and Hutter 2017), "constant" stays.
        warm_up: share of all steps in which the rate rises from nothing.
        clip: greatest norm of all gradients together; 0 does not clip.
        average: how much of the weights' moving average is kept at each step, such as 0.999; 0 does not average.
        patience: epochs without a better validation score after which training stops; 0 never stops it early.
        seed: of the order of the samples, of dropout, and of layers that are made for training alone.
        device: "auto" takes an accelerator if there is one.
        precision: "bfloat16" keeps weights in float32 and multiplies in bfloat16.
        devices: processes, each with its share of the samples.
        accumulate: batches whose gradients make one step.
        rates: shares of the learning rate by name, such as "body:0" (see `training.rates`); empty is 1 for all.

    One step takes `batch * accumulate * devices` samples.

    Raises:
        OptionError: a value that is out of range.
    """

    epochs: int = 10
    batch: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float | None = None
    decay: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: float = 0.05
    clip: float = 1.0
    average: float = 0.0
    patience: int = 0
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    devices: int = 1
    accumulate: int = 1
    rates: str = ""

    def __post_init__(self) -> None:
        for name, allowed in WORDS.items():
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        for name, least in WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name} is {value!r}; allowed is a whole number from {least} up")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise OptionError(f"rate is {self.rate}; allowed is a number above 0, or none to have it found")
        for name in ("decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} is {getattr(self, name)}; allowed is a number from 0 up")
        for name in ("warm_up", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; allowed is a share from 0 to under 1")
        rates_of(self.rates)

    @property
    def step_samples(self) -> int:
        """Samples that one step of the optimizer takes, over all processes."""
        return self.batch * self.accumulate * self.devices


def rates_of(text: str) -> tuple[RatePart, ...]:
    """Shares of the learning rate as they are spelled: PATTERN:SHARE, with commas between.

    Raises:
        OptionError: a part without a pattern, or whose share is no number from 0 to 100.
    """
    return tuple(_rate_part(part.strip()) for part in text.split(",") if part.strip())


def _rate_part(spelled: str) -> RatePart:
    pattern, _, share = spelled.rpartition(":")
    try:
        part = RatePart(pattern.strip(), float(share))
    except ValueError:
        part = RatePart("", -1.0)
    if not part.pattern or not 0 <= part.share <= MOST_SHARE:
        raise OptionError(
            f"rates: {spelled!r} is no PATTERN:SHARE with a share from 0 (frozen) to {MOST_SHARE}; "
            "for instance body:0.1, or 'layer1*:0'"
        )
    return part
