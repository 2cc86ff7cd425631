"""Which nodes read which weights, and why some weights must stay as they are whatever they are to become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir as ir

from gossamer.graph.edit import constant
from gossamer.graph.layers import reads_table
from gossamer.graph.recurrent import RECURRENT
from gossamer.graph.weight_matrix import WeightMatrix, weight_matrices

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *RECURRENT)
SMALLEST_TABLE = 4096  # elements; look-up tables below that are shapes and such


class Found(NamedTuple):
    """Weight -> its uses in graph order; and node -> why its weight stays as it is."""

    uses: dict[ir.Value, list[WeightMatrix]]
    left: dict[ir.Node, str]

    def leave(self, weight: ir.Value, reason: str) -> None:
        """Let a weight stay as it is, for this reason."""
        for use in self.uses.pop(weight):
            self.left.setdefault(use.node, reason)

    def whole(self) -> dict[ir.Node, str]:
        """Node -> reason, of those nodes none of whose weights are taken; a recurrent layer has two."""
        taken = {use.node for uses in self.uses.values() for use in uses}
        return {node: reason for node, reason in self.left.items() if node not in taken}


def weight_uses(nodes: Iterable[ir.Node], embeddings: bool) -> Found:
    """The weights of these nodes, those left out that other nodes read too.

    Args:
        embeddings: the tables of Gather too.
    """
    found = Found({}, {})
    for node in nodes:
        matrices = _obstacle_in_table(node, embeddings) or weight_matrices(node)
        if isinstance(matrices, str):
            found.left[node] = matrices
            continue
        for matrix in matrices:
            found.uses.setdefault(matrix.value, []).append(matrix)
    for weight, uses in list(found.uses.items()):
        known = {(use.node, use.slot) for use in uses}
        if weight.is_graph_output() or any((use.node, use.idx) not in known for use in weight.uses()):
            found.leave(weight, f"its weight {weight.name} has other readers, and would be stored twice")
    return found


def computes_with_constant(node: ir.Node) -> bool:
    """Whether a node has a weight at all, so that its staying as it is is worth a word."""
    if node.op_type == "Gather":
        return reads_table(node)
    return len(node.inputs) > 1 and constant(node.inputs[1]) is not None


def read_alike(uses: Iterable[WeightMatrix]) -> bool:
    """Whether all uses see the weight as the same matrix."""
    first, *others = uses
    return all((use.split, use.order) == (first.split, first.order) for use in others)


def _obstacle_in_table(node: ir.Node, embeddings: bool) -> str:
    if node.op_type != "Gather":
        return ""
    table = constant(node.inputs[0])
    if not reads_table(node) or table is None:
        return "it does not look up rows of a constant float32 matrix"
    if not embeddings:
        return "the option embeddings is off"
    return f"its table has fewer than {SMALLEST_TABLE} elements" if table.size < SMALLEST_TABLE else ""
