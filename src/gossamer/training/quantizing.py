"""A float model put on integers before it is trained: what `gossamer train --constraint grid:4` begins with."""

from __future__ import annotations

from typing import Any, Literal, get_args

from gossamer.arith.affine import WeightBits
from gossamer.constraints.contract import as_text, constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.errors import OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN

Activations = Literal["uint8", "int8", "float"]
CALIBRATION = 256  # samples


def quantize(model: Model, constraint: str, activations: Activations, samples: Samples, threads: int = 1) -> Model:
    """The model with weights on a grid, rounded for the least error of what each layer computes; biases corrected.

    Args:
        constraint: `grid:4`, and with float activations also `grid:4:group=64` and the like.
        activations: integers, in which layers then compute, or float, where weights alone take few bits.
        samples: the first 256 of them calibrate.

    Raises:
        OptionError: a constraint that is no grid, or that integer layers do not take.
    """
    grid = constraint_from_text(constraint)
    if not isinstance(grid, Grid):
        raise OptionError(f"{constraint} is not trained yet; allowed are grids, such as grid:4")
    evidence = Evidence(samples.first(CALIBRATION), threads)
    steps = (*CLEAN.steps, _step(grid, activations), Step("correct_bias"))
    applied = run_plan(Plan(f"{as_text(grid)}, activations {activations}", steps), model, evidence)
    if not any(node.op_type == "DequantizeLinear" for node in applied.model.ir.graph):
        raise OptionError(f"no weight of {model.name} can become {constraint}: {'; '.join(applied.notes)}")
    return applied.model


def _step(grid: Grid, activations: Activations) -> Step:
    if activations == "float":
        config = {"constraint": as_text(grid), "solver": "second_order", "form": "dequantize"}
        return Step("constrain_weights", config)
    if isinstance(grid.granularity, int) or not grid.symmetric or grid.rate or grid.bits not in get_args(WeightBits):
        raise OptionError(
            f"{as_text(grid)}: layers that compute in integers take symmetric weights with one scale a channel or "
            "tensor, such as grid:4; for others give --activations float"
        )
    static: dict[str, Any] = {
        "activation": activations,
        "weight_bits": grid.bits,
        "granularity": grid.granularity,
        "rounding": "second_order",
    }
    return Step("quantize_static", static)
