"""What `gossamer inspect` tells: a model's totals, its inputs and outputs, its layers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir

from gossamer.measuring.layers import Layer, layers_of
from gossamer.measuring.memory import peak_activation_bytes
from gossamer.measuring.shapes import static_shapes
from gossamer.measuring.weights import elements, is_parameter
from gossamer.nouns.model import PROTO_LIMIT_BYTES, Model, size_bytes, to_bytes


class Axes(msgspec.Struct, frozen=True):
    """An input or output: its name, element type, and shape; a free dimension is its name, or `?`."""

    name: str
    type: str
    shape: tuple[int | str, ...] | None
    dynamic: tuple[int, ...]


class Inspection(msgspec.Struct, frozen=True):
    """What `gossamer inspect` tells.

    Attributes:
        bytes: on disk, of everything needed to run.
        macs: for one sample; None if a layer's is unknown.
        peak_activation_bytes: by liveness, for one sample; None if a shape is unknown.
        opset: domain -> version.
    """

    model: str
    parameters: int
    macs: int | None
    bytes: int
    peak_activation_bytes: int | None
    opset: dict[str, int]
    inputs: tuple[Axes, ...]
    outputs: tuple[Axes, ...]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


def inspect(model: Model, bindings: Mapping[str, int] | None = None) -> Inspection:
    """Totals and layers of a model, for one sample.

    `bindings` gives free axes, other than the batch, a length by their name.
    """
    shapes = static_shapes(model, bindings)
    layers = layers_of(model, shapes)
    macs = [layer.macs for layer in layers if layer.macs is not None]
    unknown = [layer.name for layer in layers if layer.macs is None]
    notes = [*model.notes, *shapes.notes]
    if unknown:
        notes.append(f"multiply-accumulates unknown for {len(unknown)} layers, such as {unknown[0]}")
    return Inspection(
        model=model.name,
        parameters=sum(elements(value) for value in _initializers(model.ir) if is_parameter(value)),
        macs=None if unknown else sum(macs),
        bytes=_bytes(model),
        peak_activation_bytes=peak_activation_bytes(model.ir.graph, shapes),
        opset=dict(model.ir.graph.opset_imports),
        inputs=tuple(_axes(value) for value in model.ir.graph.inputs if not value.is_initializer()),
        outputs=tuple(_axes(value) for value in model.ir.graph.outputs),
        layers=tuple(layers),
        notes=tuple(notes),
    )


def _initializers(model: ir.Model) -> list[ir.Value]:
    """Those of subgraphs too."""
    return [value for graph in model.graphs() for value in graph.initializers.values()]


def _bytes(model: Model) -> int:
    if model.path is not None:
        return size_bytes(model.path)
    stored = model.weight_bytes()
    return len(to_bytes(model)) if stored < PROTO_LIMIT_BYTES else stored


def _axes(value: ir.Value) -> Axes:
    name, kind = value.name or "", value.dtype.name.lower() if value.dtype is not None else "unknown"
    if value.shape is None:
        return Axes(name, kind, None, ())
    dims = tuple(dim if isinstance(dim, int) else (dim.value or "?") for dim in value.shape)
    return Axes(name, kind, dims, tuple(axis for axis, dim in enumerate(dims) if not isinstance(dim, int)))
