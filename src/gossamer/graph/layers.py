"""Layers with a weight: where the weight sits, which axis counts the outputs, where the bias is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import attribute_float, attribute_int, constant, is_float


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul whose weight is a constant.

    Attributes:
        node: the node.
        weight: the initializer, at input 1.
        channel_axis: the weight's axis that counts output channels.
        bias: the constant at input 2, or None.
    """

    node: ir.Node
    weight: ir.Value
    channel_axis: int
    bias: ir.Value | None

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[self.channel_axis])  # type: ignore[index,arg-type]  # initializers have a static shape


def layer_of(node: ir.Node) -> Layer | str:
    """The node as a layer, or the reason why it is not one."""
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op_type} is a custom operator"
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"{node.op_type} has no weight that can be quantized"
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(weight)
    if weight is None or array is None:
        return "its weight is computed at run time"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}, not float32"
    if not is_float(node.inputs[0]):
        return "its input is not known to be float32"
    if bias is not None and constant(bias) is None:
        return "its bias is computed at run time"
    if node.op_type == "MatMul" and array.ndim != 2:
        return f"its weight has {array.ndim} axes; the runtime's integer MatMul takes 2"
    if node.op_type == "Gemm":
        return _gemm(node, weight, bias)
    return Layer(node, weight, 0 if node.op_type == "Conv" else 1, bias)


def _gemm(node: ir.Node, weight: ir.Value, bias: ir.Value | None) -> Layer | str:
    if attribute_int(node, "transA", 0):
        return "its input is transposed"
    if attribute_float(node, "alpha", 1.0) != 1.0 or attribute_float(node, "beta", 1.0) != 1.0:
        return "alpha and beta are not 1"
    axis = 0 if attribute_int(node, "transB", 0) else 1
    layer = Layer(node, weight, axis, bias)
    bias_array = constant(bias)
    if bias_array is not None and bias_array.size not in (1, layer.channels):
        return f"its bias has shape {bias_array.shape}, not one value a channel"
    return layer


def bias_array(layer: Layer) -> np.ndarray:
    """The bias as float32 (O,), zeros if there is none."""
    array = constant(layer.bias)
    if array is None:
        return np.zeros(layer.channels, np.float32)
    return np.broadcast_to(array.reshape(-1), (layer.channels,)).astype(np.float32)


def is_depthwise(node: ir.Node) -> bool:
    """A convolution in which every group has one input channel and there are several groups."""
    groups = attribute_int(node, "group", 1)
    shape = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return node.op_type == "Conv" and groups > 1 and shape is not None and shape[1] == 1


def is_narrow_stem(node: ir.Node) -> bool:
    """A convolution over at most 4 input channels: integer kernels gain nothing there, they pad to 4 or more."""
    shape = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type != "Conv" or shape is None or attribute_int(node, "group", 1) != 1:
        return False
    return isinstance(shape[1], int) and shape[1] <= 4
