"""A model of integers learns from its float self section by section, front to back.

Each section sees what the trained ones before it give, and learns to give the tensors that the float network has behind
its blocks (block-wise reconstruction: BRECQ, Li et al. 2021); the last learns what the course says. Every sample
teaches a section by tens of thousands of numbers, not by a few scores, and a front section costs a fraction of the
whole: with few samples and few bits that wins back several times as much as training the whole at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gossamer.errors import OptionError
from gossamer.graph.edit import drop_unused
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model, save
from gossamer.training.hints import features
from gossamer.training.in_form import Course, Outcome, train_in_form
from gossamer.training.lessons import Lessons
from gossamer.training.losses.outputs import Outputs
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.teacher import from_model

UNFOLLOWED = ("Clip",)  # of the float graph: integers end where it clips, so that nothing is left to clip in them


class Section(NamedTuple):
    """Some blocks in a row.

    Attributes:
        outputs: tensors of both networks behind them; empty for the last section.
        nodes: of the model that are trained.
    """

    outputs: tuple[str, ...]
    nodes: frozenset[str]


def train_in_sections(
    model: Model, course: Course, options: Options, count: int, finished: Callable[[int], Path]
) -> Outcome:
    """Train a model whose `reference` is the float network that it was made from.

    Args:
        options: epochs are those of each section.
        count: of sections; fewer where there are not as many blocks.
        finished: where section 1, 2, ... is kept until the run is over.

    Raises:
        OptionError: there is no such network, or the two have no tensors of one name inside.
        ModelError, DataError, CandidateError: see `train_in_form`.
    """
    teacher = model.reference
    if teacher is None:
        raise OptionError(
            "sections are taught by the float network that integers were made from: give it as --teacher, or make the "
            "integers here (--constraint)"
        )
    first = course.learn.pieces(np.arange(1), 1)[0]
    feeds = dict(zip(course.learn.samples.columns, (column.numpy() for column in first.inputs), strict=True))
    found = sections(model, blocks(model, teacher, feeds, count))
    for number, section in enumerate(found[:-1], 1):
        file = finished(number)
        if file.exists():
            course.watch.say(f"going on behind section {number} of {len(found)}")
        else:
            course.watch.say(f"section {number} of {len(found)}, up to {section.outputs[-1]}")
            outcome = train_section(model, teacher, section, course, options)
            if outcome.trained.interrupted:
                return outcome._replace(model=with_weights(model, outcome.model))
            save(outcome.model, file)
            if course.checkpoint is not None:
                course.checkpoint.unlink(missing_ok=True)
        model = with_weights(model, read(file))
    course.watch.say(f"section {len(found)} of {len(found)}, up to the outputs")
    return train_in_form(model, course, options, found[-1].nodes)


def train_section(model: Model, teacher: Model, section: Section, course: Course, options: Options) -> Outcome:
    """One section alone, by the tensors behind its blocks; what is before it stays."""
    taught = from_model(until(teacher, section.outputs), section.outputs)
    learn, choose = (Lessons(one.samples, taught, one.fixed_batch) for one in (course.learn, course.choose))
    own = course._replace(losses=(WeightedLoss(Outputs(len(section.outputs))),), hints=(), learn=learn, choose=choose)
    return train_in_form(replace(until(model, section.outputs), reference=teacher), own, options, section.nodes)


def blocks(model: Model, teacher: Model, feeds: Mapping[str, np.ndarray], count: int) -> tuple[tuple[str, ...], ...]:
    """Tensors behind the blocks of all sections but the last, as many in each.

    Raises:
        OptionError: the networks share none.
    """
    left_out = {str(node.outputs[0].name) for node in teacher.ir.graph if node.op_type in UNFOLLOWED}
    shared = {str(value.name) for node in model.ir.graph for value in node.outputs} - left_out
    ends = [end.name for end in features(teacher, feeds) if end.name in shared]
    if not ends:
        raise OptionError(
            f"{model.name} and the float network {teacher.name} have no tensors of one name inside, so that no section "
            "can be told; train the whole at once"
        )
    parts = np.array_split(np.array(ends, object), max(1, min(count - 1, len(ends))))
    return tuple(tuple(map(str, part)) for part in parts)


def sections(model: Model, ends: Sequence[Sequence[str]]) -> list[Section]:
    """From front to back; the last, which has no tensors to follow, is what is behind the others."""
    found: list[Section] = []
    seen = frozenset[str]()
    for outputs in ends:
        nodes = frozenset(str(node.name) for node in until(model, outputs).ir.graph)
        found.append(Section(tuple(outputs), nodes - seen))
        seen |= nodes
    return [*found, Section((), frozenset(str(node.name) for node in model.ir.graph) - seen)]


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
        if name in clone.ir.graph.initializers:
            clone.ir.graph.initializers[name].const_value = value.const_value
    return clone
