"""Quantized layers held against their float originals on the same input: all of them in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_initializer, fresh_name
from gossamer.measuring.means import Mean, half_means, joined
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples

Shifts = Mapping[str, np.ndarray]  # layer -> what its output is too high by, (O,)
NO_SHIFTS: Shifts = MappingProxyType({})


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


def mean_errors(reference: Model, probes: Sequence[Probe], samples: Samples, threads: int) -> list[tuple[Mean, Mean]]:
    """What each quantized layer's output is too high by, by channel, over even and over odd samples.

    Raises:
        CandidateError: the runtime refuses the graph that measures.
    """
    twins = _Twins(reference, probes, NO_SHIFTS)
    means = half_means(twins.model, twins.outputs, samples, threads)
    return [means[name] for name in twins.outputs]


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
            y = self._quantized(probe)
            if not shifts:
                self._give(probe, self._add("Sub", y, self._nodes[probe.name].outputs[0]))
                continue
            shift_O = np.expand_dims(shifts[probe.name].astype(np.float32), [axis - 1 for axis in probe.position_axes])
            for twin in (y, self._add("Sub", y, self._constant(shift_O))):
                error = self._add("Sub", *self._behind_activation(probe, twin))
                self._give(probe, self._add("Mul", error, error))

    def _quantized(self, probe: Probe) -> ir.Value:
        original = self._nodes[probe.name]
        scale, zero_point = self._constant(probe.input_scale), self._constant(probe.zero_point)
        integer = self._add("QuantizeLinear", original.inputs[0], scale, zero_point)
        real = self._add("DequantizeLinear", integer, scale, zero_point)
        return self._copy(original, real, self._constant(probe.w), self._constant(probe.bias_O))

    def _behind_activation(self, probe: Probe, twin: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The twin's result and the original's."""
        original = self._nodes[probe.name].outputs[0]
        known: dict[ir.Value | None, ir.Value | None] = {original: twin}
        for node in (self._nodes[node.name] for node in probe.chain):
            original = node.outputs[0]
            twin = known[original] = self._copy(node, *(known.get(value, value) for value in node.inputs))
        return twin, original

    def _give(self, probe: Probe, error: ir.Value) -> None:
        if probe.position_axes:
            axes = self._constant(np.array(probe.position_axes, np.int64))
            error = self._append(ir.node("ReduceMean", [error, axes], {"keepdims": 0}))
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
