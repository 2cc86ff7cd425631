"""Changed layers held against their originals on the same input: all of them in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from gossamer.graph.counterparts import Counterpart
from gossamer.graph.edit import add_initializer, constant, fresh_name
from gossamer.measuring.means import Kept, Mean, half_means, joined
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples

Shifts = Mapping[str, np.ndarray]  # layer -> what its output is too high by, (O,)
NO_SHIFTS: Shifts = MappingProxyType({})
WIDE = 16  # channels: the runtime averages fewer one by one


def mean_errors(
    reference: Model, layers: Sequence[Counterpart], samples: Samples, threads: int
) -> tuple[list[tuple[Mean, Mean]], Kept]:
    """What each changed layer's output is too high by, by channel, over even and over odd samples.

    Returns:
        The errors, and as many of the original's own outputs as a limit allows.

    Raises:
        CandidateError: the runtime refuses the graph that measures.
    """
    twins = _Twins(reference, layers, NO_SHIFTS)
    kept = Kept([value.name or "" for value in reference.ir.graph.outputs])
    means = half_means(twins.model, twins.outputs, samples, threads, kept)
    return [means[name] for name in twins.outputs], kept


def error_powers(
    reference: Model, layers: Sequence[Counterpart], shifts: Shifts, samples: Samples, threads: int
) -> list[tuple[float, float]]:
    """The mean square of each layer's error behind its activation: as it is, and with its shift taken off.

    Raises:
        CandidateError: see `mean_errors`.
    """
    twins = _Twins(reference, layers, shifts)
    halves = half_means(twins.model, twins.outputs, samples, threads)
    totals = [float(joined(*halves[name]).mean_O.sum()) for name in twins.outputs]
    return list(zip(totals[::2], totals[1::2], strict=True))


class _Twins:
    """The original with a twin beside each layer that was changed, fed the same input.

    Attributes:
        model: with the errors as additional outputs, each (rows, O), as many rows for every sample. Of a convolution
            one, the mean over its positions.
        outputs: their names. Without shifts one a layer, the error itself; with shifts two, the squared error behind
            the activation with the twin as it is and with the shift taken off.
    """

    def __init__(self, reference: Model, layers: Sequence[Counterpart], shifts: Shifts) -> None:
        self.model = reference.clone()
        self.outputs: list[str] = []
        self._graph = self.model.ir.graph
        self._nodes = {node.name: node for node in self._graph}
        self._names = 0
        for layer in layers:
            if not shifts:
                self._give(layer, self._add("Sub", self._twin_mean(layer), self._mean(layer, self._result(layer))))
                continue
            y = self._twin(layer)
            shift_O = np.expand_dims(shifts[layer.name].astype(np.float32), [axis - 1 for axis in layer.position_axes])
            for twin in (y, self._add("Sub", y, self._constant(shift_O))):
                error = self._add("Sub", *self._behind_activation(layer, twin))
                self._give(layer, self._mean(layer, self._add("Mul", error, error)))

    def _result(self, layer: Counterpart) -> ir.Value:
        """The output of the original in the clone."""
        maker = layer.result.producer()
        return self._nodes[None if maker is None else maker.name].outputs[0]

    def _twin(self, layer: Counterpart) -> ir.Value:
        known = self._copies(layer, layer.nodes)
        return known[layer.nodes[-1].outputs[0]]

    def _twin_mean(self, layer: Counterpart) -> ir.Value:
        """The twin's mean over positions: of its output, or what is the same, its output for the mean patch."""
        last = layer.nodes[-1]
        pool = mean_patch(self._nodes[layer.name], self.model.ir.opset_imports.get("", 0))
        if pool is None or last.name != layer.name:
            return self._mean(layer, self._twin(layer))
        x, *weights = self._inputs(last, self._copies(layer, layer.nodes[:-1]))
        patch = self._append(ir.node("AveragePool", [x], pool)).outputs[0]
        return self._add("Flatten", self._add("Conv", patch, *weights))

    def _copies(self, layer: Counterpart, nodes: Sequence[ir.Node]) -> dict[ir.Value, ir.Value]:
        """What these nodes read and give -> what their copies at the end of the graph do."""
        x = self._nodes[layer.name].inputs[0]
        known = {} if x is None else {layer.entry: x}
        for node in nodes:
            copy = self._copy(node, *self._inputs(node, known))
            known.update(zip(node.outputs, copy.outputs, strict=True))
        return known

    def _inputs(self, node: ir.Node, known: dict[ir.Value, ir.Value]) -> list[ir.Value | None]:
        """What a copy of a node reads; a constant comes along."""
        for value in node.inputs:
            if value is not None and value not in known:
                known[value] = self._constant(np.asarray(constant(value)))
        return [None if value is None else known[value] for value in node.inputs]

    def _behind_activation(self, layer: Counterpart, twin: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The twin's outcome and the original's."""
        original = self._result(layer)
        known: dict[ir.Value | None, ir.Value | None] = {original: twin}
        for node in (self._nodes[node.name] for node in layer.chain):
            original = node.outputs[0]
            twin = known[original] = self._copy(node, *(known.get(value, value) for value in node.inputs)).outputs[0]
        return twin, original

    def _mean(self, layer: Counterpart, value: ir.Value) -> ir.Value:
        """Over positions, (B, O), or all rows of a product, (rows, O)."""
        if layer.is_convolution:
            return self._add("Flatten", self._add("GlobalAveragePool", value))
        return self._add("Reshape", value, self._constant(np.array([-1, len(layer.bias_O)], np.int64)))

    def _give(self, layer: Counterpart, error: ir.Value) -> None:
        error.dtype = ir.DataType.FLOAT
        self._graph.outputs.append(error)
        self.outputs.append(error.name or "")

    def _constant(self, array: np.ndarray) -> ir.Value:
        return add_initializer(self._graph, self._name(), array)

    def _copy(self, node: ir.Node, *inputs: ir.Value | None) -> ir.Node:
        copy = ir.node(node.op_type, list(inputs), node.attributes, domain=node.domain, num_outputs=len(node.outputs))
        return self._append(copy)

    def _add(self, op_type: str, *inputs: ir.Value | None) -> ir.Value:
        return self._append(ir.node(op_type, list(inputs))).outputs[0]

    def _name(self) -> str:
        self._names += 1
        return fresh_name(self._graph, f"twin_{self._names}")

    def _append(self, node: ir.Node) -> ir.Node:
        node.name = self._name()
        for output in node.outputs:
            output.name = self._name()
        if node.domain:
            self._graph.opset_imports.setdefault(node.domain, 1)
        self._graph.append(node)
        return node


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
