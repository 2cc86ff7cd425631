"""Fold an inference-time BatchNormalization into the weight and bias of the layer in front of it.

    BN(W x + b) = (s W) x + (s (b - mean) + beta)   with s = gamma / sqrt(var + epsilon), one value a channel

The products are taken in float64 and rounded once (Jacob et al. 2018, "Quantization and training of neural networks for
efficient integer-arithmetic-only inference", section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.edit import add_initializer, attribute_float, attribute_int, constant
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, nodes_in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = True
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No options."""


class _Layer(NamedTuple):
    """What the normalization is folded into.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        add: the Add of a constant behind a MatMul, or None.
        weight: float32 constant that only `node` reads.
        bias: constant (broadcast to the output), or None.
    """

    node: ir.Node
    add: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None

    @property
    def end(self) -> ir.Node:
        """The node whose output is normalized."""
        return self.add or self.node


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Every model is fine: what cannot be folded is left and noted."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Fold each BatchNormalization in scope; those that cannot be folded are left, with the reason in the notes."""
    clone = model.clone()
    notes = []
    folded = 0
    for norm in nodes_in_scope(clone, scope, "BatchNormalization"):
        layer = _layer_before(norm)
        reason = layer if isinstance(layer, str) else _fold(clone.ir.graph, layer, norm)
        if reason:
            notes.append(f"fold_batchnorm left {norm.name}: {reason}")
        else:
            folded += 1
    if not folded:
        return Result(model, False, tuple(notes))
    return Result(clone, True, (f"fold_batchnorm: {folded} folded", *notes))


def ensures(before: Model, result: Result, config: Config) -> None:
    """Fewer normalizations than before, if anything changed.

    Raises:
        CandidateError: there are as many.
    """
    old, new = (
        sum(node.op_type == "BatchNormalization" for node in model.ir.graph) for model in (before, result.model)
    )
    if result.modified and new >= old:
        raise CandidateError(f"fold_batchnorm left all {old} normalizations of {before.name}")


def _layer_before(norm: ir.Node) -> _Layer | str:
    """The layer a normalization can be folded into, or why there is none."""
    if attribute_int(norm, "training_mode", 0) or len(norm.outputs) > 1:
        return "it is in training mode"
    source = norm.inputs[0]
    end = source.producer() if source is not None else None
    if source is None or end is None or end.domain != "":
        return "no layer stands in front of it"
    if len(source.uses()) > 1 or source.is_graph_output():
        return f"{source.name} has other readers"
    if end.op_type == "Add":
        return _product_and_bias(end)
    if end.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return f"{end.op_type} in front of it has no weight"
    bias = end.inputs[2] if len(end.inputs) > 2 else None
    return _checked(_Layer(end, None, end.inputs[1], bias))  # type: ignore[arg-type]  # required by the operator


def _product_and_bias(add: ir.Node) -> _Layer | str:
    """`MatMul + constant`, in either order."""
    for product, bias in (add.inputs, tuple(reversed(add.inputs))):
        node = product.producer() if product is not None else None
        if product is None or node is None or node.op_type != "MatMul" or constant(bias) is None:
            continue
        if len(product.uses()) > 1 or product.is_graph_output():
            return f"{product.name} has other readers"
        return _checked(_Layer(node, add, node.inputs[1], bias))  # type: ignore[arg-type]  # required by the operator
    return "Add in front of it has no weight"


def _checked(layer: _Layer) -> _Layer | str:
    """The layer itself if its constants may be changed, else why not."""
    w = constant(layer.weight)
    if w is None:
        return f"the weight of {layer.node.name} is computed at run time"
    if w.dtype != np.float32:
        return f"the weight of {layer.node.name} is {w.dtype}, not float32"
    if len(layer.weight.uses()) > 1 or layer.weight.is_graph_output():
        return f"the weight {layer.weight.name} is shared"
    if layer.bias is not None and constant(layer.bias) is None:
        return f"the bias of {layer.node.name} is computed at run time"
    if layer.node.op_type == "MatMul":
        source = layer.node.inputs[0]
        if w.ndim != 2 or source is None or source.shape is None or source.shape.rank() != 2:
            return f"{layer.node.name} is not known to give two axes, and channels are the second"
        bias = constant(layer.bias)
        if bias is not None and (bias.ndim > 2 or bias.shape[-1:] not in ((), (1,), w.shape[1:])):
            return f"the constant added behind {layer.node.name} changes its shape"
    return layer


