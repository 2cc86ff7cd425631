"""The twin of a quantized model: the same graph with its integers as rounded floats, so that it can be trained.

    graph = twin(quantized)            # lower it, train it, write_back
    result = settle(trained, quantized)

Every weight that is stored in integers becomes a float weight behind FakeQuantize, every pair of QuantizeLinear and
DequantizeLinear one FakeQuantize, every int32 bias a float one that is rounded to the same steps. What the twin
computes is what the runtime computes with the integers, so that quantization-aware training (Jacob et al. 2018) begins
at the post-training result, however that was found, and ends in the same graph with other integers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from gossamer.graph.cast_grid import CastGrid, cast_grid
from gossamer.graph.edit import add_initializer, add_node, attribute_int, constant, drop_unused
from gossamer.graph.placement import MOVERS
from gossamer.graph.qdq import dequantizer, ends_of, integers_behind, quantizer_of
from gossamer.nouns.model import Model
from gossamer.training.operators.fake_quantize import DOMAIN
from gossamer.training.tensors import integer_range

STORED = "gossamer.stored"  # metadata of a FakeQuantize of weights: the initializer that its integers go back to
PLANES = "gossamer.planes"  # of the same: their bits, where they are stored in bit planes
STEPS = "gossamer.steps"  # of a FakeQuantizeBias: the initializer of the bias's scale
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
REDUCED = 64  # see `affine.WEIGHT_LIMITS`
LIMITS = (1, 3, 7, 15, 31, 63, REDUCED, 127, 32767)  # greatest integers of symmetric weights of 2 to 8 bits, and of 16
BIAS_STEPS = 4096.0  # in a bias's unit: of 256, networks of 2 bits diverged, as their biases could not follow
CELL = 0.45  # of a step: how far from an integer's middle its weight may begin; nearer to the edge many change at once
NEAR, MOSTLY = 2.0, 0.9  # steps, and the share of weights that are no farther from what they were rounded from


def twin(model: Model, learn_steps: bool = True) -> Model:
    """A copy of a quantized model that can be lowered and trained; a model without integers comes back as it is.

    Args:
        model: with QuantizeLinear and DequantizeLinear of constant float32 scales, anybody's. Its `reference`, if it
            has one, says where in its integer's cell each weight begins; else that is the middle.
        learn_steps: the steps of all grids are trained too (LSQ, Esser et al. 2020); else they stay.
    """
    clone = model.clone()
    graph = clone.ir.graph
    real = [node for node in graph if node.op_type == "DequantizeLinear" and _has_usual_scale(node)]
    weights = {node: found for node in real if (found := integers_behind(node)) is not None}
    biases = {node: found for node, found in weights.items() if found.dtype == ir.DataType.INT32}
    pairs = [node for node in real if node not in weights and _quantizer(node) is not None]
    casts = {node: cast for node in graph if (cast := cast_grid(node)) is not None}
    if not pairs and not casts and len(biases) == len(weights):
        return model
    replaced = {*real, *casts, *(q for node in pairs if (q := _quantizer(node)) is not None)}
    logs = _Logs(graph, replaced) if learn_steps else None
    readers = {node: _reader(node) for node in biases}  # before anything is moved
    beneath = {node: parts for node, reader in readers.items() if reader is not None and (parts := _steps_of(reader))}
    latents: dict[ir.Value, Latent] = {}
    for node, found in weights.items():
        if node not in biases:
            grid = CastGrid(found, _array(found).astype(np.int32), _zero_point(node), _scale(node), 0)
            _replace_weight(graph, node, grid, latents, logs, model.reference)
    for node, cast in casts.items():
        _replace_weight(graph, node, cast, latents, logs, model.reference)
    for node in biases:
        if node in beneath:
            _replace_bias(graph, node, biases[node], beneath[node], logs)
    for node in pairs:
        _replace_pair(node, logs)
    drop_unused(clone.ir)
    clone.ir.opset_imports[DOMAIN] = 1
    return clone


def bounds_of(integers: np.ndarray, zeros: np.ndarray, dtype: ir.DataType) -> tuple[int, int]:
    """The least and greatest integer of the grid that stored weights lie on: the narrowest of so many bits.

    The type alone does not say it, as weights of 4 bits may be stored in 8.
    """
    least, most = integer_range(dtype)
    zero = int(zeros.flat[0])
    low, high = int(integers.min(initial=zero)) - zero, int(integers.max(initial=zero)) - zero
    limit = next((limit for limit in LIMITS if -limit - (limit != REDUCED) <= low and high <= limit), None)
    if limit is None or np.any(zeros != zero):
        return least, most
    return max(least, zero - limit - (low < -limit)), min(most, zero + limit)


def readers_of(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read an initializer, through a twin's quantizers or not."""
    return tuple(
        layer
        for node in value.consumers()
        for layer in (node.outputs[0].consumers() if node.domain == DOMAIN else (node,))
    )


