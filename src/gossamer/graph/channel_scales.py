"""The output channels of a layer scaled, in whatever form its weights are stored, at no cost in time.

Nothing that is there is changed: a node gets other inputs, so that it can be given its old ones back.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gossamer.graph.edit import add_initializer, add_node, attribute_int, constant, graph_of

SCALABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")


def can_scale(product: ir.Node) -> bool:
    """Whether the outputs of a node lie along one axis, and the file has a place for their scales.

    A scale for each channel of weights that share one, or a table, would be new: to store it costs more than it gains.
    """
    grouped = product.op_type == "ConvTranspose" and attribute_int(product, "group", 1) > 1
    weight = product.inputs[1]
    if product.op_type not in SCALABLE or grouped or weight is None or weight.shape is None:
        return False
    if product.op_type == "MatMulNBits" or (constant(weight) is not None and len(weight.uses()) == 1):
        return True
    axis, maker = _axis(product), weight.producer()
    ones_O = np.ones(int(weight.shape.numpy()[axis]), np.float32)
    return maker is not None and _factor(maker, ones_O, axis, len(weight.shape)) is not None


def scale_channels(product: ir.Node, scale_O: np.ndarray) -> None:
    """Multiply the weight of each output channel, (O,).

    A scale that is stored takes the factor in; dense floats are multiplied.

    Args:
        product: one that `can_scale`.
    """
    if product.op_type == "MatMulNBits":  # its scales are (O, blocks), in older files flat
        stored = np.asarray(constant(product.inputs[2]))
        scaled = stored.reshape(len(scale_O), -1) * scale_O[:, None]
        product.replace_input_with(2, _new(product, product.inputs[2], scaled.reshape(stored.shape)))
        return
    weight = product.inputs[1]
    if weight is None:
        return
    product.replace_input_with(1, _scaled(product, weight, scale_O, _axis(product)))


def _axis(product: ir.Node) -> int:
    """That of the weight's output channels."""
    first = product.op_type == "Conv" or (product.op_type == "Gemm" and attribute_int(product, "transB", 0) != 0)
    return 0 if first else 1


def _scaled(product: ir.Node, weight: ir.Value, scale_O: np.ndarray, axis: int) -> ir.Value:
    maker, dense = weight.producer(), constant(weight)
    if dense is not None and len(weight.uses()) == 1:
        value = _new(product, weight, dense * _along(scale_O, axis, dense.ndim))
        if weight.const_value is not None and value.const_value is not None:
            value.const_value.metadata_props.update(weight.const_value.metadata_props)
        return value
    rank = 0 if weight.shape is None else len(weight.shape)
    factor = None if maker is None else _factor(maker, scale_O, axis, rank)
    if maker is None or factor is None:
        return weight
    inputs = [maker.inputs[0], _new(product, maker.inputs[1], factor), *maker.inputs[2:]]
    value = add_node(product, maker.op_type, inputs, weight.name or "weight", ir.DataType.FLOAT, weight.shape)
    made = value.producer()
    if made is not None:
        made.attributes.update(maker.attributes)
    return value


def _factor(maker: ir.Node, scale_O: np.ndarray, axis: int, rank: int) -> np.ndarray | None:
    """The stored scales with the factors taken in, or None where there are none, or not along the channels."""
    stored = constant(maker.inputs[1]) if maker.op_type in ("Mul", "DequantizeLinear") else None
    if stored is None:
        return None
    if maker.op_type == "DequantizeLinear":
        along = stored.ndim == 1 and attribute_int(maker, "axis", 1) == axis and "block_size" not in maker.attributes
        return (stored * scale_O).astype(np.float32) if along and len(stored) == len(scale_O) else None
    along = stored.size == 1 or (stored.ndim == rank and stored.size == stored.shape[axis] == len(scale_O))
    fits = stored.ndim == rank and along and stored.dtype == np.float32
    return (stored * _along(scale_O, axis, rank)).astype(np.float32) if fits else None


def _along(scale_O: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return scale_O.astype(np.float32).reshape([-1 if one == axis else 1 for one in range(rank)])


def _new(node: ir.Node, old: ir.Value | None, array: np.ndarray) -> ir.Value:
    name = "scale" if old is None or old.name is None else old.name
    return add_initializer(graph_of(node), name, array.astype(np.float32))
