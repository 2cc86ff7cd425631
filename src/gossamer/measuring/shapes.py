"""Static shapes of every tensor of a graph: free axes are bound, the rest is inferred, the last unknowns are run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from gossamer.measuring.batches import reason
from gossamer.nouns.model import Model
from gossamer.runtimes.onnxruntime import open_session

SMALL_BYTES = 2048  # shapes and axes live in small initializers, and inference reads their values
RUN_LIMIT_BYTES = 1_000_000_000  # of weights, up to which running the model once to see its shapes is cheap
OUTPUTS_A_RUN = 64


@dataclass(frozen=True)
class Shapes:
    """What is known of the main graph's tensors.

    Attributes:
        dims: tensor name -> shape; a tensor whose shape is unknown is not in it.
        types: tensor name -> element type, where known.
        notes: what was assumed or could not be found, in plain words.
    """

    dims: Mapping[str, tuple[int, ...]]
    types: Mapping[str, ir.DataType]
    notes: tuple[str, ...] = ()

    def bytes_of(self, name: str) -> int | None:
        """Bytes of one tensor, or None if its shape or type is unknown."""
        if name not in self.dims or name not in self.types or self.types[name] == ir.DataType.STRING:
            return None
        return int(np.ceil(np.prod(self.dims[name], dtype=np.int64) * self.types[name].itemsize))


def static_shapes(model: Model, bindings: Mapping[str, int] | None = None) -> Shapes:
    """Shapes of the main graph's tensors for one setting of its free axes.

    A free first axis of an input counts as the batch and becomes 1; other free axes take the length that `bindings`
    gives for their name. The weights never enter the message that ONNX's inference reads, so size does not matter.
    """
    bound, notes = _bind(model, bindings or {})
    dims, types = _infer(bound)
    unknown = [name for name in _computed(bound.ir.graph) if name not in dims or name not in types]
    if unknown and not notes:
        found, problem = _run(bound, unknown)
        dims.update({name: array.shape for name, array in found.items()})
        types.update({name: ir.DataType.from_numpy(array.dtype) for name, array in found.items() if name not in types})
        notes += problem
    return Shapes(dims, types, notes)


def _bind(model: Model, bindings: Mapping[str, int]) -> tuple[Model, tuple[str, ...]]:
    """A copy with fixed input shapes and no stale shapes inside, and what could not be fixed."""
    copy = model.clone()
    free: dict[str, list[str]] = {}
    notes: list[str] = []
    for value in copy.ir.graph.inputs:
        if value.shape is None:
            notes.append(f"input {value.name} has no rank: without one, shapes are unknown")
            continue
        dims: list[int | None] = []
        for axis, dim in enumerate(value.shape):
            dims.append(_length(dim, axis, bindings))
            if dims[-1] is None:
                name = dim.value if isinstance(dim, ir.SymbolicDim) and dim.value else "without name"
                free.setdefault(name, []).append(f"{value.name} axis {axis}")
        value.shape = ir.Shape(dims)
    for name, places in free.items():
        notes.append(f"dimension {name} ({', '.join(places)}) is free: without a length for it, shapes are unknown")
    for node in copy.ir.graph:
        for output in node.outputs:
            output.shape = None
    return copy, tuple(notes)


def _length(dim: int | ir.SymbolicDim, axis: int, bindings: Mapping[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    if dim.value is not None and dim.value in bindings:
        return bindings[dim.value]
    return 1 if axis == 0 else None


def _infer(model: Model) -> tuple[dict[str, tuple[int, ...]], dict[str, ir.DataType]]:
    """What ONNX's inference finds; big weights stand as inputs, so that only their types and shapes are sent."""
    copy = model.ir.clone()
    dims: dict[str, tuple[int, ...]] = {}
    types: dict[str, ir.DataType] = {}
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        dims[name], types[name] = tuple(tensor.shape.numpy()), tensor.dtype
        if tensor.nbytes > SMALL_BYTES:
            copy.graph.initializers.pop(name)
            value.shape, value.dtype, value.const_value = ir.Shape(dims[name]), tensor.dtype, None
            if not value.is_graph_input():
                copy.graph.inputs.append(value)
    try:
        inferred = onnx.shape_inference.infer_shapes(ir.to_proto(copy), data_prop=True).graph
    except Exception:  # a shape that contradicts itself, an operator it does not know: the model is run instead
        inferred = onnx.GraphProto()
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor_type = info.type.tensor_type
        if tensor_type.elem_type:
            types[info.name] = ir.DataType(tensor_type.elem_type)
        if tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor_type.shape.dim):
            dims[info.name] = tuple(dim.dim_value for dim in tensor_type.shape.dim)
    return dims, types


def _computed(graph: ir.Graph) -> list[str]:
    return [output.name for node in graph for output in node.outputs if output.name]


def _run(model: Model, names: Iterable[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Some tensors of one run on zeros, without their content being of use; and what went wrong."""
    names = list(names)
    if model.weight_bytes() > RUN_LIMIT_BYTES:
        return {}, (f"shapes of {len(names)} tensors are unknown; the model is too big to run for them",)
    copy = model.clone()
    wanted = {output.name: output for node in copy.ir.graph for output in node.outputs if output.name in set(names)}
    present = {value.name for value in copy.ir.graph.outputs}
    copy.ir.graph.outputs.extend(value for name, value in wanted.items() if name not in present)
    found: dict[str, np.ndarray] = {}
    try:
        session = open_session(copy, optimize=False)
        feeds = {
            name: np.zeros([int(dim or 0) for dim in shape], dtype) for name, (dtype, shape) in session.inputs.items()
        }
        for start in range(0, len(names), OUTPUTS_A_RUN):
            chunk = names[start : start + OUTPUTS_A_RUN]
            found.update(zip(chunk, session.run(feeds, chunk), strict=True))
    except Exception as error:  # an unknown operator, an input that zeros do not suit
        return {}, (f"shapes of {len(names)} tensors are unknown; {reason(error)}",)
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}, ()
