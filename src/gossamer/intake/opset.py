"""A graph's opset is raised and its shapes inferred by onnx, without carrying the weights along."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import version_converter

from gossamer.errors import ModelError

OPSET = 21
IR_VERSION = 10  # the first that goes with opset 21; initializers need not be inputs since 4
OLDEST_KEPT = 13  # per-channel QuantizeLinear needs it

CARRIED_BYTES = 1024  # smaller tensors are shapes, axes and bounds, which onnx must see
_UNKNOWN_DOMAIN = "gossamer.unknown"
_CHANGED_WITHOUT_WORD = {
    "Hardmax": 13,
    "GroupNormalization": 21,
}  # the converter copies these where their meaning changed


def raise_opset(model: ir.Model, name: str) -> tuple[ir.Model, str]:
    """A model of opset 21, and what to say about it; one of a higher opset, or that cannot be converted, stays.

    Raises:
        ModelError: it cannot be converted, and its opset is too old to keep.
    """
    opset = model.graph.opset_imports.get("")
    if opset is None or opset >= OPSET:
        return model, ""
    if model.functions:
        reason = f"its functions could not be inlined: {', '.join(sorted(key[1] for key in model.functions))}"
    else:
        try:
            return _converted(model), f"opset {opset} was converted to {OPSET}"
        except Exception as error:  # onnx's converter raises several unrelated types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if opset < OLDEST_KEPT:
        raise ModelError(
            f"{name}: opset {opset} cannot be converted to {OPSET} ({reason}); export it again with opset {OPSET}"
        )
    return model, f"opset {opset} stays, as conversion to {OPSET} failed: {reason}"


def infer_shapes(model: ir.Model) -> None:
    """Set the type and shape of every value of the main graph as far as they follow from the inputs.

    What the file says of a standard operator's output counts only where nothing was inferred: it may be out of date.
    """
    stripped, _ = _strip(model)
    trusted = {value.name for node in model.graph if not _has_schema(node, model) for value in node.outputs}
    kept = [info for info in stripped.graph.value_info if info.name in trusted]
    del stripped.graph.value_info[:]
    stripped.graph.value_info.extend(kept)
    try:
        inferred = onnx.shape_inference.infer_shapes(stripped, data_prop=True)
    except Exception:  # a graph that onnx cannot follow keeps what the file says
        return
    found = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found:
                _set_shape(value, found[value.name])


def known_operators(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    """Each node of the main graph and whether onnx knows its operator."""
    for node in model.graph:
        yield node, _has_schema(node, model)


def _converted(model: ir.Model) -> ir.Model:
    stripped, weights = _strip(model)
    opset = model.graph.opset_imports[""]
    for node in _nodes(stripped.graph):
        if node.domain == "" and opset < _CHANGED_WITHOUT_WORD.get(node.op_type, 0):
            raise ValueError(f"onnx does not convert {node.op_type} of this opset rightly")
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, max_inclusive_version=opset):
            node.domain = _UNKNOWN_DOMAIN  # the converter passes over operators of other domains
    stripped.opset_import.append(onnx.helper.make_opsetid(_UNKNOWN_DOMAIN, 1))
    raised = version_converter.convert_version(onnx.shape_inference.infer_shapes(stripped), OPSET)
    onnx.checker.check_model(raised)
    for node in _nodes(raised.graph):
        if node.domain == _UNKNOWN_DOMAIN:
            node.domain = ""
    result = ir.serde.deserialize_model(raised)
    if [v.name for v in result.graph.outputs] != [v.name for v in model.graph.outputs]:
        raise ValueError("the converter lost an output")
    _restore(result, model, weights)
    return result


def _strip(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model as a message whose larger initializers are inputs without value; and all initializers by name."""
    copy = model.clone()
    copy.ir_version = max(copy.ir_version, IR_VERSION)
    weights: dict[str, ir.TensorProtocol] = {}
    for value in list(copy.graph.initializers.values()):
        if value.name is None or value.const_value is None:
            continue
        tensor = weights[value.name] = value.const_value
        if tensor.nbytes > CARRIED_BYTES:
            del copy.graph.initializers[value.name]
            value.const_value = None
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            copy.graph.inputs.append(value)
    return ir.serde.serialize_model(copy), weights


def _restore(result: ir.Model, model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Give the converted graph its weights, and the model what the converter forgets."""
    given = {value.name for value in model.graph.inputs}
    for value in list(result.graph.inputs):
        if value.name not in given:
            result.graph.inputs.remove(value)
            value.const_value = weights[value.name or ""]
            result.graph.register_initializer(value)
    for name, value in result.graph.initializers.items():
        value.const_value = weights.get(name, value.const_value)
    result.graph.opset_imports.pop(_UNKNOWN_DOMAIN, None)
    result.graph.name = model.graph.name
    result.metadata_props.update(model.metadata_props)
    result.ir_version = max(model.ir_version, IR_VERSION)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _has_schema(node: ir.Node, model: ir.Model) -> bool:
    version = model.graph.opset_imports.get(node.domain)
    return version is not None and onnx.defs.has(node.op_type, max_inclusive_version=version, domain=node.domain)


def _set_shape(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    """Take what was inferred, and the file's word for what was not."""
    declared_shape, declared_type = value.shape, value.type
    ir.serde.deserialize_value_info_proto(info, value)
    value.type = value.type or declared_type
    if value.shape is None:
        value.shape = declared_shape
        return
    declared = list(declared_shape) if declared_shape is not None and len(declared_shape) == len(value.shape) else []
    sizes = [None if isinstance(size, ir.SymbolicDim) and _invented(size) else size for size in value.shape]
    for axis, size in enumerate(declared):
        sizes[axis] = size if sizes[axis] is None else sizes[axis]
    value.shape = ir.Shape(sizes)


def _invented(size: ir.SymbolicDim) -> bool:
    """onnx calls what it does not know unk__0, unk__1, ..."""
    return size.value is None or str(size.value).startswith("unk__")
