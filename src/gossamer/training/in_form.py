"""Training that leaves a model in its form: integers stay integers, zeros zeros, shared values shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import fx

from gossamer.measuring.fetching import with_outputs
from gossamer.nouns.model import Model
from gossamer.training.lessons import Lessons
from gossamer.training.loop import Trained, train
from gossamer.training.lower import lower
from gossamer.training.operators.fake_quantize import DOMAIN
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil, WeightedLoss
from gossamer.training.run import Job
from gossamer.training.settle import settle
from gossamer.training.twin import RATE, twin
from gossamer.training.watching import Watch
from gossamer.training.write_back import write_back
from gossamer.training.zeros import check_zeros, keep_zeros

LOG_SLOT = 3  # of a FakeQuantize: the logarithm of its step
STEP_SHARE = 0.1  # of the learning rate: steps that run ahead of their integers harm
LEAST_MEAN = 1e-3  # of biases that begin at zero
FLOAT_SHARE = 0.5  # of a float weight's mean size: about what a step is to weights of 4 bits


class Course(NamedTuple):
    """What a model is to learn from.

    Attributes:
        losses: what is lessened.
        hints: tensors inside the model that losses look at.
        learn, choose: what trains, and what chooses the epoch.
        checkpoint: where a killed run goes on from; None for none.
    """

    losses: tuple[WeightedLoss, ...]
    hints: tuple[str, ...]
    learn: Lessons
    choose: Lessons
    checkpoint: Path | None
    watch: Watch


class Outcome(NamedTuple):
    """The trained model, how training went, and the options that it had in the end."""

    model: Model
    trained: Trained
    options: Options


def train_in_form(
    model: Model,
    course: Course,
    options: Options,
    nodes: frozenset[str] | None = None,
    learn_steps: bool = True,
    sparse: bool = False,
) -> Outcome:
    """Train a model by its twin if it has integers, or as it is.

    Args:
        nodes: only what these read is trained; None stands for all.
        learn_steps: see `twin`.
        sparse: see `keep_zeros`.

    Raises:
        ModelError, DataError, CandidateError: see `lower` and `train`.
    """
    shown = with_outputs(model, course.hints, "features") if course.hints else model
    graph = twin(shown, learn_steps)
    module = lower(graph)
    held = keep_zeros(module, graph, sparse)
    if held:
        course.watch.say(f"the zeros of {held} weights stay zeros")
    if nodes is not None:
        _freeze_all_but(module, graph, nodes)
    if graph is not shown:
        _slow_floats(module, graph)
        options = options if options.rate is not None else msgspec.structs.replace(options, rate=RATE)
    options = for_fixed_batch(options, course.learn.fixed_batch)
    pupil = Pupil(module, course.losses)
    trained = train(Job(pupil, course.learn, course.choose, options, course.checkpoint, course.watch, name=model.name))
    result = settle(write_back(module, graph), model)
    check_zeros(model, result, sparse)
    return Outcome(replace(result, path=None), trained, options)


def for_fixed_batch(options: Options, fixed_batch: int | None) -> Options:
    """The options for a model that insists on so many samples in a call: more calls make up a step of the same size."""
    if fixed_batch is None:
        return options
    wanted = options.batch * options.accumulate
    return msgspec.structs.replace(options, batch=fixed_batch, accumulate=max(1, round(wanted / fixed_batch)))


def _slow_floats(module: fx.GraphModule, graph: Model) -> None:
    """Let what a twin has in float move by as small a share of itself as what is in integers, and steps less."""
    parameters = dict(module.named_parameters())
    for path, name in module.meta["initializers"].items():
        uses = graph.ir.graph.initializers[name].uses()
        if path in parameters and any(node.op_type == "FakeQuantize" and slot == LOG_SLOT for node, slot in uses):
            parameters[path].rate_ratio = STEP_SHARE  # type: ignore[attr-defined]
        elif path in parameters and not any(node.domain == DOMAIN for node, _ in uses):
            mean = float(parameters[path].detach().abs().mean())
            parameters[path].rate_ratio = FLOAT_SHARE * max(mean, LEAST_MEAN)  # type: ignore[attr-defined]


def _freeze_all_but(module: fx.GraphModule, graph: Model, nodes: frozenset[str]) -> None:
    """Train only what these nodes read, through quantizers or not."""
    parameters = dict(module.named_parameters())
    for path, name in module.meta["initializers"].items():
        if path not in parameters:
            continue
        readers = graph.ir.graph.initializers[name].consumers()
        behind = [
            layer for node in readers for layer in (node.outputs[0].consumers() if node.domain == DOMAIN else [node])
        ]
        if not any(node.name in nodes for node in behind):
            parameters[path].requires_grad_(False)
