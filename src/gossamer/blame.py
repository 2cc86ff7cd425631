"""Which layers are to blame: the noise that each integer layer adds, and what restoring it alone gains and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.graph.edit import constant
from gossamer.graph.placement import LAYERS, MOVERS
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import Timing, race
from gossamer.measuring.layer_error import layer_errors
from gossamer.measuring.noise import to_db
from gossamer.measuring.quality import Metric, Scores, score
from gossamer.nouns.diagnosis import LayerBlame
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, quantizing
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import Memo, run_plan
from gossamer.planning.guard import raised, relief_by_price, through_quantizing
from gossamer.runtimes import onnxruntime
from gossamer.runtimes.contract import Feeds, Runtime, Session

SAMPLES = 32  # noise is a mean over many values; these are enough to rank layers
FEWEST_SAMPLES = 4
SUSPECTS = 6  # layers that are restored one by one
UNFUSED = 7  # runs that comparing two unfused graphs takes the time of
MOST_DB = 80.0  # rounding of floats leaves this much: with every layer restored there is nothing left to gain
# what passes compute, or at least store, in integers
SUSPICIOUS = frozenset({*LAYERS, "ConvTranspose", "Gather", "LSTM", "GRU", "RNN", "Add", "Mul", "Concat"})
RACE_S, LEAST_RACE_S = 2.5, 0.05
ROOM_BYTES = 1_000_000_000  # of weights of models that are open at once

Move = tuple[str, ...]  # a suspect, and the nodes restored with it


class Timed(NamedTuple):
    """Where latency is measured, and with which batch."""

    runtime: Runtime
    threads: int
    feeds: Feeds


def blame(
    plan: Plan,
    model: Model,
    evidence: Evidence,
    timed: Timed,
    memo: Memo,
    budget_s: float = 60.0,
    suspects: int = SUSPECTS,
) -> tuple[LayerBlame, ...]:
    """Every layer that a plan computes in integers, in graph order; empty if it quantizes nothing.

    The noise of each is seen with the graph run as written; the `suspects` that add most are then restored to float
    one at a time, and the outputs' noise and the latency measured on the runtime.

    Args:
        model: what the plan starts from.
        evidence: of the calibration split; the first 32 samples of it are used.
        timed: where latency is measured.
        memo: of the plan's run, so that what is known is not made again.
        budget_s: a slow model, or one whose plan takes long to carry out, is looked at with fewer samples and fewer
            suspects, so that it takes about this long.

    Raises:
        CandidateError: the plan's result fails.
    """
    if quantizing(plan) is None:
        return ()
    begin, bare = perf_counter(), through_quantizing(plan)
    result = run_plan(bare, model, evidence, memo).model
    reference = result.reference or model
    count, suspects = _affordable(reference, evidence.threads, timed.feeds, budget_s, suspects)
    few = Evidence(evidence.samples.first(count), evidence.threads)
    found = _noise(reference, result, few.samples)
    most = min(suspects, ROOM_BYTES // (2 * max(1, model.weight_bytes())))
    worst = sorted(found, key=lambda one: one.added_ratio, reverse=True)[:most]
    moves = _moves(reference, [one.node for one in found], [one.node for one in worst])

    def restored(move: Move) -> Model:
        return run_plan(raised(bare, move), model, evidence, dict(memo)).model  # memo: what is made here is used once

    effects = _effects(model, result, moves, restored, few, timed, begin + budget_s)
    return tuple(_with_best(one, effects) for one in found)


def _with_best(one: LayerBlame, effects: Mapping[Move, tuple[float, float]]) -> LayerBlame:
    """The layer with what its better move gains and costs, if it was a suspect."""
    tried = [
        msgspec.structs.replace(one, restored_db=db, restored_latency_ratio=ratio, restored_with=move[1:])
        for move, (db, ratio) in effects.items()
        if move[0] == one.node
    ]
    return max(tried, key=relief_by_price, default=one)


def _affordable(reference: Model, threads: int, feeds: Feeds, budget_s: float, suspects: int) -> tuple[int, int]:
    """How many samples and suspects there is time for: each suspect is run on all samples, in up to two moves."""
    session = onnxruntime.open_session(reference, threads)
    session.run(feeds)
    begin = perf_counter()
    session.run(feeds)
    calls = budget_s / 2 / max(perf_counter() - begin, 1e-6)
    samples = int(np.clip(calls / (UNFUSED + 2 * suspects), FEWEST_SAMPLES, SAMPLES))
    return samples, int(np.clip((calls / samples - UNFUSED) / 2, 0, suspects))


def _noise(reference: Model, result: Model, few: Samples) -> list[LayerBlame]:
    """What each integer layer's output looks like beside the reference's, and what came in."""
    ratios = {error.tensor: 10 ** (-error.snr_db / 10) for error in layer_errors(reference, result, few)}
    kept = {node.name: node for node in result.ir.graph}
    blames = []
    for position, node in enumerate(reference.ir.graph):
        tensor = _visible_output(node, ratios)
        if (
            node.op_type not in SUSPICIOUS
            or not node.name
            or tensor is None
            or not _in_integers(node, kept.get(node.name))
        ):
            continue
        came_in = max((ratios.get(value.name or "", 0.0) for value in node.inputs if value is not None), default=0.0)
        added = max(0.0, ratios[tensor] - came_in)
        blames.append(LayerBlame(node.name or "", node.op_type, tensor, position, to_db(ratios[tensor]), added))
    return blames


def _visible_output(node: ir.Node, ratios: Mapping[str, float]) -> str | None:
    """The node's output where both graphs have it, or that of the Relu or Clip which the quantizer swallowed."""
    ends = [user for user in node.outputs[0].consumers() if user.op_type in ("Relu", "Clip")]
    values = (node.outputs[0], *(end.outputs[0] for end in ends))
    return next((value.name for value in values if value.name in ratios), None)


