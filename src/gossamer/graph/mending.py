"""What is done to layers whose weights were changed: other biases, and other scales of their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from gossamer.arith.affine import quantize_bias
from gossamer.graph.channel_scales import scale_channels
from gossamer.graph.counterparts import Counterpart
from gossamer.graph.edit import add_initializer, drop_unused, graph_of
from gossamer.graph.qdq import dequantized
from gossamer.nouns.model import Model

NO_SCALES: Mapping[str, np.ndarray] = MappingProxyType({})


def corrected(
    model: Model,
    layers: Sequence[Counterpart],
    shifts: Mapping[str, np.ndarray],
    scales: Mapping[str, np.ndarray] = NO_SCALES,
) -> Model:
    """The changed model with its channels first scaled and then shifted down, both (O,) by the layer's name."""
    clone = model.clone()
    nodes = {node.name: node for node in clone.ir.graph}
    for layer in layers:
        if layer.name in shifts:
            store_bias(nodes[layer.end], layer, scales.get(layer.name, 1.0) * layer.bias_O - shifts[layer.name])
        if layer.name in scales:
            scale_channels(nodes[layer.product.name], scales[layer.name])
    drop_unused(clone.ir)
    _take_names(clone.ir.graph, model.ir.graph)
    return clone


def _take_names(graph: ir.Graph, before: ir.Graph) -> None:
    """Give initializers the names of those that they took the place of: names take room in the file, too."""
    for name in [name for name in graph.initializers if name not in before.initializers]:
        old = name.rpartition("_")[0]
        if old in before.initializers and old not in graph.initializers:
            graph.initializers[name].name = old


def store_bias(end: ir.Node, counterpart: Counterpart, bias_O: np.ndarray) -> None:
    """Give the last node of a counterpart, or of its clone, another bias; one without gets one, which costs no time."""
    end.resize_inputs(max(counterpart.slot + 1, len(end.inputs)))
    if counterpart.bias_scale_O is not None:
        steps, scale_O = quantize_bias(bias_O, counterpart.bias_scale_O), counterpart.bias_scale_O
        end.replace_input_with(counterpart.slot, dequantized(end, f"{end.name}/bias_corrected", steps, scale_O, 0))
        return
    old, array = end.inputs[counterpart.slot], bias_O.astype(np.float32).reshape(counterpart.bias_shape)
    name = f"{end.name}_bias" if old is None else old.name or "bias"
    end.replace_input_with(counterpart.slot, add_initializer(graph_of(end), name, array))
