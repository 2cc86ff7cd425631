"""Take outlier channels out of activations and put them into the weights that read them, where int8 has room for them.

Xiao et al. 2022, "SmoothQuant: accurate and efficient post-training quantization for large language models". Channel j
of an activation is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), and row j of every weight that reads it is
multiplied by s_j; max|x_j| is over the calibration samples, max|w_j| over all these weights. The division costs no
node, as it goes into the constants of what makes the activation:

    LayerNormalization, RMSNormalization        its scale and bias
    Add, Sub, Mul, Div, Sum with a constant     the constant; of a sum, the other side as well
    MatMul, Gemm                                the output channels of weight and bias
    Relu, LeakyRelu, Identity, Dropout          what is in front
    product with a computed gate                one of its two sides
    Reshape, Transpose, the product of attention with its values, Attention      the values, if channels stay whole

A scale does not pass through Gelu, Softmax and the like. Left alone, with a note, unless the option `products` allows a
Mul in front: activations that anything else reads too, such as a residual sum; layers one of which is out of scope.
Weight matrices that are tied are always left alone. Small constants that
others read too are copied. The scope names the layers that read; what makes their activation changes with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.smoothing import best_scales, scales
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_initializer, add_node, attribute_int, constant, graph_of
from gossamer.graph.layers import Layer, layer_of
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = True
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ()

LAYERS = ("MatMul", "Gemm")
NORMS = ("LayerNormalization", "RMSNormalization")
PASSED = ("Relu", "LeakyRelu", "Identity", "Dropout")  # f(x / s) = f(x) / s for s > 0
PRODUCT_GAIN_DB = 1.0  # less noise by this is worth a Mul
STEP = 1e-3  # if no factor's logarithm is above this there is nothing to gain, as behind a first run

Axes = tuple[int, ...]  # which axes count the channels, in order, from the end: (-1,), or (-3, -1) with the heads apart
LAST: Axes = (-1,)
TIED = "their weights are tied to others"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options. For other values at other layers, use one step for each with its scope.

    Attributes:
        alpha: 0 leaves all difficulty with the activations and evens out the weights, 1 does the reverse; null finds
            for each activation the one with the least noise in the products that read it.
        ranges: whether the quantizer behind takes its range anew at each call or has one for all; the search for the
            exponent asks.
        products: where no constant takes the scale, a Mul in front of the layers does; it costs a little time.
    """

    alpha: float | None = 0.5
    products: bool = False
    ranges: Literal["dynamic", "static"] = "dynamic"


class Factor(NamedTuple):
    """A constant to be multiplied by s ** power along an axis: input `place` of a node."""

    node: ir.Node
    place: int
    power: int
    axis: int


class Group(NamedTuple):
    """The layers that read one activation, and the constants that can take its scale; or why that cannot be."""

    x: ir.Value
    layers: tuple[Layer, ...]
    factors: tuple[Factor, ...]
    obstacle: str = ""

    @property
    def weights(self) -> tuple[Factor, ...]:
        """The layers' own side of the scale."""
        return tuple(Factor(layer.node, 1, 1, 1 - layer.channel_axis) for layer in self.layers)


