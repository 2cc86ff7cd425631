"""Which tensors of a teacher a student is to follow: pairs proposed by shape and depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.errors import OptionError
from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.losses.features import Hint
from gossamer.training.teacher import named_for

PAIRS = 3  # hints at least, where the graphs have so many stages or blocks
ENDS = (  # of blocks: what comes behind an activation, a skip or a norm
    "Add Relu LeakyRelu PRelu Clip HardSwish Gelu Sigmoid Tanh Mul Concat BatchNormalization LayerNormalization "
    "SkipLayerNormalization MaxPool AveragePool Conv"
).split()
RECURRENT = ("LSTM", "GRU", "RNN")
TURNED = ("Squeeze", "Transpose", "Reshape")  # between a recurrent layer, which puts time first, and what reads it


class Feature(NamedTuple):
    """A tensor inside a graph that has channels at positions.

    Attributes:
        axis: of the channels.
        positions: the other axes' lengths, without the batch.
    """

    name: str
    channels: int
    axis: int
    positions: tuple[int, ...]


def propose(student: Model, teacher: Model, feeds: Mapping[str, np.ndarray]) -> tuple[Hint, ...]:
    """Pairs of tensors that have the same positions, at the same relative depth.

    The stages of a network are its resolutions; the last tensors of each that both have are a pair. Networks of fewer
    stages than three, such as transformers, give more pairs a stage, evenly spread. Channels that differ, or that
    belong to another network, get an adapter.

    Args:
        feeds: one sample, to see shapes with.

    Raises:
        OptionError: no resolution is in both.
        DataError: the teacher takes other inputs.
        CandidateError: the runtime refuses one of them.
    """
    theirs = features(teacher, feeds)
    ours = features(student, feeds, {feature.name for feature in theirs})
    return paired(ours, theirs, student.name, teacher.name)


def paired(
    student: Sequence[Feature], teacher: Sequence[Feature], student_name: str, teacher_name: str
) -> tuple[Hint, ...]:
    """The pairs among the tensors of two graphs.

    Raises:
        OptionError: no resolution is in both.
    """
    own, others = _by_positions(_alike(student, teacher)), _by_positions(_alike(teacher, student))
    shared = [positions for positions in own if positions in others]
    if not shared:
        raise OptionError(
            f"features: {student_name} has tensors of {_listed(own)} positions, {teacher_name} of {_listed(others)}; "
            "no pair agrees, so leave out losses that look inside"
        )
    each = math.ceil(PAIRS / len(shared))
    pairs = [
        (a, b)
        for positions in shared
        for a, b in zip(_spread(own[positions], each), _spread(others[positions], each), strict=True)
    ]
    return tuple(dict.fromkeys(_hint(a, b) for a, b in pairs))


def features(model: Model, feeds: Mapping[str, np.ndarray], names: Collection[str] = ()) -> list[Feature]:
    """Tensors at the ends of blocks, in the graph's order.

    Args:
        names: tensors that count in any case: quantizing moves an activation into its quantizers, which keep its name.
    """
    ends = (node for node in model.ir.graph if _may_end_a_block(node) or node.outputs[0].name in names)
    candidates = [node.outputs[0] for node in ends if node.outputs[0].uses() and not node.outputs[0].is_graph_output()]
    session = open_session(with_outputs(model, [str(value.name) for value in candidates], "features"), optimize=False)
    count = session.static_batch or 1
    named = named_for(session, feeds, model.name)
    given = dict(
        zip(session.outputs, session.run({k: np.repeat(v[:1], count, 0) for k, v in named.items()}), strict=True)
    )
    found = (_feature(value, given[str(value.name)], count) for value in candidates)
    return [feature for feature in found if feature is not None]


def _alike(found: Sequence[Feature], others: Sequence[Feature]) -> Sequence[Feature]:
    """Where both graphs come from one, by most of their tensors, those that both have by name; else all."""
    known = {(other.name, other.channels, other.positions) for other in others}
    both = [feature for feature in found if (feature.name, feature.channels, feature.positions) in known]
    return both if 2 * len(both) >= max(len(found), len(others)) else found


def _feature(value: ir.Value, given: np.ndarray, count: int) -> Feature | None:
    """What the tensor is, or None if it has no channels at several positions."""
    if given.dtype.kind != "f" or given.ndim not in (3, 4) or len(given) != count:
        return None
    product = _made_by(value)
    if given.ndim == 4 and product != "Conv":  # scores of attention
        return None
    axis = 1 if product == "Conv" else given.ndim - 1
    positions = tuple(size for index, size in enumerate(given.shape) if index not in (0, axis))
    if math.prod(positions) < 2:
        return None
    return Feature(str(value.name), given.shape[axis], axis, positions)


def _made_by(value: ir.Value) -> str:
    """The nearest product of weights above a tensor: Conv, MatMul or Gemm; empty if there is none."""
    seen, above = set(), [value]
    while above:
        node = above.pop(0).producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in ("Conv", "MatMul", "Gemm", "Attention", "Embedding", "Gather", *RECURRENT):
            return node.op_type
        above += [source for source in node.inputs if source is not None]
    return ""


def _may_end_a_block(node: ir.Node) -> bool:
    output = node.outputs[0]
    ends = node.op_type in ENDS or (node.op_type in TURNED and _made_by(output) in RECURRENT)
    return bool(ends)


def _by_positions(found: Sequence[Feature]) -> dict[tuple[int, ...], list[Feature]]:
    stages: dict[tuple[int, ...], list[Feature]] = defaultdict(list)
    for feature in found:
        stages[feature.positions].append(feature)
    return dict(stages)


def _spread(stage: Sequence[Feature], count: int) -> list[Feature]:
    """So many of a stage, evenly, the last among them; the same one again where it is short."""
    return [stage[math.ceil((index + 1) / count * len(stage)) - 1] for index in range(count)]


def _hint(student: Feature, teacher: Feature) -> Hint:
    same = student.name == teacher.name and student.channels == teacher.channels
    return Hint(student.name, teacher.name, student.channels, teacher.channels, student.axis, not same)


def _listed(stages: Mapping[tuple[int, ...], list[Feature]]) -> str:
    return ", ".join("x".join(map(str, positions)) for positions in stages) or "no"
