"""Noise of a network's outputs with some of its weights replaced: one session, in which weights are fed like inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gossamer.errors import ModelError
from gossamer.measuring.quality import Metric, score
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Feeds, Session
from gossamer.runtimes.onnxruntime import open_session

FIRST_FREE_VERSION = 4  # of the IR: initializers need no longer be inputs, so that those that are can be fed


def output_noise(
    model: Model, weights: Sequence[str], samples: Samples, threads: int = 1
) -> Callable[[Mapping[str, np.ndarray]], float]:
    """A function from weights (initializer name -> array) to noise over signal of the outputs, the others as they are.

    A call costs the forward passes over the samples, and no opening of a session.

    Raises:
        ModelError: a weight is no initializer of the main graph, or the model fails.
        CandidateError: with the weights given, outputs are NaN.
    """
    session = _open(model, weights, threads)
    truth = score(session, samples, Metric("snr"))

    def noise(replaced: Mapping[str, np.ndarray]) -> float:
        return score(_with_weights(session, replaced), samples, Metric("snr"), truth).noise_ratio

    return noise


def _open(model: Model, weights: Sequence[str], threads: int) -> Session:
    copy = model.clone()
    graph = copy.ir.graph
    missing = [name for name in weights if name not in graph.initializers]
    if missing:
        raise ModelError(f"{model.name}: {missing[0]!r} is no initializer of the main graph, so it cannot be replaced")
    copy.ir.ir_version = max(copy.ir.ir_version, FIRST_FREE_VERSION)
    graph.inputs.extend(graph.initializers[name] for name in weights if not graph.initializers[name].is_graph_input())
    return open_session(copy, threads)


def _with_weights(session: Session, weights: Mapping[str, np.ndarray]) -> Session:
    def call(names: list[str] | None, feeds: Feeds) -> Sequence[np.ndarray]:
        return session.call(names, {**feeds, **weights})

    return replace(session, call=call)