def requires(model: Model, config: Config, scope: Scope) -> None:
    """The exponent makes sense.

    Raises:
        OptionError: it does not.
    """
    if config.alpha is not None and not 0 <= config.alpha <= 1:
        raise OptionError(f"smooth_activations: alpha is {config.alpha}; allowed is 0 to 1, or null")


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Smooth every activation that layers in scope read, the last first.

    A layer's output channels are scaled for the layers behind it before its own input is looked at; so each activation
    is looked at once, and a second run finds nothing to do.

    Raises:
        ModelError, DataError, CandidateError: see `gossamer.measuring.channels.channel_peaks`.
    """
    clone = model.clone()
    groups = _groups(clone, scope)
    if config.products:
        groups = [group._replace(obstacle="") if group.obstacle not in (TIED, "") else group for group in groups]
    notes = _notes(groups)
    possible = [group for group in groups if not group.obstacle]
    if not possible or evidence is None:
        return Result(model, False, notes)
    names = [group.x.name or "" for group in possible]
    # all in one pass over the samples, and kept for the questions below
    if config.alpha is None:
        evidence.activation_rows(model, names)
    if config.alpha is not None or config.ranges == "static":
        evidence.channel_peaks(model, names)
    smoothed = 0
    for group in reversed(possible):
        s_C = _scales(group, evidence, model, config)
        if np.abs(np.log(s_C)).max(initial=0) > STEP:
            for factor in group.factors or group.weights:
                _multiply(factor, s_C)
            if not group.factors:
                _divide_in_front(group, s_C)
            smoothed += 1
    if not smoothed:
        return Result(model, False, notes)
    return Result(clone, True, (f"smooth_activations: {smoothed} activations smoothed", *notes))


def ensures(before: Model, result: Result, config: Config) -> None:
    """No node came or went, and no constant lost its finiteness.

    Raises:
        CandidateError: names the operator or the node.
    """
    if not result.modified:
        return
    counts = [Counter(node.op_type for node in model.ir.graph) for model in (before, result.model)]
    for op_type in counts[0] | counts[1]:
        if counts[0][op_type] != counts[1][op_type] and not (config.products and op_type == "Mul"):
            raise CandidateError(f"smooth_activations changed the number of {op_type} nodes")
    lost = set(_finite_nodes(before)) - set(_finite_nodes(result.model))
    for node in sorted(lost & {node.name for node in result.model.ir.graph}):
        raise CandidateError(f"smooth_activations made a constant of {node} infinite; skip this layer")


def _finite_nodes(model: Model) -> Iterator[str]:
    """The nodes none of whose constants holds an infinity or NaN."""
    for node in model.ir.graph:
        arrays = [constant(value) for value in node.inputs]
        if all(array is None or array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
            yield node.name or ""


def _groups(model: Model, scope: Scope) -> list[Group]:
    """The activations that layers in scope read, in graph order of their first layer."""
    wanted = {node: layer_of(node) for node in nodes_in_scope(model, scope, *LAYERS)}
    layers = {node: layer for node, layer in wanted.items() if isinstance(layer, Layer)}
    activations = dict.fromkeys(layer.x for layer in layers.values())  # an ordered set
    return [_group(x, layers) for x in activations]


def _group(x: ir.Value, layers: dict[ir.Node, Layer]) -> Group:
    readers = {use.node for use in x.uses()}
    found = tuple(layer for node, layer in layers.items() if node in readers)  # in graph order
    others = [use.node for use in x.uses() if use.node not in layers or use.idx != 0]
    if x.is_graph_output():
        return Group(x, found, (), "they read an output of the model")
    if others:
        kind = "a layer out of scope" if others[0].op_type in LAYERS else others[0].op_type
        return Group(x, found, (), f"{kind} reads the same activation")
    if any(len(layer.weight.uses()) > 1 or layer.weight.is_graph_output() for layer in found):
        return Group(x, found, (), TIED)
    channels = np.asarray(constant(found[0].weight)).shape[1 - found[0].channel_axis]
    made = _absorb(x, LAST, channels)
    if isinstance(made, str):
        return Group(x, found, (), made)
    return Group(x, found, (*made, *Group(x, found, ()).weights))


def _notes(groups: Sequence[Group]) -> tuple[str, ...]:
    """One line a reason, naming the layers; of many only the first two."""
    by_reason: dict[str, list[str]] = {}
    for group in groups:
        if group.obstacle:
            by_reason.setdefault(group.obstacle, []).extend(layer.node.name or "" for layer in group.layers)
    return tuple(f"smooth_activations left {_listed(names)} alone: {reason}" for reason, names in by_reason.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} layers, {names[0]} and {names[1]} among them,"


def _scales(group: Group, evidence: Evidence, model: Model, config: Config) -> np.ndarray:
    """What each channel is divided by, float64 (C,)."""
    name = group.x.name or ""
    w_CO = np.concatenate([_weight(layer) for layer in group.layers], axis=1)
    if config.alpha is not None:
        x_peak_C = evidence.channel_peaks(model, [name])[name]
        if x_peak_C.shape != w_CO.shape[:1]:  # no sample reached it
            return np.ones(0)
        return scales(x_peak_C, np.abs(w_CO).max(axis=1, initial=0).astype(np.float64), config.alpha)
    parts = evidence.activation_rows(model, [name])[name]
    if not sum(map(len, parts)):
        return np.ones(0)
    peak_C = evidence.channel_peaks(model, [name])[name] if config.ranges == "static" else None
    return best_scales(parts, w_CO, 0.0 if group.factors else PRODUCT_GAIN_DB, peak_C)


def _weight(layer: Layer) -> np.ndarray:
    """(C, O), whatever the layer's own order."""
    w = np.asarray(constant(layer.weight))
    return w if layer.channel_axis == 1 else w.T


