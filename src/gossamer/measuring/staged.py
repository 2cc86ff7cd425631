"""A graph run piece by piece: what lies before a layer is computed once and held, so that the layer can be changed.

The pieces meet at cuts. Cut k parts what no more than k layers lie in front of from the rest; once the layers of depth
below k are settled, the tensors that cross it are settled too, and everything in front of them can be forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.measuring.batches import reason
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Feeds
from gossamer.runtimes.onnxruntime import open_session

CONSTANT = -1  # the depth of what depends on no input


def depths(model: Model, layers: Collection[str]) -> dict[str, int]:
    """Tensor name -> how many of the named nodes lie on the longest way to it; `CONSTANT` if no input leads there."""
    found = {value.name or "": 0 for value in model.ir.graph.inputs if not value.is_initializer()}
    for node in model.ir.graph:
        depth = max((found.get(name, CONSTANT) for name in _reads(node)), default=CONSTANT)
        for output in node.outputs:
            found[output.name or ""] = depth + (depth >= 0 and node.name in layers)
    return found


def cut(model: Model, depth: Mapping[str, int], level: int) -> tuple[str, ...]:
    """The tensors of at most this depth that deeper nodes read, in graph order: all that these need.

    Of a tensor that stands dequantized between a pair, the integers: they are a quarter as large.
    """
    needed: dict[str, None] = {}
    makers = {output.name: node for node in model.ir.graph for output in node.outputs}
    for node in model.ir.graph:
        if max((depth.get(output.name or "", CONSTANT) for output in node.outputs), default=CONSTANT) > level:
            needed.update(dict.fromkeys(name for name in _reads(node) if 0 <= depth.get(name, CONSTANT) <= level))
    return tuple(dict.fromkeys(_integers(makers.get(name)) or name for name in needed))


def batches_of(samples: Samples, static_batch: int | None) -> list[Feeds]:
    """Every sample by itself, or in batches of the size that the model insists on, the last one filled up."""
    size = static_batch or 1
    filled = []
    for batch in samples.batches(size):
        rows = np.minimum(np.arange(size), len(next(iter(batch.feeds.values()))) - 1)
        filled.append({name: array[rows] for name, array in batch.feeds.items()})
    return filled


class Held:
    """Tensors of one graph that are settled, for every batch.

    Args:
        feeds: the graph's inputs, batch by batch.
        limit_bytes: how much may be held; tensors that would need more are left, and computed again when needed.
        optimize: whether the runtime may fuse the nodes of a piece, which makes it faster and changes the rounding.
    """

    def __init__(self, feeds: Sequence[Feeds], limit_bytes: int, threads: int = 1, optimize: bool = False) -> None:
        self.batches = list(feeds)
        self.limit_bytes = limit_bytes
        self.threads = threads
        self.optimize = optimize

    def run(self, model: Model, names: Sequence[str], chosen: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """The named tensors for the chosen batches, computed from what is held.

        Raises:
            CandidateError: the runtime refuses the piece, or fails on it.
        """
        session = open_session(_piece(model, self.batches[0], names), self.threads, self.optimize)
        for index in chosen:
            feeds = {name: self.batches[index][name] for name in session.inputs}
            try:
                yield list(session.call(list(names), feeds))
            except Exception as error:  # onnxruntime raises a dozen unrelated types
                raise CandidateError(f"onnxruntime fails on a piece of {model.name}: {reason(error)}") from error

    def advance(self, model: Model, names: Sequence[str]) -> bool:
        """Hold these tensors instead, if they are small enough; whether they are."""
        made = [name for name in names if name not in self.batches[0]]
        rows = self.run(model, made, range(len(self.batches))) if made else iter([[]] * len(self.batches))
        for index, arrays in enumerate(rows):
            known = {**self.batches[index], **dict(zip(made, arrays, strict=True))}
            kept = {name: known[name] for name in names}
            if index == 0 and len(self.batches) * sum(array.nbytes for array in kept.values()) > self.limit_bytes:
                return False
            self.batches[index] = kept
        return True


def _piece(model: Model, held: Mapping[str, np.ndarray], names: Sequence[str]) -> Model:
    """The nodes between what is held and what is wanted."""
    graph = ir.convenience.extract(model.ir.graph, list(held), list(names))
    used = {name for node in graph for name in _reads(node)}
    for value in list(graph.inputs):
        array = held[value.name or ""]
        if value.name not in used:
            graph.inputs.remove(value)
        value.shape, value.dtype = ir.Shape([None] * array.ndim), ir.DataType.from_numpy(array.dtype)
    functions = list(model.ir.functions.values())
    return Model(ir.Model(graph, ir_version=model.ir.ir_version, functions=functions), model.name)


def _reads(node: ir.Node) -> Iterator[str]:
    """Names of what a node reads, what its subgraphs take from outside among them."""
    yield from (value.name or "" for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs = list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else graphs
        for inner in (inner for graph in graphs for inner in ir.traversal.RecursiveGraphIterator(graph)):
            yield from (value.name or "" for value in inner.inputs if value is not None and value.graph is node.graph)


def _integers(maker: ir.Node | None) -> str | None:
    if maker is None or maker.op_type != "DequantizeLinear" or maker.inputs[0] is None:
        return None
    return maker.inputs[0].name
