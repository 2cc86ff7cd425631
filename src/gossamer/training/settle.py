"""What a twin learned goes back into the quantized graph: integers, steps and biases, and all that stayed in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from gossamer.graph.edit import attribute_int, constant
from gossamer.graph.packed_bits import planes_of
from gossamer.nouns.model import Model
from gossamer.training.operators.fake_quantize import BIAS_LIMIT, DOMAIN, integers_of, step
from gossamer.training.tensors import tensor_of
from gossamer.training.twin import PLANES, STEPS, STORED, spread


def settle(trained: Model, quantized: Model) -> Model:
    """A copy of the quantized model with what its trained twin has come to.

    The integers are those that the twin itself computes with, so that the runtime's outputs are the twin's.

    Args:
        trained: a twin that `write_back` gave.
        quantized: the model that the twin was made of.
    """
    clone = quantized.clone()
    graph = clone.ir.graph
    ours = [node for node in trained.ir.graph if node.domain == DOMAIN]
    for node in ours:
        if node.op_type == "FakeQuantize":
            s = _step(node, 1, 3)
            _store(graph, _name(node, 1), s.numpy())
            if STORED in node.metadata_props:
                integers = _integers(node, s)
                bits = int(node.metadata_props.get(PLANES, 0))
                kept = planes_of(integers.reshape(-1), bits) if bits else integers
                _store(graph, node.metadata_props[STORED], kept)
        else:
            s = _step(node, 1, 2).reshape(()) * _step(node, 3, 4)
            _store(graph, node.metadata_props[STEPS], s.numpy())
            steps = torch.round(_tensor(node, 0) * _tensor(node, 5) / s).clamp(-BIAS_LIMIT, BIAS_LIMIT)
            _store(graph, node.metadata_props[STORED], np.clip(steps.double().numpy(), -(2**31) + 1, 2**31 - 1))
    _copy_floats(trained.ir.graph, graph, {_name(node, index) for node in ours for index in range(1, len(node.inputs))})
    return clone


def _integers(node: ir.Node, s: torch.Tensor) -> np.ndarray:
    """The integers that a weight's FakeQuantize computes with, zero point added."""
    shape = tuple(_tensor(node, 0).shape)
    unit = torch.from_numpy(np.array(spread(_tensor(node, 4).numpy(), shape, node)))
    latent = _tensor(node, 0) * unit
    zero = np.zeros((), np.float32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = spread(np.asarray(constant(node.inputs[2])).astype(np.float32), shape, node)
    low, high = (torch.from_numpy(np.asarray(attribute_int(node, end, 0) - zero)) for end in ("low", "high"))
    steps = torch.from_numpy(np.ascontiguousarray(spread(s.numpy(), shape, node)))
    return np.asarray(integers_of(latent, steps, low, high).numpy() + zero)


def _step(node: ir.Node, scale: int, log: int) -> torch.Tensor:
    has_log = len(node.inputs) > log and node.inputs[log] is not None
    return step(_tensor(node, scale), _tensor(node, log) if has_log else None)


def _tensor(node: ir.Node, index: int) -> torch.Tensor:
    return tensor_of(np.asarray(constant(node.inputs[index])))


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None else value.name or ""


def _store(graph: ir.Graph, name: str, array: np.ndarray) -> None:
    """Put numbers into an initializer, in its type and shape; where nothing changed it stays shared."""
    value = graph.initializers[name]
    old = value.const_value
    if old is None:
        return
    array = np.asarray(array).reshape(old.shape.numpy()).astype(old.dtype.numpy())
    if array.tobytes() != np.asarray(old.numpy()).tobytes():
        value.const_value = ir.Tensor(np.array(array, order="C"), dtype=old.dtype, name=name)


def _copy_floats(trained: ir.Graph, graph: ir.Graph, grids: set[str]) -> None:
    """Weights that are not quantized, under the name that they have in both."""
    for name, value in graph.initializers.items():
        source = trained.initializers.get(name)
        if source is None or name in grids or source.const_value is None or value.const_value is None:
            continue
        if value.dtype is not None and value.dtype.is_floating_point():
            value.const_value = source.const_value