def _multiply(factor: Factor, s_C: np.ndarray) -> None:
    """Write a constant anew; one that others read too is copied first."""
    node, value = factor.node, factor.node.inputs[factor.place]
    array = np.asarray(constant(value))
    power_C = s_C**factor.power
    by = power_C.reshape(-1, 1) if factor.axis == 0 and array.ndim == 2 else power_C
    with np.errstate(over="ignore"):  # `ensures` looks for what overflowed
        scaled = (array * by).astype(np.float32)
    if value is not None and value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        value.const_value, value.shape = ir.tensor(scaled, name=value.name), ir.Shape(scaled.shape)
    else:
        name = "constant" if value is None else value.name
        node.replace_input_with(factor.place, add_initializer(graph_of(node), f"{name}/{node.name}", scaled))


def _divide_in_front(group: Group, s_C: np.ndarray) -> None:
    """A Mul that only the group's layers read."""
    first = group.layers[0].node
    name = f"{group.x.name}_smoothed"
    inverse = add_initializer(graph_of(first), f"{name}_scale", (1 / s_C).astype(np.float32))
    scaled = add_node(first, "Mul", [group.x, inverse], name, ir.DataType.FLOAT, group.x.shape)
    for layer in group.layers:
        layer.node.replace_input_with(0, scaled)


Found = tuple[Factor, ...] | str


def _absorb(value: ir.Value, axes: Axes, channels: int) -> Found:
    """The constants to scale so that `value` is divided by s, or why there are none.

    `axes` are those of `value` that count its channels; all of them together count `channels`.
    """
    node = value.producer()
    if node is None:
        return "they read an input of the model or a constant"
    if node.domain != "" or node.graph is None or value.index() != 0:
        return f"{_named(node)} makes their activation and is not known to take a scale"
    if node.op_type in PASSED:
        return _in_front(node.inputs[0], axes, channels)
    if node.op_type in ("Reshape", "Transpose", "Attention"):
        return _moved(node, axes, channels)
    computed = constant(node.inputs[1]) is None if len(node.inputs) > 1 else False
    if node.op_type == "MatMul" and computed:
        return _weighted(node, axes, channels)
    if axes != LAST:
        return f"{node.op_type} stands where the channels are parted"
    if node.op_type in LAYERS:
        return _into_layer(node)
    if node.op_type in NORMS:
        return _into_norm(node, value)
    if node.op_type in ("Add", "Sum", "Sub", "Mul", "Div") and len(node.inputs) == 2:
        return _into_affine(node, channels)
    return f"a scale does not pass through {node.op_type}"


