"""The float model that a model of integers was made from, where its teacher is that one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gossamer.errors import GossamerError
from gossamer.graph.cast_grid import cast_grid
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN
from gossamer.training.teacher import voices_of

ARRAYS = (".npy", ".npz")


def with_origin(student: Model, teacher: Any) -> Model:
    """The student with the teacher's weights as its reference, so that its own begin where they were before rounding.

    Else they begin at the middles of their integers, and at the rates of a twin hardly any becomes another integer:
    see `twin`, which also sees whether the teacher's weights are those. A student in float stays as it is.

    Args:
        teacher: as `train_model` takes it; of several the first counts.
    """
    if student.reference is not None or teacher is None:
        return student
    if not any(node.op_type == "DequantizeLinear" or cast_grid(node) is not None for node in student.ir.graph):
        return student
    first = voices_of(teacher)[0].teacher
    if not isinstance(first, (str, Path, Model)) or Path(getattr(first, "name", str(first))).suffix in ARRAYS:
        return student
    try:
        return replace(student, reference=run_plan(CLEAN, normalise(read(first))).model)
    except GossamerError:  # whoever asks the teacher says what is wrong with it
        return student