def _in_integers(before: ir.Node, after: ir.Node | None) -> bool:
    """Whether a node's weight is no longer the one it had, or all it reads comes out of integers."""
    if before.op_type in ("Add", "Mul") and any(constant(value) is not None for value in before.inputs):
        return False  # a bias or factor, which no pass rounds
    if after is None or after.op_type != before.op_type:  # another operator does its work, unless a quantizer does
        return any(array is not None and array.ndim > 1 for array in map(constant, before.inputs))
    if any(old is not None and constant(old) is not None for old in before.inputs):
        return any(constant(old) is not None and constant(new) is None for old, new in _pairs(before, after))
    makers = [value.producer() for value in after.inputs if value is not None]
    return bool(makers) and all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _pairs(before: ir.Node, after: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    return list(zip(before.inputs, after.inputs, strict=False))


def _moves(reference: Model, integer: Sequence[str], suspects: Sequence[str]) -> list[Move]:
    """For each suspect: it alone, and with the integer layers that make what it reads."""
    nodes = {node.name: node for node in reference.ir.graph}
    moves: list[Move] = []
    for name in suspects:
        makers = [_maker(value) for value in nodes[name].inputs if value is not None and constant(value) is None]
        others = tuple(maker.name or "" for maker in makers if maker is not None and maker.name in integer)
        moves += [(name,), (name, *others)] if others else [(name,)]
    return moves


def _maker(value: ir.Value) -> ir.Node | None:
    """The node that computed a value; what only moves or bounds it is passed over."""
    node = value.producer()
    while node is not None and node.op_type in (*MOVERS, "Relu", "Clip") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _effects(
    original: Model,
    result: Model,
    moves: Sequence[Move],
    restored: Callable[[Move], Model],
    few: Evidence,
    timed: Timed,
    end: float,
) -> dict[Move, tuple[float, float]]:
    """Move -> dB that the outputs gain with those nodes in float, and latency then over latency now.

    A third of the time until `end` is for the race. No move is begun when the rest is spent, but for the first.
    """
    left_s = end - perf_counter()
    truth = score(onnxruntime.open_session(original, few.threads), few.samples, Metric("snr"))
    sessions: dict[Move, Session] = {(): timed.runtime.open_session(result, timed.threads)}
    noise_db: dict[Move, float] = {(): _outputs_db(sessions[()], few.samples, truth)}
    for move in moves:
        if len(sessions) > 1 and perf_counter() > end - left_s / 3:
            break
        try:
            sessions[move] = timed.runtime.open_session(restored(move), timed.threads)
        except CandidateError:  # the runtime may refuse a mixture; then there is nothing to gain by it
            continue
        noise_db[move] = _outputs_db(sessions[move], few.samples, truth)
    named = {str(move): session for move, session in sessions.items()}
    race_s = min(RACE_S, max(left_s / 3, LEAST_RACE_S))
    times = race(named, timed.feeds, timed.threads, Timing(budget_s=race_s, precision=0.01))
    return {
        move: (noise_db[move] - noise_db[()], float(np.median(np.divide(times[str(move)], times["()"]))))
        for move in sessions
        if move
    }


def _outputs_db(session: Session, samples: Samples, truth: Scores) -> float:
    return min(MOST_DB, to_db(score(session, samples, Metric("snr"), truth).noise_ratio))
