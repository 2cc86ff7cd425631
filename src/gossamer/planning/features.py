"""What a graph holds that decides which plans make sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gossamer.graph.layers import (
    Layer,
    convolutions_behind,
    is_depthwise,
    is_narrow_stem,
    is_product_of_activations,
    layer_of,
    reads_table,
)
from gossamer.graph.recurrent import RECURRENT, WEIGHTS, obstacle_in_weight
from gossamer.nouns.model import Model


@dataclass(frozen=True)
class Features:
    """Counts, and names of the nodes that plans treat apart.

    Attributes:
        convolutions, products: layers of each kind, with a constant weight.
        product_share: of all layers' weights, what products hold. It is at least their share of the multiply-adds, as
            convolutions use each weight many times.
        depthwise: there are depthwise convolutions.
        narrow_stems: convolutions over at most four channels.
        first_blocks: these, with what follows them in depthwise nets.
        layer_norms: how many.
        tables: look-ups of rows.
        recurrent: LSTM, GRU and RNN nodes.
        attention: products of two activations.
    """

    convolutions: int
    products: int
    product_share: float
    depthwise: bool
    narrow_stems: tuple[str, ...]
    first_blocks: tuple[str, ...]
    layer_norms: int
    tables: tuple[str, ...]
    recurrent: tuple[str, ...]
    attention: tuple[str, ...]


def features(model: Model) -> Features:
    """Count what matters in the main graph."""
    nodes = list(model.ir.graph)
    layers = [found for node in nodes if not isinstance(found := layer_of(node), str)]
    sizes = [layer.weight.const_value.size if layer.weight.const_value else 0 for layer in layers]
    in_products = sum(size for layer, size in zip(layers, sizes, strict=True) if layer.node.op_type != "Conv")
    return Features(
        convolutions=sum(layer.node.op_type == "Conv" for layer in layers),
        products=sum(layer.node.op_type != "Conv" for layer in layers),
        product_share=in_products / max(sum(sizes), 1),
        depthwise=any(is_depthwise(layer.node) for layer in layers),
        narrow_stems=tuple(layer.node.name or "" for layer in layers if is_narrow_stem(layer.node)),
        first_blocks=_first_blocks(layers),
        layer_norms=sum(node.op_type == "LayerNormalization" for node in nodes),
        tables=tuple(node.name or "" for node in nodes if reads_table(node)),
        recurrent=tuple(node.name or "" for node in nodes if _is_recurrent(node)),
        attention=tuple(node.name or "" for node in nodes if is_product_of_activations(node)),
    )


def _is_recurrent(node: ir.Node) -> bool:
    """An LSTM, GRU or RNN with weights that can be stored in integers."""
    if node.domain != "" or node.op_type not in RECURRENT:
        return False
    return not all(obstacle_in_weight(node, slot) for slot in WEIGHTS)


def _first_blocks(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Narrow stems with the depthwise convolution behind them and the one behind that; nothing without depthwise.

    The first depthwise filters of trained nets are edge detectors: large weights that sum to about zero. Rounded, they
    no longer do, and the image's plain areas leak through. Integer depthwise kernels gain next to nothing in time.
    """
    names: list[str] = []
    for stem in (layer.node for layer in layers if is_narrow_stem(layer.node)):
        for depthwise in (node for node in convolutions_behind(stem) if is_depthwise(node)):
            names += [node.name or "" for node in (stem, depthwise, *convolutions_behind(depthwise))]
    return tuple(dict.fromkeys(names))
