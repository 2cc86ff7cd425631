"""A quantized network learns from its float self section by section, front to back.

Each section sees what the quantized ones before it give, and learns to give the tensors of the float network behind its
blocks (block-wise reconstruction: BRECQ, Li et al. 2021). The section behind them learns soft labels. Every picture
teaches a section by tens of thousands of numbers, and a front section costs a fraction of the whole network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gossamer.graph.edit import drop_unused
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays
from gossamer.training.hints import features
from gossamer.training.holding_out import hold_out
from gossamer.training.in_form import Course, train_in_form
from gossamer.training.lessons import Lessons
from gossamer.training.losses.outputs import Outputs
from gossamer.training.losses.soft_labels import SoftLabels
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.teacher import from_model
from gossamer.training.watching import Watch

TEMPERATURE = 2.0


class Section(NamedTuple):
    """Some blocks in a row.

    Attributes:
        outputs: tensors of both networks behind them.
        nodes: of the quantized network that are trained.
    """

    outputs: tuple[str, ...]
    nodes: frozenset[str]


def train_sections(
    student: Model,
    teacher: Model,
    sides: Sequence[Sequence[int]],
    image_NCHW: np.ndarray,
    options: Options,
    watch: Watch,
) -> Model:
    """A trained copy.

    Args:
        student: quantized; its tensors have the names of the teacher's.
        teacher: in float, its norms folded.
        sides: of the squares that the blocks of each section end in; what is behind them is the last section.
        image_NCHW: what is learned from; a tenth chooses the epoch.

    Raises:
        CandidateError: the loss became NaN.
    """
    (name,) = (str(value.name) for value in student.ir.graph.inputs)
    (choose,), learn = hold_out(samples_from_arrays({name: image_NCHW}), options.seed)
    for section in sections(student, teacher, sides, {name: image_NCHW[:1]}):
        ends = section.outputs or tuple(str(value.name) for value in student.ir.graph.outputs)
        taught = from_model(until(teacher, ends), ends)
        loss = Outputs(len(ends)) if section.outputs else SoftLabels(TEMPERATURE)
        course = Course((WeightedLoss(loss),), (), Lessons(learn, taught), Lessons(choose, taught), None, watch)
        part = replace(until(student, ends), reference=teacher)
        watch.say(f"{len(section.nodes)} nodes, up to {ends[-1]}")
        student = with_weights(student, train_in_form(part, course, options, section.nodes).model)
    return student


def sections(
    student: Model, teacher: Model, sides: Sequence[Sequence[int]], feeds: dict[str, np.ndarray]
) -> list[Section]:
    """From front to back; the last one, which has no tensors to follow, is what is behind the others."""
    clipped = {str(node.outputs[0].name) for node in teacher.ir.graph if node.op_type == "Clip"}
    shared = {str(value.name) for node in student.ir.graph for value in node.outputs}
    ends = [end for end in features(teacher, feeds) if end.name in shared - clipped]
    found: list[Section] = []
    seen = frozenset[str]()
    for group in sides:
        outputs = tuple(end.name for end in ends if end.positions[0] in group)
        nodes = frozenset(str(node.name) for node in until(student, outputs).ir.graph)
        found.append(Section(outputs, nodes - seen))
        seen |= nodes
    return [*found, Section((), frozenset(str(node.name) for node in student.ir.graph) - seen)]


def until(model: Model, ends: Sequence[str]) -> Model:
    """The part of a graph that computes these tensors, which are its outputs."""
    clone = model.clone()
    graph = clone.ir.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs[:] = [values[end] for end in ends]
    drop_unused(clone.ir)
    return clone


def with_weights(model: Model, part: Model) -> Model:
    """A copy with the initializers of a trained part of it."""
    clone = model.clone()
    for name, value in part.ir.graph.initializers.items():
        clone.ir.graph.initializers[name].const_value = value.const_value
    return clone
