"""Bias correction: each quantized layer's mean error is taken off its bias, where that helps on other samples.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", in its empirical form:
the mean of a layer's output in the quantized graph, less its mean in the float one, is an error that a bias can undo.

- fast: every layer is fed the float model's own input, in float and as quantized; one pass for all layers.
- sequential: fast, then each layer again in graph order, with its error as it is in the quantized graph behind the
  layers corrected before. Layers with as many others in front of them go together, and what lies in front of them is
  computed once and held.

A mean is drawn towards zero by as much as chance may have made it. A correction found on one half of the samples is
kept only if, on the other half, it lowers the squared error of its layer's own output and of that behind the
activation. That is not enough: truer layers can make a network less true, where most positions show a plain background
and set the mean. So the outputs decide last, in the runtime's own integer kernels, on all samples: over the fast
corrections together, and if they do not help, half by half; over the sequential ones group by group. They must gain
more than chance gives, and on most samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.affine import dequantize, quantize_bias
from gossamer.errors import CandidateError
from gossamer.graph.edit import constant, drop_unused
from gossamer.graph.layers import Layer, layer_of
from gossamer.graph.qdq import dequantized, dequantizer, stored_integers
from gossamer.measuring.gain import Judge, is_gain
from gossamer.measuring.means import Mean, joined, mean_of, sample_means, shrunk
from gossamer.measuring.staged import Held, batches_of, cut, depths
from gossamer.measuring.twins import Probe, Shifts, error_powers, mean_errors
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import Result, nodes_in_scope
from gossamer.runtimes.contract import Feeds
from gossamer.runtimes.onnxruntime import open_session

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ()

SAMPLES = 64  # means settle early, as every sample has many positions
FEWEST = 32  # of large samples, where 64, 32 and 16 did equally well
NUMBERS = 1 << 21  # of inputs that are enough, if these are as many samples
HELD_BYTES = 80_000_000  # of one graph's tensors at a cut
TRIES = 7  # to find which fast corrections to keep: all, halves, quarters; more would pick by chance
GROUPS = 8  # of layers in graph order, whose sequential corrections are kept or undone together
ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Gelu", "Swish")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        statistics: fast: all errors from one pass over the float model; sequential: then each layer's again, behind
            the corrected ones, which takes three to five times as long.
    """

    statistics: Literal["fast", "sequential"] = "fast"


