"""Quantized layers held against their float originals on the same input: all of them in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_initializer, fresh_name
from gossamer.measuring.batches import Outputs
from gossamer.measuring.means import Mean, half_means, joined
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples

Shifts = Mapping[str, np.ndarray]  # layer -> what its output is too high by, (O,)
NO_SHIFTS: Shifts = MappingProxyType({})
WIDE = 16  # channels: the runtime averages fewer one by one


@dataclass(frozen=True)
class Probe:
    """A quantized layer beside its float original.

    Attributes:
        name: of the node, in both graphs.
        original: the float node.
        chain: the float nodes that make up its activation, the last one giving the result; often none.
        input_scale, zero_point: of its input, as in the graph.
        w, bias_O: the weight and bias as the runtime will see them, float32.
        bias_scale_O: of its bias, if it has one or were to get one.
    """

    name: str
    original: ir.Node
    chain: tuple[ir.Node, ...]
    input_scale: np.ndarray
    zero_point: np.ndarray
    w: np.ndarray
    bias_O: np.ndarray
    bias_scale_O: np.ndarray

    @property
    def result(self) -> ir.Value:
        """The layer's output behind its activation, in the float model."""
        return (self.chain[-1] if self.chain else self.original).outputs[0]

    @property
    def position_axes(self) -> tuple[int, ...]:
        """The axes of the layer's output that count positions."""
        return tuple(range(2, self.w.ndim)) if self.original.op_type == "Conv" else ()


def mean_errors(
    reference: Model, probes: Sequence[Probe], samples: Samples, threads: int
) -> tuple[list[tuple[Mean, Mean]], list[Outputs]]:
    """What each quantized layer's output is too high by, by channel, over even and over odd samples.

    Returns:
        The errors, and the float model's own outputs in batches of its fixed size, or else sample by sample.

    Raises:
        CandidateError: the runtime refuses the graph that measures.
    """
    twins = _Twins(reference, probes, NO_SHIFTS)
    kept: dict[str, list[np.ndarray]] = {value.name or "": [] for value in reference.ir.graph.outputs}
    means = half_means(twins.model, twins.outputs, samples, threads, kept)
    outputs = [dict(zip(kept, arrays, strict=True)) for arrays in zip(*kept.values(), strict=True)]
    return [means[name] for name in twins.outputs], outputs


def error_powers(
    reference: Model, probes: Sequence[Probe], shifts: Shifts, samples: Samples, threads: int
) -> list[tuple[float, float]]:
    """The mean square of each layer's error behind its activation: as it is, and with its shift taken off.

    Raises:
        CandidateError: see `mean_errors`.
    """
    twins = _Twins(reference, probes, shifts)
    halves = half_means(twins.model, twins.outputs, samples, threads)
    totals = [float(joined(*halves[name]).mean_O.sum()) for name in twins.outputs]
    return list(zip(totals[::2], totals[1::2], strict=True))


