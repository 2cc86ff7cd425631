"""Recurrent layers: where their two weights sit, and the integer kernel that onnxruntime has for one of the three.

The weight W meets the input, R the state: inputs 1 and 2, (directions, rows of the gates, inputs | units).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gossamer.arith.weight_grid import Grid
from gossamer.graph.edit import attribute_int, constant, graph_of, shared_initializer

RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTS = (1, 2)
ROW_AXES = (0, 1)


def obstacle_in_weight(node: ir.Node, slot: int) -> str:
    """Why a weight cannot be stored in integers, or ""."""
    array = constant(node.inputs[slot])
    if array is None:
        return "its weight is computed at run time"
    if array.dtype != np.float32 or array.ndim != 3:
        return f"its weight is {array.dtype} with {array.ndim} axes, not float32 with 3"
    return ""


def obstacle_in_kernel(node: ir.Node) -> str:
    """Why DynamicQuantizeLSTM cannot stand in a node's place, or "".

    The kernel takes two weights of its own, with its inputs first; none that another node reads as well.
    """
    if node.op_type != "LSTM":
        return f"DynamicQuantizeLSTM is no {node.op_type}; use form cast"
    if attribute_int(node, "layout", 0):
        return "DynamicQuantizeLSTM takes the time axis first (layout 0); use form cast"
    for slot in WEIGHTS:
        weight = node.inputs[slot]
        obstacle = obstacle_in_weight(node, slot)
        if obstacle or weight is None:
            return obstacle
        if len(weight.uses()) > 1 or weight.is_graph_output():
            return f"its weight {weight.name} has other readers; use form cast"
    return ""


def multiply_in_integers(lstm: ir.Node, slot: int, name: str, grid: Grid) -> None:
    """Give a weight of 8 bits to an LSTM, which becomes com.microsoft.DynamicQuantizeLSTM; call it for both, 1 and 2.

    The kernel wants the inputs first, (directions, K, rows of the gates), scales and zero points (directions, rows) or
    (directions,), and the zero points even though they are zero.
    """
    graph, scale = graph_of(lstm), grid.scale[:, :, 0]
    if scale.size == 1:
        scale = np.full(len(grid.integers), scale.item(), np.float32)
    if lstm.domain == "":
        lstm.op_type, lstm.domain = "DynamicQuantizeLSTM", "com.microsoft"
        lstm.attributes.pop("layout", None)
        lstm.resize_inputs(12)
        graph.opset_imports.setdefault("com.microsoft", 1)
    parts = {
        slot: shared_initializer(graph, f"{name}_quantized", np.ascontiguousarray(grid.integers.transpose(0, 2, 1))),
        6 + 2 * slot: shared_initializer(graph, f"{name}_scale", np.ascontiguousarray(scale)),
        7 + 2 * slot: shared_initializer(graph, f"{name}_zero_point", np.zeros(scale.shape, np.int8)),
    }
    for index, value in parts.items():
        lstm.replace_input_with(index, value)
