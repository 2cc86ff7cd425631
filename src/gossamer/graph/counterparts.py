"""Layers whose weights were changed, beside their originals in another graph, and the bias that can mend them.

What a layer has become is all that lies between the tensor that its original reads and the one that it gives, whatever
the form: constants in front of the node, MatMulNBits in its place, two thin layers. Tensors are known by their names,
which passes keep; where activations go through a quantizer, the node is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gossamer.arith.affine import dequantize
from gossamer.graph.activations import activation
from gossamer.graph.channel_scales import can_scale
from gossamer.graph.edit import constant
from gossamer.graph.layers import layer_of
from gossamer.graph.qdq import dequantizer, quantized_tensor, stored_integers
from gossamer.graph.weight_matrix import CONVOLUTIONS, PRODUCTS, WeightMatrix, weight_matrices

MOST_NODES = 40  # that one layer becomes: bit planes of two factors, and the layers

MULTIPLYING = (*CONVOLUTIONS, *PRODUCTS, "MatMulNBits", "MatMulInteger")


@dataclass(frozen=True)
class Counterpart:
    """What a layer has become.

    Attributes:
        original: the node of the original graph that multiplies.
        result: the original's output, behind the Add that is the bias of a MatMul.
        chain: the original's nodes that make up its activation, the last one giving the outcome; often none.
        entry: what stands for the original's input in the changed graph.
        nodes: of the changed graph, from there to the result, in order, with all that makes their constants.
        slot: where the last node takes a bias.
        bias_O: float32, zeros if there is none.
        bias_shape: as stored, in a float graph.
        bias_scale_O: of a bias in integers, as integer kernels want it; None of a float one.
    """

    original: ir.Node
    result: ir.Value
    chain: tuple[ir.Node, ...]
    entry: ir.Value
    nodes: tuple[ir.Node, ...]
    slot: int
    bias_O: np.ndarray
    bias_shape: tuple[int, ...]
    bias_scale_O: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Of the original."""
        return self.original.name or ""

    @property
    def end(self) -> str:
        """The node of the changed graph that takes the bias and gives the result."""
        return self.nodes[-1].name or ""

    @property
    def product(self) -> ir.Node:
        """The node of the changed graph that multiplies; of several the last."""
        return next(node for node in reversed(self.nodes) if node.op_type in MULTIPLYING)

    @property
    def can_scale(self) -> bool:
        """Whether its channels can be scaled; what integer kernels compute is left, as the bias is on their scale."""
        return self.bias_scale_O is None and can_scale(self.product)

    @property
    def outcome(self) -> ir.Value:
        """The original's output behind its activation."""
        return self.chain[-1].outputs[0] if self.chain else self.result

    @property
    def position_axes(self) -> tuple[int, ...]:
        """The axes behind that of the channels, which count positions; a product has its channels last."""
        return tuple(range(2, np.asarray(constant(self.original.inputs[1])).ndim)) if self.is_convolution else ()

    @property
    def is_convolution(self) -> bool:
        """Whether channels come second, and last otherwise."""
        return self.original.op_type in CONVOLUTIONS


def counterparts(changed: ir.Graph, original: ir.Graph, chosen: Collection[ir.Node]) -> list[Counterpart]:
    """Conv, ConvTranspose, Gemm and MatMul with an Add of a constant behind it, where the weight is another now.

    Args:
        chosen: of the nodes of the changed graph, those that may be mended.
    """
    if changed.opset_imports.get("", 0) != original.opset_imports.get("", 0):
        return []  # the nodes of one would mean something else in the other
    nodes = {node.name: node for node in changed}
    made = {output.name: node for node in changed for output in node.outputs}
    order = {node: index for index, node in enumerate(changed)}
    found = []
    for node in original:
        bias = _bias_node(node)
        if bias is None or not node.name:
            continue
        end = nodes.get(bias.name)
        if end is None or end.op_type != bias.op_type:
            end = made.get(bias.outputs[0].name) if bias is node else None
        counterpart = None if end is None else _counterpart(node, bias, end, order)
        if counterpart is not None and any(one in chosen for one in counterpart.nodes if one.op_type in MULTIPLYING):
            found.append(counterpart)
    return found


# --- the original


def _bias_node(node: ir.Node) -> ir.Node | None:
    """The node that takes the bias: a layer itself, or the Add behind a MatMul; None if it is no such layer."""
    matrices = weight_matrices(node) if node.op_type in (*CONVOLUTIONS, *PRODUCTS) else ""
    if isinstance(matrices, str) or matrices[0].slot != 1:
        return None
    if node.op_type == "Gemm" and isinstance(layer_of(node), str):
        return None
    if node.op_type != "MatMul":
        return node if _bias(node, 2, _channels(matrices[0])) is not None else None
    output = node.outputs[0]
    readers = output.consumers()
    if output.is_graph_output() or len(readers) != 1 or readers[0].op_type != "Add" or not readers[0].name:
        return None
    slot = _constant_slot(readers[0])
    return readers[0] if slot is not None and _bias(readers[0], slot, _channels(matrices[0])) is not None else None


