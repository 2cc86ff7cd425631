"""Bias correction in order: each layer behind those that are corrected already, as it will be.

Layers with as many others in front of them go together, and what lies in front of them is computed once and held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.graph.channel_scales import scale_channels
from gossamer.graph.counterparts import Counterpart
from gossamer.graph.mending import corrected, store_bias
from gossamer.measuring.gain import Judge, is_gain
from gossamer.measuring.lines import best_line
from gossamer.measuring.staged import Held, batches_of, cut, depths
from gossamer.measuring.twins import Shifts
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Feeds
from gossamer.runtimes.onnxruntime import open_session

HELD_BYTES = 80_000_000  # of one graph's tensors at a cut
GROUPS = 8  # of layers in graph order, whose corrections are kept or undone together


class Case(NamedTuple):
    """What is corrected, and on what."""

    model: Model
    reference: Model
    layers: Sequence[Counterpart]
    samples: Samples
    threads: int


class Mended(NamedTuple):
    """What is done to layers: their channels are scaled, where a scale is given, and then shifted down, (O,)."""

    shifts: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]

    def and_(self, other: Mended) -> Mended:
        """The other's say counts where both have one."""
        return Mended({**self.shifts, **other.shifts}, {**self.scales, **other.scales})


def in_order(case: Case, start: Shifts, judge: Judge, scaled: bool) -> tuple[Mended, set[str]]:
    """The shifts to start with, each made anew behind the layers before it, group by group where that helps.

    Args:
        scaled: whether channels may be scaled, too.

    Returns:
        What stays, and all layers in which something held.

    Raises:
        CandidateError: the runtime refuses a graph that measures.
    """
    trial = corrected(case.model, case.layers, start)
    sides = _Sides.of(trial, case)
    nodes = {node.name: node for node in trial.ir.graph}
    weights = {layer.name: tuple(nodes[layer.product.name].inputs) for layer in case.layers}
    levels = {layer.name: sides.depth[nodes[layer.end].outputs[0].name or ""] - 1 for layer in case.layers}
    kept, noise_N = Mended(dict(start), {}), judge.noise(trial)
    found: set[str] = set()
    distinct = sorted(set(levels.values()))
    for group in np.array_split(distinct, min(GROUPS, len(distinct))):
        new = Mended({}, {})
        before = list(sides.held.batches)
        for level in map(int, group):
            sides.advance(level)
            here = [_Here.of(layer, nodes) for layer in case.layers if levels[layer.name] == level]
            new = new.and_(_correct_level(sides, here, kept.shifts, scaled))
        found |= new.shifts.keys()
        tried = kept.and_(new)
        tried_N = judge.noise(corrected(case.model, case.layers, *tried)) if new.shifts else noise_N
        if is_gain(noise_N, tried_N):
            kept, noise_N = tried, tried_N
            continue
        sides.held.batches = before  # what is behind the group has to be computed anew, as it was
        for layer in case.layers:
            if layer.name in new.shifts:
                _give_back(nodes[layer.product.name], weights[layer.name])
                store_bias(nodes[layer.end], layer, layer.bias_O - kept.shifts.get(layer.name, 0.0))
    return kept, found


