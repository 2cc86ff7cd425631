"""An ONNX graph as a torch module: its float initializers are the parameters, its nodes calls of torch functions.

    module = lower(model)          # in eval mode; module.code can be read
    ... train it ...
    trained = write_back(module, model)

The module is a `torch.fx.GraphModule`: `torch.compile` and `torch.export` take it. `If` and `Loop` are Python control
flow: at a computed condition `torch.compile` breaks the graph, and `torch.export` stops.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from gossamer.errors import ModelError
from gossamer.nouns.model import Model
from gossamer.training.operators.controls import CONTROLS
from gossamer.training.operators.sizes import OF_TENSORS
from gossamer.training.operators.table import find
from gossamer.training.walk import lowered_graph

_NO_OPERATOR = ("Constant", "Identity")  # handed on without a call
_OLDEST_CONTROLS = 9  # Scan took batches before


def lower(model: Model) -> torch.fx.GraphModule:
    """A module that computes what the graph computes, in eval mode.

    Arguments are the graph's inputs in order, by name if wished; one output comes as a tensor, several as a tuple.
    Float initializers become parameters under their own names, as far as Python can write them (`meta["initializers"]`
    holds path -> name). Those without axes (a divisor, a temperature) and quantization scales do not require a gradient
    until `requires_grad_` says so. Running statistics, integers and masks become buffers; what torch takes as Python
    numbers (axes, shapes, pads, bounds) is in the code. In train mode BatchNormalization uses and tracks the statistics
    of the batch and Dropout drops, even if they were exported for inference.

    Raises:
        ModelError: names every operator that has no counterpart here, and every node that uses it; or the node whose
            attributes have none.
    """
    opsets = model.ir.opset_imports
    missing = missing_operators(model.ir.graph, opsets)
    if missing:
        listed = "; ".join(f"{operator} (nodes {', '.join(nodes)})" for operator, nodes in missing.items())
        raise ModelError(f"{model.name} cannot be trained, as these operators have no counterpart in torch: {listed}")
    return lowered_graph(model.ir.graph, opsets, model.name).module.eval()


def missing_operators(graph: ir.Graph, opsets: Mapping[str, int]) -> dict[str, list[str]]:
    """Operators that cannot be lowered, as `domain.Operator version`, with the names of the nodes that use them."""
    missing: dict[str, list[str]] = {}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        version = opsets.get(node.domain, 1)
        if node.domain == "" and node.op_type in CONTROLS and version >= _OLDEST_CONTROLS:
            continue
        if node.domain == "" and (node.op_type in _NO_OPERATOR or node.op_type in OF_TENSORS):
            continue
        if find(node.domain, node.op_type, version) is None:
            key = f"{node.domain or 'ai.onnx'}.{node.op_type} version {version}"
            missing.setdefault(key, []).append(node.name or str(node.outputs[0].name))
    return missing
