"""Even out the weight ranges of channels across neighbouring convolutions, so that one scale fits all of them better.

A channel between two convolutions can be divided by s > 0 on one side and multiplied by s on the other without
changing the network, if what stands between them commutes with that: nothing, Relu, LeakyRelu or PRelu. With r1 the
largest magnitude of the channel's weights in the first convolution and r2 in the second, s = sqrt(r1 / r2) makes both
sqrt(r1 r2) (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"). Chains,
also with depthwise convolutions inside, are swept until nothing moves.

Left alone, because the function would change or could not be shown to stay: Clip with an upper bound (Relu6; whether
the bound is ever reached cannot be known without data), residual branches, shared weights. A channel whose scale
would leave [1/max_scale, max_scale], dead ones among them, keeps its weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError, OptionError
from gossamer.graph.edit import add_initializer, attribute_int, constant
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = True
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ()

_STEP = 1e-3  # a sweep that moves no channel by more than this (of its log scale) is the last
_SWEEPS = 1000


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        max_scale: largest factor, and its inverse the smallest, that a channel may still need.
    """

    max_scale: float = 100.0


class _Link(NamedTuple):
    """A convolution and all readers of its output, convolutions too; both sides share the channels."""

    first: ir.Node
    second: tuple[ir.Node, ...]


class _Weight:
    """The magnitudes of a convolution's weight and the scales gathered for it so far.

    Attributes:
        magnitude_GOI: largest |w| over the kernel, by group, output and input channel of the group.
        out_scale: (G * O,) divides the outputs.   in_scale: (G * I,) multiplies the inputs.
    """

    def __init__(self, node: ir.Node) -> None:
        w = np.abs(np.asarray(constant(node.inputs[1]), np.float64))
        groups = attribute_int(node, "group", 1)
        self.magnitude_GOI = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).max(axis=3, initial=0)
        self.out_scale = np.ones(w.shape[0])
        self.in_scale = np.ones(groups * w.shape[1])

    def _scaled(self) -> np.ndarray:
        groups, outputs, inputs = self.magnitude_GOI.shape
        scale = self.in_scale.reshape(groups, 1, inputs) / self.out_scale.reshape(groups, outputs, 1)
        return np.asarray(self.magnitude_GOI * scale)

    def output_ranges(self) -> np.ndarray:
        """Largest magnitude of each output channel as scaled so far, (G * O,)."""
        return np.asarray(self._scaled().max(axis=2, initial=0).reshape(-1))

    def input_ranges(self) -> np.ndarray:
        """Largest magnitude of each input channel as scaled so far, (G * I,)."""
        return np.asarray(self._scaled().max(axis=1, initial=0).reshape(-1))


def requires(model: Model, config: Config, scope: Scope) -> None:
    """The bound on the scales makes sense.

    Raises:
        OptionError: it does not.
    """
    if not 1 < config.max_scale <= 1e6:
        raise OptionError(f"equalize_channels: max_scale is {config.max_scale}; allowed is above 1, up to 1e6")


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Equalize every chain of convolutions in scope."""
    clone = model.clone()
    allowed = {node: None for node in nodes_in_scope(clone, scope, "Conv") if _may_change(node)}  # an ordered set
    links = [_Link(node, readers) for node in allowed if (readers := _readers(node, allowed))]
    weights = {node: _Weight(node) for link in links for node in (link.first, *link.second)}
    if _sweep(links, weights, config.max_scale) < 2 * _STEP:  # twice: a second run must find nothing to do
        return Result(model, False)
    for _ in range(_SWEEPS):
        if _sweep(links, weights, config.max_scale) < _STEP:
            break
    with np.errstate(over="ignore"):  # `ensures` looks for what overflowed
        for node, weight in weights.items():
            _rescale(clone.ir.graph, node, weight)
    return Result(clone, True, (f"equalize_channels: {len(links)} pairs of convolutions equalized",))


def ensures(before: Model, result: Result, config: Config) -> None:
    """No weight lost its finiteness.

    Raises:
        CandidateError: names the node.
    """
    if not result.modified:
        return
    for old, new in zip(before.ir.graph, result.model.ir.graph, strict=True):
        for one, other in zip(old.inputs[1:], new.inputs[1:], strict=False):
            if old.op_type == "Conv" and _is_finite(one) and not _is_finite(other):
                raise CandidateError(f"equalize_channels made the weights of {old.name} infinite; lower max_scale")


def _is_finite(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is None or bool(np.isfinite(array).all())


def _may_change(node: ir.Node) -> bool:
    """A convolution with float32 constants whose weight nothing else reads."""
    weight = node.inputs[1]
    if weight is None or len(weight.uses()) > 1 or weight.is_graph_output():
        return False
    arrays = [constant(value) for value in node.inputs[1:] if value is not None]
    return all(array is not None and array.dtype == np.float32 for array in arrays)


def _readers(first: ir.Node, allowed: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
    """The convolutions that read this one's output, if all its readers are such and nothing between forbids scaling."""
    value = first.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output() and _commutes_with_scaling(value):
        value = value.consumers()[0].outputs[0]
    readers = value.uses()
    if value.is_graph_output() or not all(use.node in allowed and use.idx == 0 for use in readers):
        return ()
    return tuple(use.node for use in readers)


def _commutes_with_scaling(value: ir.Value) -> bool:
    """Whether f(x / s) = f(x) / s for every s > 0, channel by channel, for the only reader f of this value."""
    (node, index), *_ = value.uses()
    if node.domain != "" or index != 0:
        return False
    if node.op_type == "PRelu":
        return constant(node.inputs[1]) is not None
    if node.op_type == "Clip":
        bounds = [constant(value) for value in node.inputs[1:] if value is not None]
        return all(bound is not None and (float(bound) == 0 or np.isinf(bound)) for bound in bounds)
    return node.op_type in ("Relu", "LeakyRelu")


def _sweep(links: Iterable[_Link], weights: dict[ir.Node, _Weight], max_scale: float) -> float:
    """Equalize each pair once; gives the largest |log scale| of this sweep."""
    largest = 0.0
    for first, second in links:
        r1 = weights[first].output_ranges()
        r2 = np.max([weights[node].input_ranges() for node in second], axis=0)
        alive = (r1 > 0) & (r2 > 0) & np.isfinite(r1) & np.isfinite(r2)
        scale = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=alive))
        scale[(scale > max_scale) | (scale < 1 / max_scale)] = 1.0
        weights[first].out_scale *= scale
        for node in second:
            weights[node].in_scale *= scale
        largest = max(largest, float(np.abs(np.log(scale)).max(initial=0)))
    return largest


def _rescale(graph: ir.Graph, node: ir.Node, weight: _Weight) -> None:
    """Write the scaled weight, and the bias with it; a bias that others read too is copied first."""
    value, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    w = np.asarray(constant(value))
    groups, outputs, inputs = weight.magnitude_GOI.shape
    scale = weight.in_scale.reshape(groups, 1, inputs) / weight.out_scale.reshape(groups, outputs, 1)
    scale = scale.reshape(*w.shape[:2], *[1] * (w.ndim - 2))
    value.const_value = ir.tensor((w * scale).astype(np.float32), name=value.name)  # type: ignore[union-attr]
    if bias is None:
        return
    array = (np.asarray(constant(bias)) / weight.out_scale).astype(np.float32)
    if len(bias.uses()) == 1 and not bias.is_graph_output():
        bias.const_value = ir.tensor(array, name=bias.name)
    else:
        node.replace_input_with(2, add_initializer(graph, f"{node.name}/bias", array))