def _channels(matrix: WeightMatrix) -> int:
    return matrix.shape_GOK[0] * matrix.shape_GOK[1]


def _constant_slot(add: ir.Node) -> int | None:
    """Which input of an Add is a constant, if one is."""
    constants = [slot for slot, value in enumerate(add.inputs) if constant(value) is not None]
    return constants[0] if len(constants) == 1 else None


def _bias(node: ir.Node, slot: int, channels: int) -> np.ndarray | None:
    """A float bias as stored, zeros if there is none; None if it is something else."""
    value = node.inputs[slot] if len(node.inputs) > slot else None
    if value is None:
        return np.zeros(channels, np.float32)
    array = constant(value)
    if array is None or array.dtype != np.float32 or array.size not in (1, channels):
        return None
    return array if array.size == 1 or array.shape[-1] == channels else None


# --- what it has become


def _counterpart(node: ir.Node, bias: ir.Node, end: ir.Node, order: dict[ir.Node, int]) -> Counterpart | None:
    """None if the weight is as it was, or the layer has become something else."""
    same = end.op_type == node.op_type and end.name == node.name
    entry = _entry(end, node, same)
    nodes = None if entry is None else _between(entry, end)
    if entry is None or nodes is None or _is_unchanged(node, end):
        return None
    quantizers = [one for one in nodes if one.op_type == "QuantizeLinear"]
    channels = np.asarray(weight_matrices(node)[0].shape_GOK[:2]).prod().item()  # type: ignore[union-attr]
    parts = tuple(sorted(nodes, key=order.__getitem__))
    if not any(one.op_type in MULTIPLYING for one in parts):
        return None
    common = node, bias.outputs[0], activation(bias.outputs[0]), entry, parts
    if quantizers:
        integers = _integer_bias(end, channels) if same and len(quantizers) == 1 else None
        return None if integers is None else Counterpart(*common, 2, integers[0], (channels,), integers[1])
    slot = _constant_slot(end) if end.op_type == "Add" else 2 if end.op_type in (*CONVOLUTIONS, "Gemm") else None
    stored = None if slot is None else _bias(end, slot, channels)
    if slot is None or stored is None:
        return None
    shape = (channels,) if end.op_type in CONVOLUTIONS else (*stored.shape[:-1], channels)
    return Counterpart(*common, slot, np.broadcast_to(stored.reshape(-1), (channels,)), shape)


def _entry(end: ir.Node, node: ir.Node, same: bool) -> ir.Value | None:
    """The tensor of the original's input, or the one that a quantizer in front of the node rounds."""
    source = quantized_tensor(end.inputs[0]) if same and end.inputs[0] is not None else None
    if source is not None:
        return source
    wanted, seen, waiting = node.inputs[0], {end}, [end]
    while waiting and wanted is not None and len(seen) <= MOST_NODES:
        for value in waiting.pop(0).inputs:
            if value is not None and value.name == wanted.name:
                return value
            maker = None if value is None else value.producer()
            if maker is not None and maker not in seen:
                seen.add(maker)
                waiting.append(maker)
    return None


def _between(entry: ir.Value, end: ir.Node) -> set[ir.Node] | None:
    """All nodes that a tensor and constants take part in to make the last one's output; None if others do."""
    nodes, waiting = {end}, [end]
    while waiting:
        for value in waiting.pop().inputs:
            if value is None or value is entry or constant(value) is not None:
                continue
            maker = value.producer()
            if maker is None:
                return None
            if maker not in nodes:
                nodes.add(maker)
                waiting.append(maker)
        if len(nodes) > MOST_NODES:
            return None
    return nodes


def _is_unchanged(node: ir.Node, end: ir.Node) -> bool:
    """Whether the weight is the very one, and nothing rounds what it is multiplied with."""
    maker = end if end.op_type == node.op_type else next((v.producer() for v in end.inputs if v and v.producer()), None)
    if maker is None or maker.op_type != node.op_type or maker.name != node.name:
        return False
    if maker.inputs[0] is None or quantized_tensor(maker.inputs[0]) is not None:
        return False
    weights = [constant(one.inputs[1]) for one in (node, maker)]
    return weights[1] is not None and (weights[0] is weights[1] or np.array_equal(*weights))  # type: ignore[arg-type]


def _integer_bias(end: ir.Node, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The bias (O,) and its scale, of a layer quantized the way `quantize_static` does it."""
    x, w, bias = (dequantizer(end, index) for index in range(3))
    weight = None if w is None else stored_integers(w)
    stored = None if bias is None else stored_integers(bias)
    has_bias = len(end.inputs) > 2 and end.inputs[2] is not None
    input_scale = None if x is None else constant(x.inputs[1])
    if weight is None or input_scale is None or input_scale.ndim or has_bias != (stored is not None):
        return None
    scale_O = np.broadcast_to(np.asarray(input_scale * weight.scale, np.float32), (channels,))
    if stored is None:
        return np.zeros(channels, np.float32), scale_O
    return dequantize(stored.integers, scale_O, np.zeros(channels, np.int32), 0), scale_O
