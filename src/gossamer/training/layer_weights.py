"""The weights of layers as they are trained: as matrices (G, O, K), in a twin also as integers not rounded yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from gossamer.graph.edit import attribute_int, constant
from gossamer.graph.recurrent import RECURRENT, WEIGHTS
from gossamer.graph.weight_matrix import CONVOLUTIONS, PRODUCTS, layout
from gossamer.graph.weight_uses import weight_uses
from gossamer.nouns.model import Model
from gossamer.training.operators.fake_quantize import DOMAIN, integers_of
from gossamer.training.operators.fake_quantize import step as step_of
from gossamer.training.operators.quantization import spread
from gossamer.training.tensors import tensor_of
from gossamer.training.twin import STORED

KERNEL_AXES = 3  # of a convolution's weight at least


class Move(NamedTuple):
    """A reshape, and then a permutation of the axes."""

    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class TrainedGrid:
    """The grid of a weight in a twin; see `operators.fake_quantize`.

    Attributes:
        scale, log_ratio: of the step, s = scale * exp(log_ratio); both in the student.
        unit: what the parameter is a multiple of.
        zero_point: taken from the integers; None for nothing.
        axis, block_size: along which scales lie.
        low, high: the least and greatest integer as stored, zero point not taken off.
    """

    scale: Tensor
    log_ratio: Tensor | None
    unit: Tensor
    zero_point: Tensor | None
    axis: int
    block_size: int
    low: int
    high: int


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """What a layer multiplies with, once for all layers that share it.

    Attributes:
        layer: the first node that reads it, by name.
        initializer: its name in the graph that was lowered.
        path: of the parameter in the module.
        parameter: what is trained; in a twin, in units of the grid's first steps.
        moves: how its axes make (G, O, K), once it is reshaped in the end.
        shape_GOK: groups, outputs of a group, and everything that is summed over.
        k_shape: what K is made of, (I, *kernel) for a convolution.
        grid: in a twin, what rounds it.
    """

    layer: str
    initializer: str
    path: str
    parameter: nn.Parameter
    moves: tuple[Move, ...]
    shape_GOK: tuple[int, int, int]
    k_shape: tuple[int, ...]
    grid: TrainedGrid | None = None

    @property
    def size(self) -> int:
        """How many weights."""
        return prod(self.shape_GOK)

    def matrix(self, x: Tensor) -> Tensor:
        """A tensor of the parameter's shape as (G, O, K)."""
        for shape, order in self.moves:
            x = x.reshape(shape).permute(order)
        return x.reshape(self.shape_GOK)

    def tensor(self, x_GOK: Tensor) -> Tensor:
        """The exact inverse of `matrix`."""
        for shape, order in reversed(self.moves):
            x_GOK = x_GOK.reshape([shape[axis] for axis in order]).permute(tuple(np.argsort(order).tolist()))
        return x_GOK.reshape(self.parameter.shape)

    def real(self) -> Tensor:
        """What the parameter stands for, not rounded, in its shape, with a gradient."""
        return self.parameter if self.grid is None else self.parameter * self.unit()

    def unit(self) -> Tensor:
        """What the parameter is a multiple of; it broadcasts against it."""
        return self.parameter.new_ones(()) if self.grid is None else self._spread(self.grid.unit).detach()

    def real_GOK(self) -> Tensor:
        """The same as a matrix."""
        return self.matrix(self.real())

    def in_steps(self) -> Tensor:
        """In a twin: real / step, in the parameter's shape; gradients go to both.

        Raises:
            ValueError: the weight is a float.
        """
        return self.real() / self.step()

    @torch.no_grad()
    def integers(self) -> Tensor:
        """In a twin: what would be stored now, zero point taken off, in floats and the parameter's shape.

        Raises:
            ValueError: the weight is a float.
        """
        low, high = self.ends()
        return integers_of(self.real(), self.step(), low, high)

    def ends(self) -> tuple[Tensor, Tensor]:
        """In a twin: the least and greatest of the integers, zero point taken off; they broadcast."""
        grid = self._grid()
        zero = torch.zeros((), device=self.parameter.device)
        if grid.zero_point is not None:
            zero = self._spread(grid.zero_point.to(self.parameter.dtype))
        return grid.low - zero, grid.high - zero

    def step(self) -> Tensor:
        """In a twin: the step of the grid as it is now, with a gradient; it broadcasts against the parameter."""
        grid = self._grid()
        return self._spread(step_of(grid.scale, grid.log_ratio))

    def _spread(self, part: Tensor) -> Tensor:
        grid = self._grid()
        return spread(part.to(self.parameter.device), self.parameter, grid.axis, grid.block_size)

    def _grid(self) -> TrainedGrid:
        if self.grid is None:
            raise ValueError(f"{self.layer} has float weights, not integers")
        return self.grid


def layer_weights(module: fx.GraphModule, graph: Model) -> tuple[LayerWeight, ...]:
    """The weights of all layers that take a gradient, in graph order; a weight that is tied comes once.

    Conv, ConvTranspose, Gemm, MatMul, the tables of Gather, LSTM, GRU and RNN. Weights looked up in a codebook, or
    that nodes not known here read as well, are none.

    Args:
        module: what `lower` made of the graph.
        graph: a twin, or a model in float.
    """
    parameters = dict(module.named_parameters())
    paths = {name: path for path, name in module.meta["initializers"].items()}
    found = (*_floats(graph.ir.graph), *_rounded(graph.ir.graph))
    places = {node: index for index, node in enumerate(graph.ir.graph)}
    made = []
    for use in sorted(found, key=lambda use: places[use.node]):
        path = paths.get(use.value.name or "")
        if path not in parameters or not parameters[path].requires_grad:
            continue
        grid = None if use.quantizer is None else _grid(use.quantizer, module, paths)
        made.append(_weight(use, path, parameters[path], grid))
    return tuple(made)