class _Case(NamedTuple):
    """What is corrected, and on what."""

    model: Model
    reference: Model
    probes: Sequence[Probe]
    samples: Samples
    threads: int


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Nothing: a model without quantized layers comes back unchanged, with a note."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Measure every quantized Conv and Gemm, correct those that gain.

    At most 64 samples are used, 32 of large pictures, spread evenly over the calibration split: time and memory do not
    grow with more. The fast form takes one and a half float passes, in the first of which the twins of most layers
    cost next to nothing, and at most 8 integer passes for the outputs. The sequential form adds three passes over each
    layer in both graphs, unfused, and 9 for the outputs; but a part of a graph where the tensors at a cut are over 80
    MB for all samples is computed again for every level of layers in it. It holds up to three such cuts, 240 MB,
    besides the samples' inputs and one batch's tensors; the fast form holds only the latter two.

    Raises:
        CandidateError: the runtime refuses a graph that measures.
    """
    reference = model.reference
    probes = [] if reference is None else _find(model, reference, scope)
    if not probes or reference is None or evidence is None:
        return Result(model, False, ("correct_bias: no quantized convolution or Gemm",))
    case = _Case(model, reference, probes, _few(evidence.samples), evidence.threads)
    means, outputs = mean_errors(reference, probes, case.samples, evidence.threads)
    judge = Judge(outputs, case.samples, evidence.threads)
    shifts = _at_once(case, means)
    kept = _keep(model, probes, shifts, judge)
    if config.statistics == "sequential":
        kept, more = _in_order(case, kept, judge)
        shifts = {**shifts, **more}
    note = f"correct_bias kept {len(kept)} of {len(probes)} layers"
    undone = len(shifts.keys() - kept.keys())
    note += f"; {undone} more were truer by themselves, but not the outputs with them" if undone else ""
    if not kept:
        return Result(model, False, (note,))
    return Result(_corrected(model, probes, kept), True, (note,))


def ensures(before: Model, result: Result, config: Config) -> None:
    """Only biases changed: every operator but DequantizeLinear occurs as often as before.

    Raises:
        CandidateError: names an operator that does not.
    """
    counts = [Counter(node.op_type for node in model.ir.graph) for model in (before, result.model)]
    for op_type in counts[0] | counts[1]:
        if op_type != "DequantizeLinear" and counts[0][op_type] != counts[1][op_type]:
            raise CandidateError(f"correct_bias changed the number of {op_type} nodes")


def _few(samples: Samples) -> Samples:
    if not len(samples):
        return samples
    numbers = sum(array.size for array in next(samples.take(np.arange(1)).batches(1)).feeds.values())
    count = min(len(samples), SAMPLES, max(FEWEST, NUMBERS // max(1, numbers)))
    return samples.take(np.arange(count) * len(samples) // count)


def _second_half(samples: Samples) -> Samples:
    """The odd samples; of a single one, that."""
    return samples.take(np.arange(min(1, len(samples) - 1), len(samples), 2))


# --- which layers -----------------------------------------------------------------------------------------------------


def _find(model: Model, reference: Model, scope: Scope) -> list[Probe]:
    """The quantized layers in scope that were float layers of the same name in the reference."""
    originals = {node.name: node for node in reference.ir.graph}
    probes = []
    for node in nodes_in_scope(model, scope, "Conv", "Gemm"):
        original = originals.get(node.name)
        layer = layer_of(original) if original is not None and original.op_type == node.op_type else ""
        probe = _probe(node, layer) if isinstance(layer, Layer) else None
        if probe is not None:
            probes.append(probe)
    return probes


def _probe(node: ir.Node, original: Layer) -> Probe | None:
    """What there is to know of a quantized layer, or None if it is not quantized the way `quantize_static` does it."""
    activation, weight, bias = (dequantizer(node, index) for index in range(3))
    w = None if weight is None else stored_integers(weight)
    stored = None if bias is None else stored_integers(bias)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if activation is None or w is None or has_bias != (stored is not None):
        return None
    input_scale, zero_point = (constant(value) for value in activation.inputs[1:3])
    if input_scale is None or zero_point is None or input_scale.ndim:
        return None
    bias_scale_O = np.broadcast_to(np.asarray(input_scale * w.scale, np.float32), (original.channels,))
    bias_O = np.zeros(original.channels, np.float32)
    if stored is not None:
        bias_O = dequantize(stored.integers, bias_scale_O, np.zeros(bias_O.shape, np.int32), 0)
    real = dequantize(w.integers, w.scale, w.zero_point, w.axis)
    chain = _activation(original.node)
    return Probe(node.name or "", original.node, chain, input_scale, zero_point, real, bias_O, bias_scale_O)


def _activation(layer: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes behind a layer that work on each number of its output by itself: f(y), or y * f(y)."""
    chain: tuple[ir.Node, ...] = ()
    value = layer.outputs[0]
    while not value.is_graph_output() and len(readers := value.consumers()) in (1, 2):
        first = next((node for node in readers if _is_activation(node, value)), None)
        if first is None:
            break
        link = (first,) if len(readers) == 1 else _gate(value, first, next(node for node in readers if node != first))
        if not link:
            break
        chain = (*chain, *link)
        value = chain[-1].outputs[0]
    return chain


def _is_activation(node: ir.Node, value: ir.Value) -> bool:
    return node.op_type in ACTIVATIONS and node.domain == "" and node.inputs[0] is value


def _gate(value: ir.Value, first: ir.Node, other: ir.Node) -> tuple[ir.Node, ...]:
    """The two nodes of y * f(y), or none if they are something else."""
    inner = first.outputs[0]
    product = other.op_type == "Mul" and set(other.inputs) == {value, inner}
    return (first, other) if product and len(inner.uses()) == 1 and not inner.is_graph_output() else ()


# --- fast -------------------------------------------------------------------------------------------------------------


