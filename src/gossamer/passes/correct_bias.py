"""Bias correction: each changed layer's mean error is taken off its bias, where that helps on other samples.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", in its empirical form:
the mean of a layer's output in the changed graph, less its mean in the original, is an error that a bias can undo. It
does not matter what changed the weights, nor in which form they are stored: see `graph.counterparts`.

- fast: every layer is fed the original's own input, as it was and as it is; one pass for all layers.
- sequential: fast, then each layer again in graph order, with its error as it is behind the layers corrected before:
  see `measuring.bias_in_order`.

A mean is drawn towards zero by as much as chance may have made it. A correction found on one half of the samples is
kept only if, on the other half, it lowers the squared error of its layer's own output and of that behind the
activation. That is not enough: truer layers can make a network less true, where most positions show a plain background
and set the mean. So the outputs decide last, in the runtime's own kernels, on all samples: over the fast
corrections together, and if they do not help, half by half; over the sequential ones group by group. They must gain
more than chance gives, and on most samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from gossamer.errors import CandidateError
from gossamer.graph.counterparts import Counterpart, counterparts
from gossamer.graph.mending import corrected
from gossamer.measuring.bias_in_order import Case, Mended, in_order
from gossamer.measuring.gain import Judge, is_gain
from gossamer.measuring.lines import falls
from gossamer.measuring.means import Mean, joined, shrunk
from gossamer.measuring.twins import Shifts, error_powers, mean_errors
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import Result, in_scope

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = True
STORES: tuple[str, ...] = ()

SAMPLES = 64  # means settle early, as every sample has many positions
FEWEST = 32  # of large samples, where 64, 32 and 16 did equally well
NUMBERS = 1 << 21  # of inputs that are enough, if these are as many samples
TRIES = 7  # to find which fast corrections to keep: all, halves, quarters; more would pick by chance


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        statistics: fast: all errors from one pass over the original; sequential: then each layer's again, behind
            the corrected ones, which takes three to five times as long.
        scales: for sequential: each channel may be scaled, too, where its weights are not multiplied in integers.
    """

    statistics: Literal["fast", "sequential"] = "fast"
    scales: bool = True


def requires(model: Model, config: Config, scope: Scope) -> None:
    """Nothing: a model without layers that can be corrected comes back unchanged, with a note."""


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Measure every Conv, ConvTranspose, Gemm and MatMul with an Add whose weight changed, correct those that gain.

    At most 64 samples are used, 32 of large pictures, spread evenly over the calibration split: time and memory do not
    grow with more. The fast form takes one and a half float passes, in the first of which the twins of most layers
    cost next to nothing, and at most 8 of the changed graph for the outputs. The sequential form adds three passes
    over each layer in both graphs and 9 for the outputs; but a part of a graph where the tensors at a cut are over 80
    MB for all samples is computed again for every level of layers in it. It holds up to three such cuts, 240 MB,
    besides the samples' inputs and one batch's tensors; the fast form holds only the latter two. Of the original's
    outputs, which judge, 64 MB are held: where they take more, those of every second sample, or fourth.

    Raises:
        CandidateError: the runtime refuses a graph that measures.
    """
    reference = model.reference
    layers = _find(model, reference, scope) if reference is not None else []
    if not layers or reference is None or evidence is None or not len(evidence.samples):
        return Result(model, False, ("correct_bias: no layer with other weights and a bias to put them right",))
    case = Case(model, reference, layers, _few(evidence.samples), evidence.threads)
    means, outputs = mean_errors(reference, layers, case.samples, evidence.threads)
    judge = Judge(list(outputs.outputs.values()), outputs.of(case.samples), evidence.threads)
    shifts = _at_once(case, means)
    kept, held = Mended(_keep(case, shifts, judge), {}), set(shifts)
    if config.statistics == "sequential":
        kept, more = in_order(case, kept.shifts, judge, config.scales)
        held |= more
    note = f"correct_bias kept {len(kept.shifts)} of {len(layers)} layers"
    note += f", {len(kept.scales)} of them scaled" if kept.scales else ""
    undone = len(held - kept.shifts.keys())
    note += f"; {undone} more were truer by themselves, but not the outputs with them" if undone else ""
    if not kept.shifts:
        return Result(model, False, (note,))
    return Result(corrected(model, layers, *kept), True, (note,))


def _find(model: Model, reference: Model, scope: Scope) -> list[Counterpart]:
    chosen = [node for node in model.ir.graph if in_scope(scope, node)]
    return counterparts(model.ir.graph, reference.ir.graph, set(chosen))


def ensures(before: Model, result: Result, config: Config) -> None:
    """Only biases and scales changed: every operator but DequantizeLinear and Mul occurs as often as before.

    Raises:
        CandidateError: names an operator that does not.
    """
    counts = [Counter(node.op_type for node in model.ir.graph) for model in (before, result.model)]
    for op_type in counts[0] | counts[1]:
        if op_type not in ("DequantizeLinear", "Mul") and counts[0][op_type] != counts[1][op_type]:
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


# --- fast -------------------------------------------------------------------------------------------------------------


def _at_once(case: Case, means: Sequence[tuple[Mean, Mean]]) -> dict[str, np.ndarray]:
    """Each layer's shift with the original's input in front of it; only those that hold on the second half."""
    _, reference, layers, samples, threads = case
    tried = {p.name: shrunk(one) for p, (one, other) in zip(layers, means, strict=True) if falls(shrunk(one), other)}
    if not tried:
        return {}
    # without activation the squared error falls as its mean part does, which has been seen
    judged = [layer for layer in layers if layer.name in tried and layer.chain]
    better = tried.keys() - {layer.name for layer in judged}
    if judged:
        powers = error_powers(reference, judged, tried, _second_half(samples), threads)
        better |= {layer.name for layer, (old, new) in zip(judged, powers, strict=True) if new < old}
    return {p.name: shrunk(joined(*both)) for p, both in zip(layers, means, strict=True) if p.name in better}


def _keep(case: Case, shifts: Shifts, judge: Judge) -> dict[str, np.ndarray]:
    """The shifts that make the outputs truer: all, or the halves of them that do, and so on."""
    kept: dict[str, np.ndarray] = {}
    noise_N = judge.noise(case.model)
    waiting = [list(shifts)] if shifts else []
    for _ in range(TRIES):
        if not waiting:
            break
        group = waiting.pop(0)
        tried = {**kept, **{name: shifts[name] for name in group}}
        tried_N = judge.noise(corrected(case.model, case.layers, tried))
        if is_gain(noise_N, tried_N):
            kept, noise_N = tried, tried_N
        elif len(group) > 1:
            waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
    return kept