class _Use(NamedTuple):
    """A layer and the initializer that it reads at a slot, through a quantizer and nodes that move numbers, or not."""

    node: ir.Node
    slot: int
    value: ir.Value
    quantizer: ir.Node | None
    moves: tuple[Move, ...]
    shape: tuple[int, ...]  # in which the layer reads it


def _floats(graph: ir.Graph) -> Iterator[_Use]:
    for value, uses in weight_uses(list(graph), True).uses.items():
        first = uses[0]
        if not (first.is_table and _is_constant(first.node.inputs[1])):
            yield _Use(first.node, first.slot, value, None, (), first.shape)


def _is_constant(value: ir.Value | None) -> bool:
    """Whether a value is computed of constants alone, as a codebook's indices are."""
    maker = None if value is None else value.producer()
    if maker is None:
        return constant(value) is not None
    return all(_is_constant(given) for given in maker.inputs if given is not None)


def _rounded(graph: ir.Graph) -> Iterator[_Use]:
    """The first layer that reads each latent weight of a twin."""
    seen: set[ir.Value] = set()
    for node in graph:
        latent = node.inputs[0] if node.domain == DOMAIN and node.op_type == "FakeQuantize" else None
        if latent is None or latent in seen or STORED not in node.metadata_props:
            continue
        seen.add(latent)
        reader = _reader(node.outputs[0], tuple(np.asarray(constant(latent)).shape), ())
        if reader is not None:
            yield _Use(reader[0], reader[1], latent, node, reader[2], reader[3])


def _reader(
    value: ir.Value, shape: tuple[int, ...], moves: tuple[Move, ...]
) -> tuple[ir.Node, int, tuple[Move, ...], tuple[int, ...]] | None:
    """The first layer that reads a value as its weight, its slot, and what was done to the axes before."""
    for node, slot in value.uses():
        if _is_weight(node, slot, len(shape)):
            return node, slot, moves, shape
        move = _move(node, slot, shape)
        if move is not None:
            after = tuple(move.shape[axis] for axis in move.order)
            found = _reader(node.outputs[0], after, (*moves, move))
            if found is not None:
                return found
    return None


def _is_weight(node: ir.Node, slot: int, axes: int) -> bool:
    if node.domain != "":
        return False
    if node.op_type in CONVOLUTIONS:
        return slot == 1 and axes >= KERNEL_AXES
    if node.op_type in PRODUCTS:
        return (slot == 1 or node.op_type == "MatMul") and slot < 2 and axes == 2
    if node.op_type == "Gather":
        return slot == 0 and axes == 2 and attribute_int(node, "axis", 0) == 0
    return node.op_type in RECURRENT and slot in WEIGHTS


def _move(node: ir.Node, slot: int, shape: tuple[int, ...]) -> Move | None:
    """What a Reshape or Transpose does."""
    if node.domain != "" or slot != 0 or node.op_type not in ("Reshape", "Transpose"):
        return None
    if node.op_type == "Transpose":
        given = node.attributes.get("perm")
        return Move(shape, tuple(given.as_ints()) if given is not None else tuple(reversed(range(len(shape)))))
    wanted = constant(node.inputs[1])
    if wanted is None:
        return None
    sizes = [shape[index] if size == 0 else int(size) for index, size in enumerate(wanted)]
    whole = np.empty(shape, np.bool_).reshape(sizes).shape
    return Move(whole, tuple(range(len(whole))))


def _weight(use: _Use, path: str, parameter: nn.Parameter, grid: TrainedGrid | None) -> LayerWeight:
    split, order = layout(use.node, use.slot, use.shape)
    k_shape = tuple(split[axis] for axis in order[2:])
    return LayerWeight(
        use.node.name or "",
        use.value.name or "",
        path,
        parameter,
        (*use.moves, Move(split, order)),
        (split[order[0]], split[order[1]], prod(k_shape)),
        k_shape,
        grid,
    )


def _grid(node: ir.Node, module: fx.GraphModule, paths: dict[str, str]) -> TrainedGrid:
    """The inputs of a FakeQuantize as the module holds them: weight, scale, zero point, log, unit."""
    parameters = dict(module.named_parameters())
    scale, zero_point, log_ratio, unit = (
        node.inputs[index] if len(node.inputs) > index else None for index in range(1, 5)
    )

    def held(value: ir.Value | None) -> Tensor | None:
        return None if value is None else parameters[paths[value.name or ""]]

    zeros = None if zero_point is None else tensor_of(np.asarray(constant(zero_point)).astype(np.int32))
    step_size, units = held(scale), held(unit)
    if step_size is None or units is None:
        raise ValueError(f"{node.name} has no scale, or no unit")
    low, high = (attribute_int(node, name, 0) for name in ("low", "high"))
    axis, block = attribute_int(node, "axis", 1), attribute_int(node, "block_size", 0)
    return TrainedGrid(step_size, held(log_ratio), units, zeros, axis, block, low, high)