def _at_once(case: _Case, means: Sequence[tuple[Mean, Mean]]) -> dict[str, np.ndarray]:
    """Each layer's shift with the float model's input in front of it; only those that hold on the second half."""
    _, reference, probes, samples, threads = case
    tried = {p.name: shrunk(one) for p, (one, other) in zip(probes, means, strict=True) if _falls(shrunk(one), other)}
    if not tried:
        return {}
    # without activation the squared error falls as its mean part does, which has been seen
    judged = [probe for probe in probes if probe.name in tried and probe.chain]
    better = tried.keys() - {probe.name for probe in judged}
    if judged:
        powers = error_powers(reference, judged, tried, _second_half(samples), threads)
        better |= {probe.name for probe, (old, new) in zip(judged, powers, strict=True) if new < old}
    return {p.name: shrunk(joined(*both)) for p, both in zip(probes, means, strict=True) if p.name in better}


def _falls(shift_O: np.ndarray, other: Mean) -> bool:
    """Whether the squared error falls if the shift is taken off: its mean part does, the rest stays as it is."""
    return bool(np.square(other.mean_O - shift_O).sum() < np.square(other.mean_O).sum())


def _keep(model: Model, probes: Sequence[Probe], shifts: Shifts, judge: Judge) -> dict[str, np.ndarray]:
    """The shifts that make the outputs truer: all, or the halves of them that do, and so on."""
    kept: dict[str, np.ndarray] = {}
    noise_N = judge.noise(model)
    waiting = [list(shifts)] if shifts else []
    for _ in range(TRIES):
        if not waiting:
            break
        group = waiting.pop(0)
        tried = {**kept, **{name: shifts[name] for name in group}}
        tried_N = judge.noise(_corrected(model, probes, tried))
        if is_gain(noise_N, tried_N):
            kept, noise_N = tried, tried_N
        elif len(group) > 1:
            waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
    return kept


# --- sequential -------------------------------------------------------------------------------------------------------


