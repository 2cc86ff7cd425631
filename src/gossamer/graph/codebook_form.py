"""Weights as indices into a table of shared values or vectors: the file holds indices and table, Gather the rest.

onnxruntime computes all of it once, when it opens the file: latency and memory are those of float, only the file is
small. Indices take the bits that tell the entries apart: 4, 8 and 16 have a type, others are stored in bit planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from gossamer.arith.forms import Indexed
from gossamer.graph.edit import add_node, graph_of, shared_initializer
from gossamer.graph.packed_bits import OPSET, stored_integers
from gossamer.graph.weight_forms import FOUR_BIT_OPSET, PLANES_WORTH_BYTES
from gossamer.graph.weight_layout import FLOAT, is_natural, restored
from gossamer.graph.weight_matrix import WeightMatrix

WIDTHS = (4, 8, 16)  # that have a type; 4 from opset 21


class Kind(Protocol):
    """What is known of indices and tables before they are made, as `constraints.codebook.Codebook` says it."""

    @property
    def k(self) -> int: ...
    @property
    def scope(self) -> str: ...
    @property
    def dimension(self) -> int: ...


def obstacle(uses: Sequence[WeightMatrix], kind: Kind, opset: int) -> str:
    """Why a weight cannot be looked up in a table of shared values, or ""."""
    groups, outputs, k = uses[0].shape_GOK
    tables = groups * outputs if kind.scope == "channel" else 1
    vectors, size = groups * outputs * k // kind.dimension, groups * outputs * k
    entries = min(kind.k, vectors // tables)
    width = _width(vectors, _bits(entries), opset)
    if opset < OPSET and width not in WIDTHS:
        return f"indices of {width} bits need opset {OPSET}, the graph has {opset}"
    stored = -(-vectors * width // 8) + 4 * tables * entries * kind.dimension
    return f"indices and tables take {stored} bytes, the floats {4 * size}" if stored >= 4 * size else ""


def store_indexed(uses: Sequence[WeightMatrix], indexed: Indexed) -> None:
    """Put indices and tables in the place of a weight; the first reader stands in front of the others."""
    first, name = uses[0], uses[0].name or "weight"
    indices_GOV, tables_TVD = indexed
    dimension = tables_TVD.shape[2]
    if len(tables_TVD) == 1 and dimension == 1 and not is_natural(first):
        # single values of one table can be found in any order
        value = _looked_up(first, name, first.from_matrix(indices_GOV), tables_TVD)
    else:
        groups, outputs, vectors = indices_GOV.shape
        found = _looked_up(first, name, indices_GOV.reshape(groups * outputs, vectors), tables_TVD)
        matrix = (groups * outputs, vectors) if dimension == 1 else (groups * outputs, vectors, dimension)
        value = restored(first.node, name, found, matrix, first)
    for use in uses:
        use.node.replace_input_with(use.slot, value)


def _looked_up(use: WeightMatrix, name: str, indices: np.ndarray, tables_TVD: np.ndarray) -> ir.Value:
    """The entries at these indices, with the entries' dimension as the last axis if it is more than 1."""
    node, graph = use.node, graph_of(use.node)
    dimension = tables_TVD.shape[2]
    own = len(tables_TVD) > 1
    at = _integers(node, name, indices[..., None] if own else indices, tables_TVD.shape[1])
    tables = tables_TVD if own else tables_TVD[0]
    table = shared_initializer(graph, f"{name}_table", tables[..., 0] if dimension == 1 else tables)
    shape = ir.Shape(indices.shape if dimension == 1 else (*indices.shape, dimension))
    operator, attributes = ("GatherND", {"batch_dims": 1}) if own else ("Gather", {"axis": 0})
    return add_node(node, operator, [table, at], f"{name}_looked_up", FLOAT, shape, attributes)


def _integers(node: ir.Node, name: str, indices: np.ndarray, entries: int) -> ir.Value:
    """Indices as int64, stored in few bits."""
    graph, bits = graph_of(node), _bits(entries)
    width = _width(indices.size, bits, graph.opset_imports.get("", 0))
    if width in WIDTHS:
        dtype = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8, 16: ir.DataType.UINT16}[width]
        value = shared_initializer(graph, f"{name}_indices", indices.astype(dtype.numpy()))
    else:
        value = stored_integers(node, name, indices, bits, signed=False)
    to = {"to": int(ir.DataType.INT64)}
    return add_node(node, "Cast", [value], f"{name}_at", ir.DataType.INT64, ir.Shape(indices.shape), to)


def _bits(entries: int) -> int:
    """What tells so many entries apart."""
    return max(1, (entries - 1).bit_length())


def _width(count: int, bits: int, opset: int) -> int:
    """Of so many indices as stored: of the next type, or as few as they need in bit planes where that pays."""
    wider = next(width for width in WIDTHS if width >= bits and (width > 4 or opset >= FOUR_BIT_OPSET))
    return wider if count * (wider - bits) <= 8 * PLANES_WORTH_BYTES else bits