def _give_back(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
    for slot, value in enumerate(inputs):
        node.replace_input_with(slot, value)


class _Here(NamedTuple):
    """A layer, and its nodes in the graph that is tried."""

    layer: Counterpart
    end: ir.Node
    product: ir.Node

    @classmethod
    def of(cls, layer: Counterpart, nodes: dict[str | None, ir.Node]) -> _Here:
        return cls(layer, nodes[layer.end], nodes[layer.product.name])

    @property
    def names(self) -> tuple[str, str]:
        """Of the output, in both graphs."""
        return self.layer.result.name or "", self.end.outputs[0].name or ""

    def give(self, shift_O: np.ndarray, scale_O: np.ndarray | None) -> None:
        """Scale the channels and shift them down."""
        bias_O = self.layer.bias_O if scale_O is None else scale_O * self.layer.bias_O
        store_bias(self.end, self.layer, bias_O - shift_O)
        if scale_O is not None:
            scale_channels(self.product, scale_O)


class _Sides(NamedTuple):
    """The original and the changed graph, and what is held of them."""

    reference: Model
    float_held: Held
    float_depth: dict[str, int]
    trial: Model
    held: Held
    depth: dict[str, int]

    @classmethod
    def of(cls, trial: Model, case: Case) -> _Sides:
        feeds: list[Feeds] = batches_of(case.samples, open_session(case.reference, case.threads).static_batch)
        in_float = not any(node.op_type == "QuantizeLinear" for node in trial.ir.graph)
        one, other = (Held(feeds, HELD_BYTES, case.threads, in_float) for _ in range(2))
        makers = {maker.name or "" for layer in case.layers if (maker := layer.result.producer())}
        float_depth, depth = depths(case.reference, makers), depths(trial, {layer.end for layer in case.layers})
        return cls(case.reference, one, float_depth, trial, other, depth)

    def advance(self, level: int) -> None:
        """Hold what the layers of this depth need."""
        self.float_held.advance(self.reference, cut(self.reference, self.float_depth, level))
        self.held.advance(self.trial, cut(self.trial, self.depth, level))

    def pairs(
        self, names: Sequence[tuple[str, str]], chosen: Sequence[int]
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """Each tensor as it is and as it should be, batch by batch; named in the original and the changed graph."""
        float_names, own_names = zip(*names, strict=True)
        expected = self.float_held.run(self.reference, float_names, chosen)
        for floats, got in zip(expected, self.held.run(self.trial, own_names, chosen), strict=True):
            yield [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(got, floats, strict=True)]

    def powers(self, names: Sequence[tuple[str, str]], chosen: Sequence[int]) -> np.ndarray:
        """The squared error of each tensor, summed."""
        totals = np.zeros(len(names))
        for pairs in self.pairs(names, chosen):
            totals += [float(np.square(got - wanted).sum()) for got, wanted in pairs]
        return totals


def _correct_level(sides: _Sides, here: Sequence[_Here], known: Shifts, scaled: bool) -> Mended:
    """Scale and shift these layers further, where that holds on the second half; all of what is done to each."""
    calls = range(len(sides.held.batches))
    judged = calls[1::2] or calls
    means = _level_means(sides, here, scaled)
    results = _results(sides.trial, here)
    old_powers = sides.powers(results, judged)
    old_inputs = [(tuple(one.product.inputs), tuple(one.end.inputs)) for one in here]
    done = Mended({}, {})
    for one, means_NMO in zip(here, means, strict=True):
        name = one.layer.name
        line = best_line(means_NMO, one.layer.can_scale)
        if line is None:
            continue
        shift_O, scale_O = line
        done.shifts[name] = known.get(name, 0.0) * (1.0 if scale_O is None else scale_O) + shift_O
        if scale_O is not None:
            done.scales[name] = scale_O
        one.give(done.shifts[name], scale_O)
    powers = sides.powers(results, judged) if done.shifts else old_powers
    for one, (weights, biases), old, new in zip(here, old_inputs, old_powers, powers, strict=True):
        if one.layer.name in done.shifts and new >= old:
            _give_back(one.product, weights)
            _give_back(one.end, biases)
            one.end.resize_inputs(len(biases))
            del done.shifts[one.layer.name]
            done.scales.pop(one.layer.name, None)
    return done


def _level_means(sides: _Sides, here: Sequence[_Here], scaled: bool) -> list[np.ndarray]:
    """Of each layer and batch the mean of what it gives and of what it should, (batches, 2, O).

    If scaled (batches, 4, O), with the mean of the former's square and of their product.
    """
    names = [one.names for one in here]
    columns: list[list[np.ndarray]] = [[] for _ in here]
    for pairs in sides.pairs(names, range(len(sides.held.batches))):
        for one, (got, wanted), column in zip(here, pairs, columns, strict=True):
            parts = [got, wanted, np.square(got), got * wanted] if scaled else [got, wanted]
            axes = (0, *one.layer.position_axes) if one.layer.is_convolution else tuple(range(got.ndim - 1))
            column.append(np.stack([part.mean(axis=axes) for part in parts]))
    return [np.stack(column) for column in columns]


def _results(trial: Model, here: Sequence[_Here]) -> list[tuple[str, str]]:
    """The name of each layer's output behind its activation, in both graphs; before it if the changed one has none."""
    made = {value.name for node in trial.ir.graph for value in node.outputs}
    outcomes = [one.layer.outcome.name or "" for one in here]
    return [(name, name) if name in made else one.names for name, one in zip(outcomes, here, strict=True)]