def _fold(graph: ir.Graph, layer: _Layer, norm: ir.Node) -> str:
    """Rewrite weight and bias and drop the normalization; gives the reason if it cannot, and changes nothing then."""
    arrays = [constant(value) for value in norm.inputs[1:5]]
    if any(array is None for array in arrays):
        return "its statistics are computed at run time"
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    spread = variance + attribute_float(norm, "epsilon", 1e-5)
    if not np.all(spread > 0):
        return "a variance is not positive"
    old_bias = np.zeros(1) if layer.bias is None else np.asarray(constant(layer.bias), np.float64)
    old_bias = old_bias * attribute_float(layer.node, "beta", 1.0)  # only a Gemm has one
    with np.errstate(all="ignore"):  # looked at below
        scale_O = gamma / np.sqrt(spread)
        w = (np.asarray(constant(layer.weight), np.float64) * _scale_like_weight(layer, scale_O)).astype(np.float32)
        bias = ((old_bias - mean) * scale_O + beta).astype(np.float32)
    if not (np.isfinite(w).all() and np.isfinite(bias).all()):
        return "the folded weight would not be finite"
    layer.weight.const_value = ir.tensor(w, name=layer.weight.name)
    end = _attach_bias(graph, layer, bias)
    _remove(graph, end.outputs[0], norm)
    return ""


def _scale_like_weight(layer: _Layer, scale_O: np.ndarray) -> np.ndarray:
    """One factor an output channel, shaped to multiply the weight."""
    shape = np.asarray(constant(layer.weight)).shape
    if layer.node.op_type == "Conv":
        return scale_O.reshape(-1, *[1] * (len(shape) - 1))
    if layer.node.op_type == "ConvTranspose":  # (I, O/group, ...): the inputs of one group share its outputs
        groups = attribute_int(layer.node, "group", 1)
        per_input = np.repeat(scale_O.reshape(groups, -1), shape[0] // groups, axis=0)
        return per_input.reshape(*shape[:2], *[1] * (len(shape) - 2))
    transposed = layer.node.op_type == "Gemm" and attribute_int(layer.node, "transB", 0)
    return scale_O[:, None] if transposed else scale_O[None, :]


def _attach_bias(graph: ir.Graph, layer: _Layer, bias: np.ndarray) -> ir.Node:
    """Store the bias: in place if nothing else reads it, else beside the old one. Gives the layer's last node."""
    node, old = layer.end, layer.bias
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(bias, name=old.name)
        old.shape = ir.Shape(bias.shape)
    elif old is not None:
        value = add_initializer(graph, f"{layer.node.name}/bias", bias)
        node.replace_input_with(next(i for i, known in enumerate(node.inputs) if known is old), value)
    elif node.op_type == "MatMul":
        return _add_behind(graph, node, bias)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, add_initializer(graph, f"{node.name}/bias", bias))
    if "beta" in node.attributes:
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    return node


def _add_behind(graph: ir.Graph, product: ir.Node, bias: np.ndarray) -> ir.Node:
    """Give a MatMul its bias; the caller moves the readers."""
    before = product.outputs[0]
    add = ir.node("Add", [before, add_initializer(graph, f"{product.name}/bias", bias)], name=f"{product.name}/Add")
    add.outputs[0].name, add.outputs[0].type, add.outputs[0].shape = f"{before.name}/biased", before.type, before.shape
    graph.insert_after(product, add)
    return add


def _remove(graph: ir.Graph, source: ir.Value, norm: ir.Node) -> None:
    """Drop the normalization; the layer's output takes over its name, so readers and graph outputs keep it."""
    output = norm.outputs[0]
    statistics = dict.fromkeys(norm.inputs[1:])  # an ordered set
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    source.name, source.shape = output.name, source.shape or output.shape
    for value in statistics:
        if value is not None and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name), None)