class _Twins:
    """The float model with a quantized twin beside each layer, fed the same float input.

    Attributes:
        model: with the errors as additional outputs, each (B, O), its mean over the positions of every sample.
        outputs: their names. Without shifts one a layer, the error itself; with shifts two, the squared error behind
            the activation with the twin as it is and with the shift taken off.
    """

    def __init__(self, reference: Model, probes: Sequence[Probe], shifts: Shifts) -> None:
        self.model = reference.clone()
        self.outputs: list[str] = []
        self._graph = self.model.ir.graph
        self._nodes = {node.name: node for node in self._graph}
        for probe in probes:
            if not shifts:
                self._give(probe, self._add("Sub", self._quantized_mean(probe), self._mean(probe, self._output(probe))))
                continue
            y = self._quantized(probe)
            shift_O = np.expand_dims(shifts[probe.name].astype(np.float32), [axis - 1 for axis in probe.position_axes])
            for twin in (y, self._add("Sub", y, self._constant(shift_O))):
                error = self._add("Sub", *self._behind_activation(probe, twin))
                self._give(probe, self._mean(probe, self._add("Mul", error, error)))

    def _output(self, probe: Probe) -> ir.Value:
        return self._nodes[probe.name].outputs[0]

    def _quantized(self, probe: Probe) -> ir.Value:
        weights = self._constant(probe.w), self._constant(probe.bias_O)
        return self._copy(self._nodes[probe.name], self._quantized_input(probe), *weights)

    def _quantized_input(self, probe: Probe) -> ir.Value:
        scale, zero_point = self._constant(probe.input_scale), self._constant(probe.zero_point)
        integer = self._add("QuantizeLinear", self._nodes[probe.name].inputs[0], scale, zero_point)
        return self._add("DequantizeLinear", integer, scale, zero_point)

    def _quantized_mean(self, probe: Probe) -> ir.Value:
        """The twin's mean over positions: of its output, or what is the same, its output for the mean patch."""
        pool = mean_patch(self._nodes[probe.name], self.model.ir.opset_imports.get("", 0))
        if pool is None:
            return self._mean(probe, self._quantized(probe))
        patch = self._append(ir.node("AveragePool", [self._quantized_input(probe)], pool))
        group = {"group": self._nodes[probe.name].attributes.get_int("group", 1)}
        weights = [self._constant(probe.w), self._constant(probe.bias_O)]
        return self._append(ir.node("Flatten", [self._append(ir.node("Conv", [patch, *weights], group))]))

    def _behind_activation(self, probe: Probe, twin: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The twin's result and the original's."""
        original = self._nodes[probe.name].outputs[0]
        known: dict[ir.Value | None, ir.Value | None] = {original: twin}
        for node in (self._nodes[node.name] for node in probe.chain):
            original = node.outputs[0]
            twin = known[original] = self._copy(node, *(known.get(value, value) for value in node.inputs))
        return twin, original

    def _mean(self, probe: Probe, value: ir.Value) -> ir.Value:
        """Over positions, (B, O)."""
        return self._add("Flatten", self._add("GlobalAveragePool", value)) if probe.position_axes else value

    def _give(self, probe: Probe, error: ir.Value) -> None:
        error.dtype = ir.DataType.FLOAT
        self._graph.outputs.append(error)
        self.outputs.append(error.name or "")

    def _constant(self, array: np.ndarray) -> ir.Value:
        return add_initializer(self._graph, "twin", array)

    def _copy(self, node: ir.Node, *inputs: ir.Value | None) -> ir.Value:
        return self._append(ir.node(node.op_type, list(inputs), node.attributes))

    def _add(self, op_type: str, *inputs: ir.Value | None) -> ir.Value:
        return self._append(ir.node(op_type, list(inputs)))

    def _append(self, node: ir.Node) -> ir.Value:
        node.outputs[0].name = node.name = fresh_name(self._graph, "twin")
        self._graph.append(node)
        return node.outputs[0]


def mean_patch(node: ir.Node, opset: int) -> dict[str, list[int] | int] | None:
    """The options of an AveragePool that gives the mean of all patches which a Conv multiplies with its filters.

    The mean output is the filters' output for the mean patch, for a small part of the multiplications: of each place
    of a filter, the mean over where it comes to lie. So its window is as large as the Conv's output, and its steps
    are the Conv's dilation. None where the Conv is depthwise or reads few channels, and is as cheap itself, and where
    the sizes are not known, or there is no such AveragePool.
    """
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) > 1:
        return None
    sizes, (channels, *kernel) = (_known_sizes(node.inputs[0])[1:], _known_sizes(node.inputs[1]) or [0])
    if channels < WIDE or len(sizes) != len(kernel):
        return None
    ones, zeros = [1] * len(sizes), [0] * len(sizes)
    steps, dilations = node.attributes.get_ints("strides", ones), node.attributes.get_ints("dilations", ones)
    pads = np.array(node.attributes.get_ints("pads", zeros * 2)).reshape(2, -1)
    room = np.array(sizes) + pads.sum(axis=0) - np.multiply(dilations, np.subtract(kernel, 1)) - 1
    window = room // steps + 1
    pads[1] -= room % steps  # what the last step does not reach
    padded_by_itself = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if padded_by_itself or (pads < 0).any() or (pads >= window).any() or (max(steps) > 1 and opset < 19):
        return None
    return {
        "kernel_shape": window.tolist(),
        "pads": pads.ravel().tolist(),
        "strides": list(dilations),
        "dilations": list(steps),
        "count_include_pad": 1,
    }


def _known_sizes(value: ir.Value | None) -> list[int]:
    """Of all axes but the first, those that are known."""
    axes = () if value is None or value.shape is None else value.shape.dims[1:]
    return [axis for axis in axes if isinstance(axis, int)]
