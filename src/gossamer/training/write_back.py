"""Trained values go back into the ONNX graph they came from."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from gossamer.errors import ModelError
from gossamer.nouns.model import Model
from gossamer.training.tensors import numpy_of


def write_back(module: nn.Module, model: Model) -> Model:
    """A clone of the model that holds the module's parameters and running statistics; what has not changed is shared.

    Args:
        module: what `lower` made of this model, on any device.
        model: the model given to `lower`, or one with the same initializers.

    Raises:
        ModelError: the module is not from `lower`, it holds a value that the model has not, or of another shape, or one
            that training made infinite or NaN; the initializer is named.
    """
    if not isinstance(module, fx.GraphModule) or "initializers" not in module.meta:
        raise ModelError(
            f"a {type(module).__name__} was not made by lower; give the module that it returned, not what wraps it"
        )
    clone = model.clone()
    _write(module, clone.ir.graph, model.name)
    return clone


def _write(module: fx.GraphModule, graph: ir.Graph, where: str) -> None:
    state = module.state_dict()
    for path, name in module.meta["initializers"].items():
        value = graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise ModelError(f"{where} has no initializer {name}; give the model that was lowered")
        if path not in state:
            raise ModelError(f"{where}: the module has lost {path}, the value of initializer {name}")
        _replace(value, state[path], f"{where}: initializer {name}")
    for path, (output, attribute) in module.meta["subgraphs"].items():
        node = next((node for node in graph if node.outputs and node.outputs[0].name == output), None)
        if node is None or attribute not in node.attributes:
            raise ModelError(f"{where} has no node that gives {output}; give the model that was lowered")
        part = module.get_submodule(path)
        if isinstance(part, fx.GraphModule):
            _write(part, node.attributes[attribute].as_graph(), where)


def _replace(value: ir.Value, trained: Tensor, where: str) -> None:
    old = value.const_value
    if old is None or not trained.is_floating_point():
        return
    shape = tuple(old.shape.numpy())
    if tuple(trained.shape) != shape:
        raise ModelError(
            f"{where} has shape {shape}, the module's value {tuple(trained.shape)}; it must stay as it was"
        )
    array = numpy_of(trained, old.dtype)
    if array.tobytes() == old.tobytes():
        return
    if not torch.isfinite(trained).all():
        raise ModelError(f"{where} holds NaN or infinity after training; lower the learning rate, or go back")
    value.const_value = ir.Tensor(array, dtype=old.dtype, name=value.name)
