"""Predictions held against measurement: each weight alone in its new form, and the network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from time import perf_counter
from typing import TypeVar

import msgspec

from gossamer.arith.forms import floats_of
from gossamer.arith.moments import Moments
from gossamer.constraints.contract import constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.errors import GossamerError
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.noise import LIMIT_DB
from gossamer.measuring.output_noise import output_noise
from gossamer.nouns.model import Model
from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.nouns.samples import Samples
from gossamer.planning.ledger import SAMPLES, uses_of
from gossamer.planning.sensitivity import gains
from gossamer.solvers import nearest, second_order
from gossamer.solvers.contract import Solved
from gossamer.solving import matrix_of, solved_once

T = TypeVar("T")

SPREAD = 0.618034  # multiples of the golden ratio, less their whole part, fill 0 to 1 evenly at any time
DISTURBANCE = Grid(3)  # for gains where none are known: far above rounding, far below where nets fall apart


def forecast_of(
    predictions: Sequence[Prediction],
    gain: Mapping[str, float],
    model: Model,
    evidence: Evidence,
    samples: Samples,
    snr_db: float,
    budget_s: float = 10.0,
    clock: Callable[[], float] = perf_counter,
) -> Forecast | None:
    """What was expected of a plan that was carried out, and what came of it; None if it constrained no weight.

    What cannot be measured is left empty: a forecast never costs a result.

    Args:
        predictions: of the plan, in any order.
        gain: see `heard`; where it is empty, gains are measured.
        model: what the predictions are of: with constants and norms folded, its weights in float.
        samples: few, that each weight alone is measured on, best others than those of `evidence`.
        snr_db: signal to noise of the outputs as measured under the whole plan; NaN where it was not.
        budget_s: nothing is begun after so many seconds; half of it goes to gains, if they are not known.
    """
    if not predictions:
        return None
    end = clock() + budget_s
    try:
        known = gain or _gains_of(predictions, model, evidence, budget_s / 2, clock)
        told = heard(predictions, known)
    except GossamerError:
        told = tuple(predictions)
    try:
        told = checked(told, model, evidence, samples, max(end - clock(), 0.0), clock)
    except GossamerError:  # each alone could not be measured; the whole was
        pass
    noises = [one.noise_ratio if one.loss > 0 else 0.0 for one in told]
    expected = [noise for noise in noises if noise is not None]
    return Forecast(
        _in_graph_order(told, model),
        sum(expected) if len(expected) == len(noises) else None,
        None if isnan(snr_db) else 0.0 if snr_db >= LIMIT_DB else float(10 ** (-snr_db / 10)),
    )


def _in_graph_order(predictions: Sequence[Prediction], model: Model) -> tuple[Prediction, ...]:
    """With what each weight took before, and with those that were left as they were."""
    places = {node.name or "": place for place, node in enumerate(model.ir.graph)}
    arrays = {name: value.const_value for name, value in model.ir.graph.initializers.items()}
    sizes = {name: array.nbytes for name, array in arrays.items() if array is not None}
    taken = {one.weight for one in predictions}
    left = [
        Prediction(uses[0].node.name or "", weight, "", 0.0, 0.0, 0.0, sizes.get(weight, 0))
        for weight, uses in uses_of(model).items()
        if weight not in taken
    ]
    full = [msgspec.structs.replace(one, float_bytes=sizes.get(one.weight, 0)) for one in (*predictions, *left)]
    return tuple(sorted(full, key=lambda one: places.get(one.layer, len(places))))


def _gains_of(
    predictions: Sequence[Prediction],
    model: Model,
    evidence: Evidence,
    budget_s: float,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Every weight alone on a coarse grid, and what that does to the outputs.

    It gets there by the solver that the plan took: outputs hear the errors that it leaves less than those of rounding,
    whose means are not zero. Of weights for which there was no time, their neighbours tell.
    """
    begin, taken = clock(), {one.weight for one in predictions}
    uses = {weight: readers[0] for weight, readers in uses_of(model).items() if weight in taken}
    moments = evidence.moments(model, list(uses))
    solve = second_order.solve if any(one.loss < one.nearest_loss for one in predictions) else nearest.solve
    solved: dict[str, Solved] = {}
    for weight in _spread(list(uses)):
        if solved and clock() - begin > budget_s / 2:
            break
        solved[weight] = solve(matrix_of(uses[weight]), DISTURBANCE, moments[weight], uses[weight].k_shape)
    ratios = {weight: one.loss / one.zero_loss for weight, one in solved.items() if one.zero_loss > 0}
    noise = output_noise(model, list(ratios), evidence.samples.first(SAMPLES), evidence.threads)

    def measure(weight: str) -> float:
        return noise({weight: uses[weight].from_matrix(floats_of(solved[weight].form))})

    every = {weight: ratios.get(weight, 0.0) for weight in uses}
    return gains(list(uses), every, measure, begin + budget_s - clock(), clock) if ratios else {}


def heard(predictions: Sequence[Prediction], gain: Mapping[str, float]) -> tuple[Prediction, ...]:
    """Predictions of a plan that was carried out, with the noise that the network's outputs are expected to have.

    Args:
        gain: weight -> noise over signal of the network's outputs, over that of the layer's.
    """
    return tuple(
        msgspec.structs.replace(one, noise_ratio=gain[one.weight] * one.loss / one.zero_loss)
        if one.weight in gain and one.zero_loss > 0
        else one
        for one in predictions
    )


def checked(
    predictions: Sequence[Prediction],
    model: Model,
    evidence: Evidence,
    samples: Samples,
    budget_s: float = 60.0,
    clock: Callable[[], float] = perf_counter,
) -> tuple[Prediction, ...]:
    """Predictions with the noise of the network's outputs as measured, each weight alone in its new form.

    Args:
        model: what the predictions are of: with constants and norms folded, its weights in float.
        samples: to measure on, best others than those of `evidence`.
        budget_s: no weight is begun after so many seconds; those measured by then are spread over the network.

    Raises:
        ModelError, DataError, CandidateError: see `output_noise`.
    """
    begin, uses = clock(), uses_of(model)
    known = [one for one in predictions if one.weight in uses]
    noise = output_noise(model, list(dict.fromkeys(one.weight for one in known)), samples, evidence.threads)
    measured: dict[tuple[str, str], float] = {}
    for one in _spread(known):
        if clock() - begin > budget_s:
            break
        use, constraint = uses[one.weight][0], constraint_from_text(one.constraint)
        if one.loss == one.nearest_loss:
            form = nearest.solve(matrix_of(use), constraint, Moments(None), use.k_shape).form
        else:
            moments = evidence.moments(model, [one.weight])[one.weight]
            form = solved_once(evidence, model, one.weight, matrix_of(use), constraint, moments, use.k_shape).form
        measured[one.weight, one.constraint] = noise({one.weight: use.from_matrix(floats_of(form))})
    return tuple(
        msgspec.structs.replace(
            one, measured_noise_ratio=measured.get((one.weight, one.constraint), one.measured_noise_ratio)
        )
        for one in predictions
    )


def _spread(items: Sequence[T]) -> list[T]:
    """In an order whose every beginning lies spread over the whole."""
    return [items[place] for place in sorted(range(len(items)), key=lambda place: place * SPREAD % 1)]