Latent = tuple[ir.Value, ir.Value]  # a weight in units, and the units


class _Logs:
    """The logarithm of how far each step has moved: one new initializer a scale."""

    def __init__(self, graph: ir.Graph, replaced: Iterable[ir.Node]) -> None:
        self._graph, self._replaced = graph, set(replaced)
        self._of: dict[ir.Value, ir.Value | None] = {}

    def of(self, scale: ir.Value) -> ir.Value | None:
        """That of a scale, (C,) or (1,), zeros; None if others than quantizers read the scale too."""
        if scale not in self._of:
            ours = all(node in self._replaced or node.domain == DOMAIN for node in scale.consumers())
            size = int(np.prod(_array(scale).shape))
            zeros = np.zeros(size, np.float32)
            self._of[scale] = add_initializer(self._graph, f"{scale.name}_log", zeros) if ours else None
        return self._of[scale]


def _array(value: ir.Value | None) -> np.ndarray:
    return np.asarray(constant(value))


def _has_usual_scale(node: ir.Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and scale.dtype == ir.DataType.FLOAT and constant(scale) is not None


def _quantizer(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear of the same grid in front of a DequantizeLinear, a Clip of integers between or not."""
    above = quantizer_of(node)
    return above if above is not None and _is_same_grid(above, node) else None


def _is_same_grid(a: ir.Node, b: ir.Node) -> bool:
    return _parts(a) == _parts(b)


def _parts(node: ir.Node) -> tuple[object, ...]:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return node.inputs[1], zero, attribute_int(node, "axis", 1), attribute_int(node, "block_size", 0)


def _scale(node: ir.Node) -> ir.Value:
    scale = node.inputs[1]
    if scale is None:
        raise ValueError(f"{node.name} has no scale")
    return scale


def _zero_point(node: ir.Node) -> ir.Value | None:
    """The zero point, if it is not zero."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(zero)
    return None if array is None or not np.any(array.astype(np.int32)) else zero


def _grid_attributes(node: ir.Node, low: int, high: int) -> dict[str, int]:
    named = {name: attribute_int(node, name, 0) for name in ("axis", "block_size") if name in node.attributes}
    return {**named, "low": low, "high": high}


# --- weights


def _replace_weight(
    graph: ir.Graph,
    node: ir.Node,
    grid: CastGrid,
    latents: dict[ir.Value, Latent],
    logs: _Logs | None,
    reference: Model | None,
) -> None:
    stored, scale = grid.value, grid.scale
    zeros = np.zeros((), np.int32) if grid.zero_point is None else _array(grid.zero_point).astype(np.int32)
    low, high = bounds_of(grid.integers, zeros, stored.dtype or ir.DataType.INT8)
    if grid.plane_bits:
        low, high = -(2 ** (grid.plane_bits - 1)), 2 ** (grid.plane_bits - 1) - 1
    if stored not in latents:
        base = (stored.name or "weight").removesuffix("_quantized").removesuffix("_planes")
        real = _within_cells(_begin(node, grid.integers, zeros, _array(scale)), node, scale, base, reference)
        unit = np.array(_array(scale), np.float32)
        relative = np.asarray(real / spread(unit, real.shape, node), np.float32)
        latents[stored] = (add_initializer(graph, base, relative), add_initializer(graph, f"{base}_unit", unit))
    log, (latent, unit_value) = None if logs is None else logs.of(scale), latents[stored]
    inputs = [latent, scale, grid.zero_point, log, unit_value]
    out = _put(node, "FakeQuantize", inputs, _grid_attributes(node, low, high))
    out.metadata_props[STORED] = stored.name or ""
    out.metadata_props[PLANES] = str(grid.plane_bits)


def _begin(node: ir.Node, integers: np.ndarray, zeros: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The numbers that the integers stand for, as the runtime has them."""
    steps = spread(scale, integers.shape, node)
    return np.asarray((integers - spread(zeros, integers.shape, node)).astype(np.float32) * steps, np.float32)


def spread(part: np.ndarray, shape: tuple[int, ...], node: ir.Node) -> np.ndarray:
    """A scale or zero point shaped to be broadcast against a tensor that a quantizer reads."""
    if part.size == 1:
        return part.reshape(())
    axis, block = attribute_int(node, "axis", 1), attribute_int(node, "block_size", 0)
    if part.ndim == len(shape) and not block:  # shaped for it already
        return part
    if block:
        return np.repeat(part, block, axis).take(np.arange(shape[axis]), axis)
    return part.reshape(-1, *[1] * (len(shape) - 1 - axis % len(shape)))


def _within_cells(middle: np.ndarray, node: ir.Node, scale: ir.Value, name: str, reference: Model | None) -> np.ndarray:
    """The float weights of the reference, moved into the cells of the integers; or the middles where it has none.

    Weights of the same name that are far from the integers are of another network.
    """
    known = None if reference is None else constant(reference.ir.graph.initializers.get(name))
    if known is None or known.shape != middle.shape or known.dtype != np.float32:
        return middle
    steps = spread(_array(scale), middle.shape, node)
    if np.mean(np.abs(known - middle) <= NEAR * steps) < MOSTLY:
        return middle
    reach = CELL * steps
    return np.asarray(np.clip(known, middle - reach, middle + reach), np.float32)


# --- biases


def _reader(node: ir.Node) -> ir.Node | None:
    """The one layer whose bias a DequantizeLinear gives."""
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or len(readers[0].inputs) < 3 or readers[0].inputs[2] is not node.outputs[0]:
        return None
    return readers[0]


def _steps_of(layer: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The scales of a layer's input and weight, whose product is that of its bias."""
    quantizers = dequantizer(layer, 0), dequantizer(layer, 1)
    scales = tuple(None if node is None else node.inputs[1] for node in quantizers)
    if scales[0] is None or scales[1] is None or _array(scales[0]).size != 1:
        return None
    return scales[0], scales[1]


def _replace_bias(
    graph: ir.Graph, node: ir.Node, found: ir.Value, steps: tuple[ir.Value, ir.Value], logs: _Logs | None
) -> None:
    name = (found.name or "bias").removesuffix("_quantized")
    real = _array(found).astype(np.float64) * _array(node.inputs[1]).astype(np.float64)
    unit = np.broadcast_to(BIAS_STEPS * _array(node.inputs[1]), real.shape).astype(np.float32)
    inputs: list[ir.Value | None] = [add_initializer(graph, name, (real / unit).astype(np.float32))]
    for scale in steps:  # the order of the operator: bias, input scale, its log, weight scale, its log, unit
        inputs += [scale, None if logs is None else logs.of(scale)]
    inputs.append(add_initializer(graph, f"{name}_unit", unit))
    made = _put(node, "FakeQuantizeBias", inputs, {})
    made.metadata_props[STORED] = found.name or ""
    made.metadata_props[STEPS] = str(node.inputs[1].name) if node.inputs[1] is not None else ""


# --- activations


def _replace_pair(node: ir.Node, logs: _Logs | None) -> None:
    quantizer, scale = _quantizer(node), node.inputs[1]
    x = None if quantizer is None else quantizer.inputs[0]
    if quantizer is None or x is None or scale is None:
        return
    if _is_on_grid(x, node):
        node.outputs[0].replace_all_uses_with(x, replace_graph_outputs=True)
        return
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = ir.DataType.UINT8 if zero is None or zero.dtype is None else zero.dtype
    low, high = ends_of(node) or integer_range(dtype)
    log = None if logs is None else logs.of(scale)
    _put(node, "FakeQuantize", [x, scale, _zero_point(node), log], _grid_attributes(node, low, high))


def _is_on_grid(value: ir.Value, pair: ir.Node) -> bool:
    """Whether nodes that only move numbers made a value from one that is on the pair's grid already."""
    mover = value.producer()
    while mover is not None and mover.domain == "" and mover.op_type in MOVERS and mover.inputs[0] is not None:
        mover = mover.inputs[0].producer()
        if mover is not None and mover.op_type in ("DequantizeLinear", "FakeQuantize"):
            return mover.inputs[1] is pair.inputs[1]
    return False


def _put(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, int]) -> ir.Node:
    """A new node in the place of a DequantizeLinear, whose output keeps its name."""
    output = node.outputs[0]
    while inputs and inputs[-1] is None:
        inputs.pop()
    name = output.name or "value"
    made = add_node(node, op_type, inputs, f"{name}_rounded", ir.DataType.FLOAT, output.shape, attributes, DOMAIN)
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    made.name, output.name = name, made.name
    producer = made.producer()
    if producer is None:
        raise ValueError(f"{name} was made by no node")
    return producer
