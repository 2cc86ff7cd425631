"""Where a result departs from its original: the noise of every tensor that both graphs have, by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from gossamer.errors import CandidateError
from gossamer.measuring.batches import Outputs, batch_size, reason, run_batch
from gossamer.measuring.noise import powers, ratio, to_db
from gossamer.measuring.shapes import Shapes, static_shapes
from gossamer.measuring.weights import constants_of
from gossamer.nouns.facts import LayerError
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.runtimes.onnxruntime import open_session

BATCH_BYTES = 200_000_000  # of all compared tensors of one graph


def layer_errors(a: Model, b: Model, samples: Samples, limit: int | None = None) -> list[LayerError]:
    """Noise of `b` against `a`, tensor by tensor, worst first; sorted by `position` it is in graph order.

    Compared are the float tensors that depend on an input, have one name in both graphs and equal shapes; inserting
    quantizers keeps the names. Both graphs run as written, unfused, so each tensor is seen before it is rounded.
    Memory is O(one batch), and that batch is small.

    Args:
        limit: only the worst so many.

    Raises:
        CandidateError: a graph cannot be opened, or fails on a sample.
    """
    shapes = static_shapes(a)
    makers = _makers(a, shapes)
    others = _makers(b, static_shapes(b))
    names = [name for name in makers if name in others]
    sessions = _open(a, names), _open(b, names)
    sample_bytes = sum(shapes.bytes_of(name) or 0 for name in names)
    noise = dict.fromkeys(names, 0.0)
    signal = dict.fromkeys(names, 0.0)
    unlike: set[str] = set()
    for expected, got in _side_by_side(sessions, samples, max(1, BATCH_BYTES // max(1, sample_bytes))):
        for name in names:
            if got[name].shape != expected[name].shape:
                unlike.add(name)
                continue
            # taken as one sample, as a tensor inside a graph may have its batch anywhere
            noise_11, signal_11 = powers({name: got[name]}, {name: expected[name]}, 1)
            noise[name] += float(noise_11.sum())
            signal[name] += float(signal_11.sum())
    found = [
        LayerError(
            name, makers[name].op_type, position, to_db(float(ratio(np.array(noise[name]), np.array(signal[name]))))
        )
        for position, name in enumerate(names)
        if name not in unlike
    ]
    return sorted(found, key=lambda error: (error.snr_db, error.position))[:limit]


def _makers(model: Model, shapes: Shapes) -> dict[str, ir.Node]:
    """Float tensors of the main graph that depend on an input -> the node that makes them, in graph order."""
    return {
        value.name: node
        for node in model.ir.graph
        for value in node.outputs
        if value.name and value.name in shapes.types and shapes.types[value.name].is_floating_point()
        if constants_of(value) is None
    }


def _open(model: Model, names: list[str]) -> Session:
    """A session of the graph as written that gives these tensors, and only them."""
    copy = model.clone()
    wanted = set(names)
    found = {value.name: value for node in copy.ir.graph for value in node.outputs if value.name in wanted}
    copy.ir.graph.outputs.clear()
    copy.ir.graph.outputs.extend(found[name] for name in names)
    return open_session(copy, optimize=False)


def _side_by_side(sessions: tuple[Session, Session], samples: Samples, most: int) -> Iterator[tuple[Outputs, Outputs]]:
    first, second = sessions
    try:
        first_size, second_size = (min(batch_size(session, samples), most) for session in sessions)
        for batch in samples.batches(first_size):
            yield run_batch(first, batch.feeds, first_size), run_batch(second, batch.feeds, second_size)
    except Exception as error:  # onnxruntime's errors share no type
        raise CandidateError(f"comparing layers of the two models fails: {reason(error)}") from error
