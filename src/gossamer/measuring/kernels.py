"""A layer on its own, in every way to compute it: small networks to be timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.weight_grid import in_groups, weight_grid
from gossamer.errors import CandidateError
from gossamer.graph.edit import constant
from gossamer.graph.layers import Layer, layer_of
from gossamer.graph.weight_forms import BLOCKS, block_product, dequantized_weight
from gossamer.nouns.model import Model
from gossamer.runtimes.contract import Feeds, Session

OPSET = 21  # the first with blocks and 4 bits
TIMED = ("auto_pad", "dilations", "group", "pads", "strides", "transB")  # attributes that matter
SEED = 0


Attributes = tuple[tuple[str, tuple[int, ...] | int | str], ...]


class Signature(msgspec.Struct, frozen=True):
    """All of a layer that its latency depends on.

    Attributes:
        op: Conv, Gemm or MatMul.
        x_shape, w_shape: of its input, for one sample, and of its weight as ONNX stores it.
        attributes: name and values of those that matter.
    """

    op: str
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    attributes: Attributes = ()


class Kernel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A way to compute a layer.

    Attributes:
        kind: "float"; "int8", integers in and out; "blocks", MatMulNBits, the activation rounded on the fly;
            "dequantize", integers made floats at every call; "low_rank", two layers one after the other.
        bits: of the weight, in the two that store it in integers and compute in float: 8 or 4.
        block: consecutive weights that share a scale; 0 for a channel's.
        rank: channels between the two layers of "low_rank".
    """

    kind: Literal["float", "int8", "blocks", "dequantize", "low_rank"]
    bits: Literal[8, 4] = 8
    block: int = 0
    rank: int = 0


def signature_of(layer: Layer, dims: Mapping[str, tuple[int, ...]]) -> Signature | None:
    """What a layer's latency depends on; None where its input's shape is unknown.

    Args:
        dims: tensor name -> shape; see `shapes.static_shapes`.
    """
    x_shape, weight = dims.get(layer.x.name or ""), constant(layer.weight)
    if x_shape is None or weight is None:
        return None
    attributes = []
    for name in TIMED:
        attribute = layer.node.attributes.get(name)
        if attribute is not None:
            value = attribute.value
            attributes.append((name, tuple(value) if isinstance(value, (list, tuple)) else value))
    return Signature(layer.node.op_type, tuple(x_shape), weight.shape, tuple(attributes))


def model_of(signature: Signature, kernel: Kernel) -> Model:
    """The network of this one layer.

    Raises:
        CandidateError: the layer cannot be computed this way.
    """
    if kernel.kind == "low_rank":
        return _model(signature, *_factors(signature, kernel.rank))
    model = _model(signature, (_weights(signature.w_shape), signature.attributes))
    if kernel.kind == "int8":
        return _in_integers(signature)
    node = next(iter(model.ir.graph))
    if kernel.kind != "float":
        _store(node, kernel)
    return model


def nothing() -> Model:
    """A network that does nothing, to see what a call costs."""
    x, y = _value("x", (1,)), _value("y", (1,))
    return _wrapped([x], [ir.node("Identity", [x], outputs=[y])], [y], [])


def feeds_of(session: Session, signature: Signature | None) -> Feeds:
    """Random input of the type that the session wants."""
    (name, (dtype, _)) = next(iter(session.inputs.items()))
    values = np.random.default_rng(SEED).normal(size=(1,) if signature is None else signature.x_shape)
    return {name: values.astype(dtype) if dtype.kind == "f" else np.clip(values * 40 + 128, 0, 255).astype(dtype)}


def _model(signature: Signature, *stages: tuple[np.ndarray, Attributes]) -> Model:
    """Layers one after the other, in float."""
    x = value = _value("x", signature.x_shape)
    nodes, weights = [], []
    for place, (w, attributes) in enumerate(stages):
        weight, out = _initializer(f"w{place}", w), _value(f"y{place}", None)
        nodes.append(ir.node(signature.op, [value, weight], dict(attributes), outputs=[out], name=f"layer{place}"))
        weights.append(weight)
        value = out
    return _wrapped([x], nodes, [value], weights)