def _in_front(value: ir.Value | None, axes: Axes, channels: int) -> Found:
    """The same for a value inside the way, which nothing else may read."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return "what makes their activation is read elsewhere too"
    return _absorb(value, axes, channels)


def _named(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _into_layer(node: ir.Node) -> Found:
    layer = layer_of(node)
    if isinstance(layer, str):
        return f"{node.op_type} {node.name} makes their activation, and {layer}"
    if len(layer.weight.uses()) > 1 or layer.weight.is_graph_output():
        return f"the weight of {node.name}, which makes their activation, is tied to others"
    weight = Factor(node, 1, -1, layer.channel_axis)
    return (weight,) if layer.bias is None else (weight, Factor(node, 2, -1, -1))


def _into_norm(node: ir.Node, value: ir.Value) -> Found:
    rank = None if value.shape is None else len(value.shape)
    if attribute_int(node, "axis", -1) not in (-1, rank and rank - 1):
        return f"{node.op_type} {node.name} is over more than the last axis"
    parts = [index for index in (1, 2) if len(node.inputs) > index and node.inputs[index] is not None]
    if not all(_is_float_constant(node.inputs[index]) for index in parts):
        return f"the scale or bias of {node.name} is computed at run time or not float32"
    return tuple(Factor(node, index, -1, -1) for index in parts)


def _is_float_constant(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.dtype == np.float32


def _into_affine(node: ir.Node, channels: int) -> Found:
    """A product or quotient takes the scale in its constant, a sum in both sides."""
    constants = [index for index in (0, 1) if _is_float_constant(node.inputs[index])]
    whole = [index for index in (0, 1) if _axis(node.inputs[index], -1) == channels]
    if len(constants) == 1:
        at, other = constants[0], 1 - constants[0]
        array = np.asarray(constant(node.inputs[at]))
        if array.size != 1 and array.shape[-1] != channels:
            return f"the constant of {node.op_type} {node.name} would grow by all channels"
        if node.op_type in ("Mul", "Div"):
            return (Factor(node, at, 1 if node.op_type == "Div" and at == 1 else -1, -1),)
        if other not in whole:
            return f"{node.op_type} {node.name} widens its input to all channels"
        found = _in_front(node.inputs[other], LAST, channels)
        return found if isinstance(found, str) else (*found, Factor(node, at, -1, -1))
    reason = f"both sides of {node.op_type} {node.name}, which makes their activation, are computed"
    if node.op_type != "Mul":
        return reason
    sides = [_in_front(node.inputs[index], LAST, channels) for index in whole]
    return next((found for found in sides if not isinstance(found, str)), reason)


def _axis(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis counted from the end, if it is known."""
    dims = () if value is None or value.shape is None else tuple(value.shape)
    length = dims[axis] if len(dims) >= -axis else None
    return length if isinstance(length, int) else None


def _weighted(node: ir.Node, axes: Axes, channels: int) -> Found:
    """A product with computed values on its right: every output channel is a weighted sum of that channel of theirs."""
    values, output = node.inputs[1], node.outputs[0]
    rank = 0 if values is None or values.shape is None else len(values.shape)
    same = all(_axis(values, axis) == _axis(output, axis) is not None for axis in axes)
    if axes[-1] != -1 or -2 in axes or rank < 2 or not same:
        return f"MatMul {node.name} does not keep the channels apart"
    return _in_front(values, axes, channels)


def _moved(node: ir.Node, axes: Axes, channels: int) -> Found:
    """Follow the channels through an operator that moves them, or attends over them."""
    source, before = node.inputs[0], None
    if node.op_type == "Attention":
        source = node.inputs[2]
        before = axes if _heads_match(node, axes) else None
    elif node.op_type == "Reshape":
        before = _before_reshape(node, axes, channels)
    elif source is not None and source.shape is not None:
        rank = len(source.shape)
        perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
        before = tuple(perm[axis] - rank for axis in axes)
    if before is None:
        return f"the channels cannot be followed through {node.op_type} {node.name}"
    return _in_front(source, before, channels)


def _before_reshape(node: ir.Node, axes: Axes, channels: int) -> Axes | None:
    """The last axes, if they count the channels on both sides: then the rest counts the rows, however it is written."""
    source, output = node.inputs[0], node.outputs[0]
    if prod(_axis(output, axis) or 0 for axis in axes) != channels or axes != tuple(range(-len(axes), 0)):
        return None
    lengths = [_axis(source, -axis) or 0 for axis in range(1, 1 + len(source.shape or ()) if source else 1)]
    sizes = list(accumulate(lengths, mul))
    return tuple(range(-1 - sizes.index(channels), 0)) if channels in sizes else None


def _heads_match(node: ir.Node, axes: Axes) -> bool:
    """Whether output channel and value channel are one: as many heads of values as of queries, none remembered."""
    q, v, remembered = node.inputs[0], node.inputs[2], [value for value in node.inputs[4:] if value is not None]
    if remembered or q is None or v is None or v.shape is None or len(node.outputs) > 1:
        return False
    if len(v.shape) == 3:
        q_heads, kv_heads = (attribute_int(node, f"{side}_num_heads", 0) for side in ("q", "kv"))
        return axes == LAST and q_heads == kv_heads > 0
    return axes == (-3, -1) and _axis(q, -3) == _axis(v, -3) is not None
