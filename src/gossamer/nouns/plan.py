"""Plan: a list of sentences "apply METHOD with CONFIG to SCOPE"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gossamer.errors import OptionError


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which nodes: names or shell patterns (`*`, `?`). Empty `only` means all; `skip` is taken away from it."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One sentence. `method` is the name of a module in `gossamer.passes`; `config` are that module's options."""

    method: str
    config: Mapping[str, Any] = msgspec.field(default_factory=dict)
    scope: Scope = Scope()

    def key(self) -> str:
        """A text equal for equal steps."""
        return msgspec.json.encode(self, order="sorted").decode()


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The samples a plan was made with, so that replaying it needs no other argument.

    `data` and `options` are what `--data` and its options were, `seed` that of the splits, `threads` those of the
    runtime; `digest` is the SHA-256 of the calibration split; `train_data` is that of `--train-data`, if a step trains.
    """

    data: str = ""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    seed: int = 0
    threads: int = 1
    digest: str = ""
    train_data: str = ""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do to a model, in order."""

    name: str
    steps: tuple[Step, ...] = ()
    calibration: Calibration = Calibration()
    version: int = 1

    def to_yaml(self) -> str:
        """The plan as YAML, the same text for the same plan."""
        return msgspec.yaml.encode(self).decode()


ORIGINAL = "original"  # the plan that changes nothing


def quantizing(plan: Plan) -> int | None:
    """The place of the first step that rounds; None if no step does."""
    return next((at for at, step in enumerate(plan.steps) if rounds(step)), None)


def rounds(step: Step) -> bool:
    """Whether a step changes weights or activations for good."""
    return step.method.startswith(("quantize_", "constrain_"))


def trains(step: Step) -> bool:
    """Whether a step learns from samples."""
    return step.method == "train_weights" or step.config.get("solver") == "train"


def plan_from_yaml(text: str | bytes, source: str = "plan.yaml") -> Plan:
    """Read a plan.

    Raises:
        OptionError: not YAML, an unknown field, or a wrong type; the text names the place.
    """
    try:
        plan = msgspec.yaml.decode(text, type=Plan)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise OptionError(
            f"{source}: {' '.join(str(error).split())}; compare with a plan.yaml that compress wrote"
        ) from error
    if plan.version != 1:
        raise OptionError(f"{source}: plan version {plan.version}; this gossamer reads version 1")
    return plan