def _factors(signature: Signature, rank: int) -> tuple[tuple[np.ndarray, Attributes], tuple[np.ndarray, Attributes]]:
    """The two weights of a layer of low rank, each with its attributes."""
    shape, attributes = signature.w_shape, dict(signature.attributes)
    if rank < 1:
        raise CandidateError(f"rank is {rank}; allowed is 1 or more")
    if signature.op == "Conv":
        if attributes.get("group", 1) != 1:
            raise CandidateError("a grouped convolution has no two factors")
        back = (shape[0], rank, *(1,) * (len(shape) - 2))
        return (_weights((rank, *shape[1:])), tuple(attributes.items())), (_weights(back), ())
    if attributes.get("transB"):
        return (_weights((rank, shape[1])), (("transB", 1),)), (_weights((shape[0], rank)), (("transB", 1),))
    return (_weights((shape[0], rank)), ()), (_weights((rank, shape[1])), ())


def _in_integers(signature: Signature) -> Model:
    """Bytes in and out, as between two other integer layers."""
    bytes_in, x, y = _value("x", signature.x_shape, ir.DataType.UINT8), _value("x_float", None), _value("y_float", None)
    w = np.clip(_weights(signature.w_shape) * 40, -127, 127).astype(np.int8)
    outputs_first = signature.op == "Conv" or dict(signature.attributes).get("transB")
    axis = 0 if outputs_first else 1
    many = w.shape[axis]
    stored = _initializer("w", w)
    scale_O = _initializer("w_scale", np.full(many, 0.02, np.float32))
    scale = _initializer("scale", np.float32(0.02))
    zero = _initializer("zero", np.uint8(128))
    weight, out = _value("w_float", None), _value("y", None, ir.DataType.UINT8)
    nodes = [
        ir.node("DequantizeLinear", [bytes_in, scale, zero], outputs=[x]),
        ir.node("DequantizeLinear", [stored, scale_O], {"axis": axis}, outputs=[weight]),
        ir.node(signature.op, [x, weight], dict(signature.attributes), outputs=[y]),
        ir.node("QuantizeLinear", [y, scale, zero], outputs=[out]),
    ]
    return _wrapped([bytes_in], nodes, [out], [stored, scale_O, scale, zero])


def _store(node: ir.Node, kernel: Kernel) -> None:
    """Put integers in the place of the layer's weight."""
    layer = layer_of(node)
    if isinstance(layer, str):
        raise CandidateError(layer)
    w = np.asarray(constant(layer.weight))
    k_axis = 1 - layer.channel_axis
    if kernel.block and (w.ndim > 2 or w.shape[k_axis] % kernel.block):
        raise CandidateError(f"groups of {kernel.block} do not divide {w.shape}")
    wide = in_groups(w, k_axis, kernel.block) if kernel.block else w
    shared = (k_axis + 1,) if kernel.block else tuple(axis for axis in range(w.ndim) if axis != layer.channel_axis)
    grid = weight_grid(wide, shared, kernel.bits)
    if kernel.kind == "dequantize":
        node.replace_input_with(1, dequantized_weight(node, "w", grid, w.shape, layer.channel_axis, k_axis))
        return
    if node.op_type == "Conv" or (kernel.block or BLOCKS[-1]) not in BLOCKS:
        raise CandidateError("MatMulNBits takes matrix products in blocks of 16 to 256")
    block_product(layer, "w", grid, kernel.block or BLOCKS[-1])


def _weights(shape: tuple[int, ...]) -> np.ndarray:
    fan_in = max(1, int(np.prod(shape)) // max(shape[0], 1))
    return np.asarray(np.random.default_rng(SEED).normal(size=shape) / np.sqrt(fan_in), np.float32)


def _value(name: str, shape: tuple[int, ...] | None, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=None if shape is None else ir.Shape(shape), type=ir.TensorType(dtype))


def _initializer(name: str, array: np.ndarray | np.generic) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def _wrapped(inputs: list[ir.Value], nodes: list[ir.Node], outputs: list[ir.Value], weights: list[ir.Value]) -> Model:
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": OPSET}, name="layer")
    return Model(ir.Model(graph, ir_version=10), "layer")
