"""All weights of a model moved into their constraints, each once, with what is known of their inputs.

`second_order` takes the moments of the layers' inputs from samples; without any, from what the model itself says.
In sequence, moments are gathered anew behind the layers that are solved already (as GPTQ does, Frantar et al. 2022,
"GPTQ: accurate post-training quantization for generative pre-trained transformers"), and each layer aims at the output
that it has in the float network, so that later layers make up for the errors of earlier ones: see `arith.float_target`.
Losses are then to that aim: what a layer adds itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.arith.float_target import target
from gossamer.arith.forms import Dense, floats_of
from gossamer.arith.moments import Moments, stacked
from gossamer.constraints.contract import Constraint, as_text
from gossamer.constraints.shared import Shared
from gossamer.errors import CandidateError, DataError
from gossamer.graph.edit import constant
from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight
from gossamer.graph.weight_uses import read_alike
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.moments_without_data import moments_without_data
from gossamer.measuring.sequential_moments import Seen, Walk
from gossamer.nouns.model import Model
from gossamer.solvers import nearest, second_order
from gossamer.solvers.contract import Solved

Solver = Literal["second_order", "nearest"]
NO_RATE = "the solver nearest knows no loss to weigh bits against; take second_order, or leave the rate out"
Uses = Mapping[ir.Value, Sequence[WeightMatrix]]


class Answer(NamedTuple):
    """What a solver says of a weight, and where the moments came from; these are let go, as they are large."""

    solved: Solved
    source: str = ""


def solve_all(
    model: Model,
    uses: Uses,
    aims: Mapping[ir.Value, Constraint],
    solver: Solver,
    evidence: Evidence | None,
    sequential: bool,
    is_stored: Callable[[ir.Value, Solved], bool],
) -> dict[ir.Value, Answer]:
    """Every weight in its constraint.

    Args:
        model: with these weights, by name; it is not changed.
        uses: who reads each weight. Those that are to be one weight have equal shapes, see `alike`.
        aims: the constraint of each.
        is_stored: whether a form will stand in the network: in sequence, later layers must see what really stands
            there.

    Raises:
        DataError, CandidateError: the samples, or the runtime on them; see `measuring.moments`.
    """
    answers: dict[ir.Value, Answer] = {}
    for group in alike({weight: uses[weight] for weight in uses if isinstance(aims[weight], Shared)}):
        answers |= _tied(model, group, uses, solver, evidence)
    names = {weight.name or "": weight for weight in uses if weight not in answers and read_alike(uses[weight])}
    names = names if solver == "second_order" else {}
    trial = model.clone() if sequential else model  # with the numbers of what is solved already
    for weight in answers if sequential else ():
        _replace(trial, weight, uses[weight][0], answers[weight].solved)
    for stage, (moments, drifts) in _stages(trial, list(names), evidence, sequential):
        for name in stage:
            weight, use = names[name], uses[names[name]][0]
            w_GOK, known = matrix_of(use), moments.get(name)
            if known is not None and known.source == "samples" and evidence is not None and not sequential:
                solved = solved_once(evidence, model, name, w_GOK, aims[weight], known, use.k_shape)
            else:
                drift = drifts.pop(name, None)
                aimed_GOK = w_GOK if drift is None else target(w_GOK, *drift).w_GOK
                solved = second_order.solve(aimed_GOK, aims[weight], known, use.k_shape)
            answers[weight] = Answer(solved, "" if known is None else known.source)
            if sequential and is_stored(weight, solved):
                _replace(trial, weight, use, solved)
    solve = second_order.solve if solver == "second_order" else nearest.solve
    for weight in uses.keys() - answers.keys():  # in any order: each by itself
        use = uses[weight][0]
        answers[weight] = Answer(solve(matrix_of(use), aims[weight], None, use.k_shape))
    return answers


def solved_once(
    evidence: Evidence,
    model: Model,
    weight: str,
    w_GOK: np.ndarray,
    constraint: Constraint,
    moments: Moments | None,
    k_shape: tuple[int, ...] = (),
) -> Solved:
    """The least loss, found once for all that ask for it: who allocates, the pass, and who checks predictions."""
    key = (weight, as_text(constraint))
    return evidence.once(model, key, lambda: second_order.solve(w_GOK, constraint, moments, k_shape))


def matrix_of(use: WeightMatrix) -> np.ndarray:
    """The weight as (G, O, K)."""
    return use.to_matrix(np.asarray(constant(use.value)))


def alike(uses: Uses) -> list[list[ir.Value]]:
    """Weights of equal layout and shape, which could be one."""
    groups: dict[tuple[tuple[int, ...], ...], list[ir.Value]] = {}
    for weight, (use, *_) in uses.items():
        groups.setdefault((use.shape, use.split, use.order), []).append(weight)
    return list(groups.values())


def _replace(model: Model, weight: ir.Value, use: WeightMatrix, solved: Solved) -> None:
    name = weight.name or ""
    model.ir.graph.initializers[name].const_value = ir.tensor(use.from_matrix(floats_of(solved.form)), name=name)


def _stages(
    model: Model, names: Sequence[str], evidence: Evidence | None, sequential: bool
) -> Iterator[tuple[Sequence[str], Seen]]:
    """Weights that are solved for together, and what is known of their inputs, with the numbers before them as then."""
    if not names:
        return
    if evidence is None or not len(evidence.samples):
        yield names, Seen(_without_data(model, names), {})
    elif sequential:
        floats = _float_model(model, names)
        walk = Walk(floats, names, evidence.samples, evidence.threads, beside_float=True)
        for stage, together in enumerate(walk.stages):
            yield together, walk.seen(model, stage)
    else:
        yield names, Seen(evidence.moments(model, names), {})


def _float_model(model: Model, names: Sequence[str]) -> Model:
    """The model from before all lossy steps, if these weights and what they read are still the same there."""
    reference = model.reference
    if reference is None:
        return model
    uses, before = (matrices_by_weight(each.ir.graph, set(names)) for each in (model, reference))
    same = all(_reads_alike(uses[name], before.get(name, ())) for name in names)
    return reference if same else model


def _reads_alike(uses: Sequence[WeightMatrix], others: Sequence[WeightMatrix]) -> bool:
    """Whether the same weight is multiplied with the same tensors, by name."""
    reads, before = ([[value and value.name for value in use.node.inputs] for use in each] for each in (uses, others))
    if reads != before:
        return False
    return np.array_equal(np.asarray(constant(uses[0].value)), np.asarray(constant(others[0].value)))


def _without_data(model: Model, names: Sequence[str]) -> dict[str, Moments]:
    """From noise and batch norms; none where the model does not run on noise."""
    try:
        return moments_without_data(model, names)
    except (CandidateError, DataError):  # the solver falls back to nearest then, and says so
        return {}


def _tied(
    model: Model, group: Sequence[ir.Value], uses: Uses, solver: Solver, evidence: Evidence | None
) -> dict[ir.Value, Answer]:
    """One weight for layers whose weights are alike; each bears its share of the loss."""
    names = [weight.name or "" for weight in group]
    known: dict[str, Moments] = {}
    if solver == "second_order":
        (_, (known, _)), *_ = _stages(model, names, evidence, sequential=False)
    moments = stacked([known.get(name) for name in names])
    stack = np.concatenate([matrix_of(uses[weight][0]) for weight in group])
    solve = second_order.solve if solver == "second_order" else nearest.solve
    solved = solve(stack, Shared(), moments, ())
    each = floats_of(solved.form)[: len(stack) // len(group)]
    shares = [number / len(group) for number in solved[1:4]]
    one = Solved(Dense(each), shares[0], shares[1], shares[2], solved.reason)
    source = "" if moments is None else moments.source
    return dict.fromkeys(group, Answer(one, source))
