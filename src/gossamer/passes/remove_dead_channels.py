"""Channels that reach nothing, or say nothing, taken out of the layers on both sides; outputs stay as they are.

Pruning leaves such channels: of LeNet-300-100 with 1.5 % of its weights 122 of 300 hidden ones have no reader left, and
what was kept of their own weights and biases works for nobody. The layers become smaller, in any runtime.

A channel is looked for between two layers, Conv or Gemm, with nothing in between but what treats every channel alike
and by itself. It has no reader if all its weights in the later layer are zero. It says nothing if all its weights in
the earlier one are: what its bias makes of it is then the same for all inputs, and goes into the later layer's bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.edit import add_initializer, attribute_int, constant, graph_of
from gossamer.graph.layers import Layer, bias_array, layer_of
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = True
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ()

_ALIKE = frozenset({"Relu", "MaxPool", "Identity"})  # of a constant c they make max(c, 0), c and c
_FLAT = frozenset({"Flatten", "Reshape"})


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No options."""


class _Pair(NamedTuple):
    """Two layers, what stands between them, and how many inputs of the later one each channel of the earlier feeds."""

    first: Layer
    between: tuple[ir.Node, ...]
    second: Layer
    each: int


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Every model is fine: what has no dead channels stays."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """From the last pair of layers to the first, until there is nothing more to take out."""
    clone = model.clone()
    removed = 0
    while True:
        pairs = list(_pairs(clone, scope))
        count = sum(_shrink(pair) for pair in reversed(pairs))
        removed += count
        if not count:
            break
    if not removed:
        return Result(model, False)
    return Result(clone, True, (f"remove_dead_channels: {removed} channels that nothing depended on",))


def ensures(before: Model, result: Result, config: Config) -> None:
    """The weights became smaller.

    Raises:
        CandidateError: they did not.
    """
    if result.modified and result.model.weight_bytes() >= before.weight_bytes():
        raise CandidateError("remove_dead_channels saved nothing")


def _pairs(model: Model, scope: Scope) -> Iterator[_Pair]:
    for node in nodes_in_scope(model, scope, "Conv", "Gemm"):
        first = layer_of(node)
        if isinstance(first, str) or not _is_own(first):
            continue
        between: list[ir.Node] = []
        reader = _only_reader(node)
        while reader is not None and _is_alike(reader):
            between.append(reader)
            reader = _only_reader(reader)
        second = layer_of(reader) if reader is not None and reader.op_type in ("Conv", "Gemm") else ""
        if (
            isinstance(second, str)
            or not _is_own(second)
            or second.x is not (between[-1] if between else node).outputs[0]
        ):
            continue
        each, rest = divmod(_inputs(second), first.channels)
        flat = any(step.op_type in _FLAT for step in between)
        if not rest and (flat or each == 1):
            yield _Pair(first, tuple(between), second, each)


def _is_own(layer: Layer) -> bool:
    """Whether nobody else reads its weight and bias, and all its inputs feed all its outputs."""
    values = [value for value in (layer.weight, layer.bias) if value is not None]
    own = all(len(value.uses()) == 1 and not value.is_graph_output() for value in values)
    return own and attribute_int(layer.node, "group", 1) == 1


def _only_reader(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    uses = value.uses()
    alone = len(uses) == 1 and not value.is_graph_output() and len(node.outputs) == 1
    reader = next(iter(uses)).node if alone else None
    return reader if reader is not None and reader.domain == "" and reader.graph is node.graph else None


def _is_alike(node: ir.Node) -> bool:
    """Whether a node treats the channels on axis 1 alike and each by itself."""
    if node.op_type in _ALIKE:
        return len(node.outputs) == 1
    if node.op_type == "Flatten":
        return attribute_int(node, "axis", 1) == 1
    shape = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    known = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or shape.shape != (2,) or known is None or len(known) < 2:
        return False
    features = known.dims[1:]
    if not all(isinstance(dim, int) for dim in features):
        return False
    size = int(np.prod(np.array(features, np.int64)))
    keeps_batch = shape[0] in (-1, known.dims[0]) or (shape[0] == 0 and not attribute_int(node, "allowzero", 0))
    return bool(shape[1] == size or shape[1] == -1) and bool(keeps_batch)


def _inputs(layer: Layer) -> int:
    return int(np.asarray(constant(layer.weight)).shape[1 - layer.channel_axis])


def _shrink(pair: _Pair) -> int:
    """Take a pair's dead channels out; how many they were."""
    w_OI, later_OCE = _rows(pair.first), _rows(pair.second)
    later_OCE = later_OCE.reshape(len(later_OCE), pair.first.channels, -1)
    bias_O = bias_array(pair.first)
    unread_C = ~later_OCE.any(axis=(0, 2))
    silent_C = ~w_OI.any(axis=1) & ~unread_C
    said_C = np.maximum(bias_O, 0) if any(step.op_type == "Relu" for step in pair.between) else bias_O
    if _pads(pair.second.node):  # what is beyond the edge is zero, whatever the channel says
        silent_C &= said_C == 0
    silent_C &= np.isfinite(said_C)
    kept_C = ~(unread_C | silent_C)
    if kept_C.all() or (not kept_C.any() and len(kept_C) == 1):
        return 0
    if not kept_C.any():
        kept_C[int(np.argmin(unread_C))] = True  # a layer without channels is none
        silent_C &= ~kept_C
    added_O = np.einsum("oce,c->o", later_OCE[:, silent_C].astype(np.float64), said_C[silent_C].astype(np.float64))
    if added_O.any():
        _store_bias(pair.second, (bias_array(pair.second) + added_O).astype(np.float32))
    _take(pair.first.weight, kept_C, pair.first.channel_axis)
    if pair.first.bias is not None:
        _store(pair.first.bias, bias_O[kept_C])
    _take(pair.second.weight, np.repeat(kept_C, pair.each), 1 - pair.second.channel_axis)
    _reshape(pair, int(kept_C.sum()))
    return int((~kept_C).sum())


def _rows(layer: Layer) -> np.ndarray:
    """A layer's weight, (O, all that it sums over), the inputs' channels first."""
    w = np.asarray(constant(layer.weight))
    return w.reshape(len(w), -1) if layer.channel_axis == 0 else w.T


def _pads(node: ir.Node) -> bool:
    pads = node.attributes.get("pads")
    automatic = node.attributes.get("auto_pad")
    return (pads is not None and any(pads.as_ints())) or (
        automatic is not None and automatic.as_string() not in ("NOTSET", "VALID")
    )


def _take(value: ir.Value, kept: np.ndarray, axis: int) -> None:
    _store(value, np.compress(kept, np.asarray(constant(value)), axis=axis))


def _store(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)


def _store_bias(layer: Layer, bias_O: np.ndarray) -> None:
    if layer.bias is not None:
        _store(layer.bias, bias_O)
        return
    layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, add_initializer(graph_of(layer.node), f"{layer.node.name}/bias", bias_O))


def _reshape(pair: _Pair, channels: int) -> None:
    """Give what stands between the layers its new sizes."""
    size = channels
    for node in (pair.first.node, *pair.between):
        value = node.outputs[0]
        if node.op_type in _FLAT:
            size = channels * pair.each
        if node.op_type == "Reshape" and np.asarray(constant(node.inputs[1]))[1] != -1:
            shape = np.array([np.asarray(constant(node.inputs[1]))[0], size], np.int64)
            node.replace_input_with(1, add_initializer(graph_of(node), f"{node.name}/shape", shape))
        if value.shape is not None and len(value.shape) > 1:
            value.shape = ir.Shape([value.shape[0], size, *value.shape.dims[2:]])