def _in_order(case: _Case, start: Shifts, judge: Judge) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The shifts to start with, each made anew behind the layers before it, group by group where that helps.

    Returns:
        Those that stay, and all that held in their layer.
    """
    model, reference, probes, samples, threads = case
    trial, names = _corrected(model, probes, start), {probe.name for probe in probes}
    sides = _Sides.of(
        trial, reference, names, batches_of(samples, open_session(reference, threads).static_batch), threads
    )
    nodes = {node.name: node for node in trial.ir.graph}
    levels = {p.name: sides.depth[nodes[p.name].outputs[0].name or ""] - 1 for p in probes}
    kept, noise_N = dict(start), judge.noise(trial)
    found: dict[str, np.ndarray] = {}
    distinct = sorted(set(levels.values()))
    for group in np.array_split(distinct, min(GROUPS, len(distinct))):
        new: dict[str, np.ndarray] = {}
        before = list(sides.held.batches)
        for level in map(int, group):
            sides.advance(level)
            here = [(probe, nodes[probe.name]) for probe in probes if levels[probe.name] == level]
            new.update(_correct_level(sides, here, kept))
        found.update(new)
        tried = {**kept, **new}
        tried_N = judge.noise(_corrected(model, probes, tried)) if new else noise_N
        if is_gain(noise_N, tried_N):
            kept, noise_N = tried, tried_N
            continue
        sides.held.batches = before  # what is behind the group has to be computed anew, with the old biases
        for probe in probes:
            if probe.name in new:
                _store_bias(nodes[probe.name], probe, probe.bias_O - kept.get(probe.name, 0.0))
    return kept, found


class _Sides(NamedTuple):
    """The float and the quantized graph, and what is held of them."""

    reference: Model
    float_held: Held
    float_depth: dict[str, int]
    trial: Model
    held: Held
    depth: dict[str, int]

    @classmethod
    def of(cls, trial: Model, reference: Model, layers: set[str], feeds: list[Feeds], threads: int) -> _Sides:
        one, other = (Held(feeds, HELD_BYTES, threads) for _ in range(2))
        return cls(reference, one, depths(reference, layers), trial, other, depths(trial, layers))

    def advance(self, level: int) -> None:
        """Hold what the layers of this depth need."""
        self.float_held.advance(self.reference, cut(self.reference, self.float_depth, level))
        self.held.advance(self.trial, cut(self.trial, self.depth, level))

    def errors(self, names: Sequence[tuple[str, str]], chosen: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """What each tensor is too high by, batch by batch; of each the name in the float and in the quantized graph."""
        float_names, own_names = zip(*names, strict=True)
        expected = self.float_held.run(self.reference, float_names, chosen)
        for floats, got in zip(expected, self.held.run(self.trial, own_names, chosen), strict=True):
            yield [a.astype(np.float64) - b for a, b in zip(got, floats, strict=True)]

    def powers(self, names: Sequence[tuple[str, str]], chosen: Sequence[int]) -> np.ndarray:
        """The squared error of each tensor, summed."""
        totals = np.zeros(len(names))
        for errors in self.errors(names, chosen):
            totals += [float(np.square(error).sum()) for error in errors]
        return totals


def _correct_level(sides: _Sides, here: Sequence[tuple[Probe, ir.Node]], known: Shifts) -> dict[str, np.ndarray]:
    """Shift these layers further, where that holds on the second half; gives the whole shift of each that does."""
    calls = range(len(sides.held.batches))
    judged = calls[1::2] or calls
    means = _level_means(sides, here)
    results = _results(sides.trial, here)
    old_powers = sides.powers(results, judged)
    old_biases = [node.inputs[2] if len(node.inputs) > 2 else None for _, node in here]
    shifts: dict[str, np.ndarray] = {}
    for (probe, node), means_NO in zip(here, means, strict=True):
        if _falls(shrunk(mean_of(means_NO[::2])), mean_of(means_NO[judged.start :: 2])):
            shifts[probe.name] = known.get(probe.name, 0.0) + shrunk(mean_of(means_NO))
            _store_bias(node, probe, probe.bias_O - shifts[probe.name])
    powers = sides.powers(results, judged) if shifts else old_powers
    for (probe, node), bias, old, new in zip(here, old_biases, old_powers, powers, strict=True):
        if probe.name in shifts and new >= old:
            node.replace_input_with(2, bias)
            del shifts[probe.name]
    return shifts


def _level_means(sides: _Sides, here: Sequence[tuple[Probe, ir.Node]]) -> list[np.ndarray]:
    """Of each layer, what every batch's outputs are too high by on average, (batches, O)."""
    names = [(probe.original.outputs[0].name or "", node.outputs[0].name or "") for probe, node in here]
    rows: list[list[np.ndarray]] = [[] for _ in here]
    for errors in sides.errors(names, range(len(sides.held.batches))):
        for (probe, _), error, row in zip(here, errors, rows, strict=True):
            row.append(sample_means(error.mean(axis=probe.position_axes) if probe.position_axes else error, 1))
    return [np.concatenate(row) for row in rows]


def _results(trial: Model, here: Sequence[tuple[Probe, ir.Node]]) -> list[tuple[str, str]]:
    """The name of each layer's output behind its activation, in both graphs; before it if the quantized has none."""
    made = {value.name for node in trial.ir.graph for value in node.outputs}
    pairs = []
    for probe, node in here:
        result = probe.result.name or ""
        before = probe.original.outputs[0].name or "", node.outputs[0].name or ""
        pairs.append((result, result) if result in made else before)
    return pairs


# --- the edit ---------------------------------------------------------------------------------------------------------


def _corrected(model: Model, probes: Sequence[Probe], shifts: Shifts) -> Model:
    """The model with these shifts taken off."""
    clone = model.clone()
    nodes = {node.name: node for node in clone.ir.graph}
    for probe in probes:
        if probe.name in shifts:
            _store_bias(nodes[probe.name], probe, probe.bias_O - shifts[probe.name])
    drop_unused(clone.ir)
    return clone


def _store_bias(node: ir.Node, probe: Probe, bias_O: np.ndarray) -> None:
    """Store the bias anew; a layer without bias gets one, which costs no time."""
    steps = quantize_bias(bias_O, probe.bias_scale_O)
    node.resize_inputs(max(3, len(node.inputs)))
    node.replace_input_with(2, dequantized(node, f"{node.name}/bias_corrected", steps, probe.bias_scale_O, 0))
