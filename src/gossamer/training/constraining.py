"""What `gossamer train --constraint` does to weights before each stage of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import msgspec

from gossamer.arith.affine import WeightBits
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint, as_text, constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN
from gossamer.training.spread import Spread, aims_by_layer, described, is_spread

Activations = Literal["uint8", "int8", "float"]
CALIBRATION = 256  # samples
NO_AIMS: Mapping[str, Sparse] = {}


def stages_of(constraint: str, rounds: int) -> tuple[str, ...]:
    """The constraints that weights go through, each followed by training.

    A ratio of zeros is reached in rounds, along the cubic of Zhu and Gupta (2017): most weights go early, while there
    are many. What is composed comes behind: zeros first, then the grid or the shared values of what is left; thin
    factors first, and then a grid for each of them.

    Raises:
        OptionError: no constraint.
    """
    aim = constraint_from_text(constraint)
    first = aim.first if isinstance(aim, Composed) else aim
    if isinstance(aim, Composed) and isinstance(first, LowRank):
        return as_text(first), constraint  # the grid is that of what the factors have become
    if not isinstance(first, Sparse):
        return (constraint,)
    stages = [as_text(first)]
    if first.ratio is not None:
        shares = [1 - (1 - (number + 1) / rounds) ** 3 for number in range(rounds)]
        stages = [as_text(msgspec.structs.replace(first, ratio=round(share * first.ratio, 4))) for share in shares]
    return (*stages, constraint) if isinstance(aim, Composed) else tuple(stages)


def zeros_of(constraint: str) -> Sparse | None:
    """The zeros that a constraint asks for, if it does."""
    aim = constraint_from_text(constraint)
    first = aim.first if isinstance(aim, Composed) else aim
    return first if isinstance(first, Sparse) else None


def check_activations(constraint: str, activations: Activations) -> None:
    """See that layers can compute in these with weights under a constraint.

    Raises:
        OptionError: they cannot, or there is no constraint that would make them.
    """
    if constraint:
        _steps(constraint_from_text(constraint), activations)
    elif activations != "uint8":
        raise OptionError(f"activations {activations} without a constraint changes nothing; give one, such as grid:4")


def cleaned(model: Model, samples: Samples, threads: int = 1) -> Model:
    """The model as `constrained` has it before weights move: constants and norms folded."""
    applied = run_plan(Plan("clean", CLEAN.steps), model, Evidence(samples.first(CALIBRATION), threads))
    return replace(applied.model, notes=(*model.notes, *(note for note in applied.notes if note not in model.notes)))


def constrained(
    model: Model,
    constraint: str,
    activations: Activations,
    samples: Samples,
    threads: int = 1,
    spread: Spread = "score",
    sequential: bool = False,
) -> Model:
    """The model with its weights moved into a constraint at the least error of what each layer computes.

    Args:
        constraint: as `gossamer constrain` takes it; grids alone, or behind zeros, make layers compute in integers.
        activations: integers, in which layers then compute, or float, where weights alone take few bits.
        samples: the first 256 of them calibrate.
        spread: how a ratio of zeros lies over the layers, see `spread`.
        sequential: integers are found layer behind layer, see `quantize_static`.

    Raises:
        OptionError: a constraint that no weight can take, or a grid that integer layers do not take.
    """
    evidence, aim = Evidence(samples.first(CALIBRATION), threads), constraint_from_text(constraint)
    clean = run_plan(Plan("clean", CLEAN.steps), model, evidence)
    zeros = zeros_of(constraint)
    by_layer = NO_AIMS
    if zeros is not None and is_spread(spread, zeros):
        by_layer = aims_by_layer(clean.model, zeros, evidence)
    applied = run_plan(Plan(constraint, _steps(aim, activations, by_layer, sequential)), clean.model, evidence)
    if not applied.made_by:
        raise OptionError(f"no weight of {model.name} can become {constraint}: {'; '.join(applied.notes)}")
    told = (described(by_layer, zeros),) if zeros is not None and by_layer and aim == zeros else ()
    notes = (*model.notes, *clean.notes, *told, *applied.notes)
    return replace(applied.model, notes=tuple(dict.fromkeys(notes)))


def _steps(
    aim: Constraint, activations: Activations, aims: Mapping[str, Sparse] = NO_AIMS, sequential: bool = False
) -> tuple[Step, ...]:
    """How weights get there.

    Args:
        aims: the zeros of each layer, where they differ.
    """
    grid = aim.then if isinstance(aim, Composed) else aim
    thin = isinstance(aim, Composed) and isinstance(aim.first, LowRank)  # factors stand there already
    by_layer = {
        node: as_text(msgspec.structs.replace(aim, first=zeros) if isinstance(aim, Composed) else zeros)
        for node, zeros in aims.items()
    }
    config: dict[str, Any] = {"constraint": as_text(grid if thin else aim), "solver": "second_order"}
    config |= {"by_layer": by_layer} if by_layer else {}
    if not isinstance(grid, Grid):
        return (Step("constrain_weights", config),)
    if activations == "float":
        form = "cast" if grid.granularity == "input" else "dequantize"  # which takes scales of outputs alone
        steps = [Step("constrain_weights", {**config, "form": form})]
        if thin and isinstance(grid.granularity, int):  # which seldom divides the rank, see `Composed.project`
            by_row = as_text(msgspec.structs.replace(grid, granularity="channel"))
            steps.append(Step("constrain_weights", {**config, "constraint": by_row, "form": "dequantize"}))
        return (*steps, Step("correct_bias"))
    by_output = grid.granularity in ("channel", "tensor")
    if not by_output or not grid.symmetric or grid.rate or grid.bits not in get_args(WeightBits):
        raise OptionError(
            f"{as_text(grid)}: layers that compute in integers take symmetric weights with one scale a channel or "
            "tensor, such as grid:4; for others give --activations float"
        )
    static: dict[str, Any] = {
        "activation": activations,
        "weight_bits": grid.bits,
        "granularity": grid.granularity,
        "rounding": "second_order" if thin or aim is grid else "nearest",  # the nearest of zero is zero
    }
    static |= {"sequential": True} if sequential and static["rounding"] == "second_order" else {}
    return (Step("quantize_static", static), Step("correct_bias"))
