"""A little graph as it is trained under penalties or with zeros that appear: its module, layers and job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tests.passes.graphs import parse
from tests.training.small_jobs import job, samples
from torch import fx

from gossamer.nouns.model import Model
from gossamer.training.layer_weights import LayerWeight, layer_weights
from gossamer.training.losses.hard_labels import HardLabels
from gossamer.training.lower import lower
from gossamer.training.penalties.chosen import build as build_penalties
from gossamer.training.penalties.chosen import parse as parse_penalties
from gossamer.training.pupil import Pupil, WeightedLoss
from gossamer.training.run import Job
from gossamer.training.sparsity.contract import Shaper
from gossamer.training.watching import Watch

QUICK: dict[str, Any] = {"epochs": 5, "batch": 16, "rate": 0.03}  # 12 steps an epoch


class Net(NamedTuple):
    """A module and its layers."""

    module: fx.GraphModule
    layers: tuple[LayerWeight, ...]


def model() -> Model:
    """Eight numbers to three scores; the same weights at every call."""
    rng = np.random.default_rng(5)
    shapes = {"first": (8, 24), "b": (24,), "second": (24, 12), "c": (12,), "third": (12, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    text = """g (float[N,8] x) => (float[N,3] y) {
        a = Gemm(x, first, b) h = Relu(a) d = Gemm(h, second, c) e = Relu(d) y = MatMul(e, third) }"""
    return parse(text, **arrays)


def network() -> Model:
    """Eight numbers to four scores, by weights that few bits do not hold."""
    rng = np.random.default_rng(0)
    text = """g (float[N,8] x) => (float[N,4] scores) {
        a = Gemm(x, first, b) h = Relu(a) scores = Gemm(h, second, c) }"""
    shapes = {"first": (8, 64), "b": (64,), "second": (64, 4), "c": (4,)}
    return parse(text, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def net(graph: Model | None = None) -> Net:
    """Lowered."""
    graph = model() if graph is None else graph
    module = lower(graph)
    return Net(module, layer_weights(module, graph))


def job_of(
    made: Net,
    shaper: Shaper | None = None,
    penalties: tuple[str, ...] = (),
    checkpoint: Path | None = None,
    watch: Watch = Watch(),  # noqa: B008
    options: Mapping[str, Any] | None = None,
) -> Job:
    """Training of the net on points whose class a linear map says."""
    plain = job(made.module, samples(240), options={**QUICK, **(options or {})})
    penalty = build_penalties(parse_penalties(penalties), made.layers)
    pupil = Pupil(made.module, [WeightedLoss(HardLabels())], penalty, shaper)
    return Job(pupil, plain.data, plain.validation, plain.options, checkpoint, watch, 0.0, "little")


def zeros(layer: LayerWeight) -> float:
    """The share of a layer's weights that are zero."""
    return float((layer.parameter == 0).float().mean())
