"""Weights stored as float16 and cast back where they are read: half the bytes, the speed of float.

onnxruntime computes the casts once, when it opens the file. A graph that also computes in float16 is measured slower
than float on CPUs (0.64x on MobileNetV2), so none is made for this runtime.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.edit import add_initializer, add_node, constant, drop_unused
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.passes.contract import Result, in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = False
STORES: tuple[str, ...] = ("FLOAT16",)
LARGEST = float(np.finfo(np.float16).max)
LARGEST_ERROR = 1e-3  # of the tensor's norm: rounding costs at most 0.0005; more means that small values were lost


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        smallest_size: tensors with fewer elements stay float32; a cast node costs more than they save.
    """

    smallest_size: int = 256


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Nothing: what cannot be stored stays float32 with a note."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Convert every large float32 initializer that nodes in scope read."""
    clone = model.clone()
    graph = clone.ir.graph
    notes, changed = [], False
    for name, value in list(graph.initializers.items()):
        array = constant(value)
        if array is None or array.dtype != np.float32 or array.size < config.smallest_size:
            continue
        readers = {use.node for use in value.uses()}
        if value.is_graph_output() or not readers or not all(_may_read(node, graph, scope) for node in readers):
            continue
        reason = _obstacle(array)
        if reason:
            notes.append(f"store_float16 left {name} in float32: {reason}")
            continue
        with np.errstate(under="ignore"):
            stored = add_initializer(graph, f"{name}_float16", array.astype(np.float16))
        first = next(node for node in graph if node in readers)
        attributes = {"to": int(ir.DataType.FLOAT)}
        back = add_node(
            first, "Cast", [stored], f"{name}_float32", ir.DataType.FLOAT, ir.Shape(array.shape), attributes
        )
        value.replace_all_uses_with(back)
        changed = True
    if not changed:
        return Result(model, False, (*notes, "store_float16: no float32 weight is large enough"))
    drop_unused(clone.ir)
    return Result(replace(clone, reference=model.reference or model), True, tuple(notes))


def ensures(before: Model, result: Result, config: Config) -> None:
    """The file became smaller.

    Raises:
        CandidateError: it did not.
    """
    if result.modified and result.model.weight_bytes() >= before.weight_bytes():
        raise CandidateError("store_float16 saved nothing")


def _may_read(node: ir.Node, graph: ir.Graph, scope: Scope) -> bool:
    """Whether a reader takes a weight from a Cast as well as from the file.

    One inside a subgraph is left alone; the scale of a quantizer must be a constant for the runtime to fuse it.
    """
    return node.graph is graph and in_scope(scope, node) and node.op_type not in ("QuantizeLinear", "DequantizeLinear")


def _obstacle(array: np.ndarray) -> str:
    """Why a tensor does not survive in float16, or ""."""
    if not np.isfinite(array).all():
        return "it holds NaN or infinity"
    if np.abs(array).max(initial=0) > LARGEST:
        return f"its largest magnitude is beyond {LARGEST:g}"
    with np.errstate(under="ignore"):
        error = np.linalg.norm((array - array.astype(np.float16)).ravel().astype(np.float64))
    if error > LARGEST_ERROR * np.linalg.norm(array.ravel().astype(np.float64)):
        return "its values are too small for float16"
    return ""
