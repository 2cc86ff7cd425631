"""Layers with a weight: where the weight sits, which axis counts the outputs, where the bias is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gossamer.errors import ModelError
from gossamer.graph.edit import attribute_float, attribute_int, constant, is_float


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul whose weight is a constant.

    Attributes:
        node: the node.
        x: the activation, at input 0.
        weight: the initializer, at input 1.
        channel_axis: the weight's axis that counts output channels.
        bias: the constant at input 2, or None.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    channel_axis: int
    bias: ir.Value | None

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return int(np.asarray(constant(self.weight)).shape[self.channel_axis])


def layer_of(node: ir.Node) -> Layer | str:
    """The node as a layer, or the reason why it is not one."""
    if node.domain != "":
        return f"{node.domain}.{node.op_type} is a custom operator"
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"{node.op_type} has no weight that can be quantized"
    x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(weight)
    if weight is None or array is None:
        return "its weight is computed at run time"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}, not float32"
    if x is None or not is_float(x):
        return "its input is not known to be float32"
    if bias is not None and constant(bias) is None:
        return "its bias is computed at run time"
    if node.op_type == "MatMul" and array.ndim != 2:
        return f"its weight has {array.ndim} axes; the runtime's integer MatMul takes 2"
    if node.op_type == "Gemm":
        transposed = attribute_int(node, "transB", 0)
        layer = Layer(node, x, weight, 0 if transposed else 1, bias)
        return _obstacle_in_gemm(layer) or layer
    return Layer(node, x, weight, 0 if node.op_type == "Conv" else 1, bias)


def _obstacle_in_gemm(layer: Layer) -> str:
    if attribute_int(layer.node, "transA", 0):
        return "its input is transposed"
    if attribute_float(layer.node, "alpha", 1.0) != 1.0 or attribute_float(layer.node, "beta", 1.0) != 1.0:
        return "alpha and beta are not 1"
    bias = constant(layer.bias)
    if bias is not None and bias.shape not in ((), (1,), (1, 1), (layer.channels,), (1, layer.channels)):
        return f"its bias has shape {bias.shape}, not one value a channel"
    return ""


def bias_array(layer: Layer) -> np.ndarray:
    """The bias as float32 (O,), zeros if there is none."""
    array = constant(layer.bias)
    if array is None:
        return np.zeros(layer.channels, np.float32)
    return np.broadcast_to(array.reshape(-1), (layer.channels,)).astype(np.float32)


def check_finite(node: ir.Node, *values: ir.Value | None) -> None:
    """Integers can stand for finite numbers only.

    Raises:
        ModelError: names the node and the constant that holds NaN or infinity.
    """
    for value in values:
        array = constant(value)
        if value is not None and array is not None and not np.isfinite(array).all():
            raise ModelError(
                f"weight {value.name!r} of node {node.name!r} holds NaN or infinity and cannot be quantized; "
                "export the model again, or leave the node out of the scope"
            )


def is_depthwise(node: ir.Node) -> bool:
    """A convolution in which every group has one input channel and there are several groups."""
    return _channels_in(node) == 1 and attribute_int(node, "group", 1) > 1


def is_narrow_stem(node: ir.Node) -> bool:
    """A convolution over at most 4 input channels: integer kernels gain nothing there, they pad to 4 or more."""
    channels = _channels_in(node)
    return channels is not None and channels <= 4 and attribute_int(node, "group", 1) == 1


def is_product_of_activations(node: ir.Node) -> bool:
    """A MatMul without a constant, as in attention."""
    return node.domain == "" and node.op_type == "MatMul" and all(constant(value) is None for value in node.inputs)


def reads_table(node: ir.Node) -> bool:
    """A look-up of rows in a constant float32 matrix, such as an embedding."""
    if node.domain != "" or node.op_type != "Gather" or attribute_int(node, "axis", 0) != 0:
        return False
    table = constant(node.inputs[0])
    return table is not None and table.dtype == np.float32 and table.ndim == 2 and constant(node.inputs[1]) is None


def _channels_in(node: ir.Node) -> int | None:
    """Input channels of one group of a convolution, where that is known."""
    weight = node.inputs[1] if node.domain == "" and node.op_type == "Conv" else None
    channels = None if weight is None or weight.shape is None else weight.shape[1]
    return channels if isinstance(channels, int) else None


def convolutions_behind(node: ir.Node) -> tuple[ir.Node, ...]:
    """The convolutions that read a node's output, directly or through a Relu or Clip."""
    readers = [user for user in node.outputs[0].consumers() if user.domain == ""]
    ends = [user for user in readers if user.op_type in ("Relu", "Clip")]
    behind = [*readers, *(user for end in ends for user in end.outputs[0].consumers())]
    return tuple(user for user in behind if user.op_type == "Conv" and user.domain == "")
