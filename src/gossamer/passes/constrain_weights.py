"""Weights moved into a constraint at the least loss, and stored in the form that it allows.

What is stored, and what it brings on onnxruntime:

- grid: integers and scales, see `graph.grid_form`. Small in any form; `matmulnbits` and `dynamiclstm` are faster too.
- codebook: indices and tables, see `graph.codebook_form`. Small; float's latency.
- low rank: two or three thin layers, see `graph.factored_form`, where these take fewer weights and multiply-adds.
- sparse: floats with zeros. This runtime computes with zeros like with any other number, and the file is as large:
  an archive stores it small. With a grid or a codebook behind it, it is stored in that form.
- shared: one initializer for several layers.

The solver `second_order` takes the second moments of the layers' inputs, from the calibration samples; without any,
from what the model itself says. `nearest` needs none. `sequential` gathers the moments anew behind the layers that are
compressed already (as GPTQ does, Frantar et al. 2022, "GPTQ: accurate post-training quantization for generative
pre-trained transformers"), and each layer aims at the output that it has in the float network, so that later layers
make up for the errors of earlier ones: see `arith.float_target`. Losses are then to that aim: what a layer adds itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.float_target import target
from gossamer.arith.forms import Chained, Dense, Factored, Form, Indexed, floats_of, stored_bits
from gossamer.arith.moments import Moments
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint, as_text, constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.shared import Shared
from gossamer.constraints.sparse import Sparse
from gossamer.errors import CandidateError, DataError, OptionError
from gossamer.graph import codebook_form, factored_form, grid_form
from gossamer.graph.dense_form import store_dense
from gossamer.graph.edit import constant, drop_unused
from gossamer.graph.layers import check_finite
from gossamer.graph.weight_forms import wider
from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight
from gossamer.graph.weight_uses import OPERATORS, Found, computes_with_constant, read_alike, weight_uses
from gossamer.measuring.moments_without_data import moments_without_data
from gossamer.measuring.sequential_moments import Drifts, Seen, Walk
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.nouns.prediction import Prediction
from gossamer.passes.contract import Result, in_scope, nodes_in_scope
from gossamer.solvers import nearest, second_order
from gossamer.solvers.contract import Solved

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence

PRESERVES_FUNCTION = False
NEEDS_SAMPLES = False  # without any, second_order takes moments from the model itself, and a note says so
STORES: tuple[str, ...] = ()  # see Result.stores

NAMED = 3  # layers that a note names
FEW_SAMPLES = 8  # below that a note doubts the moments


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        constraint: what form weights must take, as text: `grid:4`; see `constraints.contract`.
        solver: how they get there: at the least loss to the layer's output, or to the nearest point.
        sequential: for second_order: stage by stage, behind what is compressed already, towards the float outputs.
        form: the nodes that make floats of integers on a grid, see `graph.grid_form`.
        embeddings: also the tables of Gather.
    """

    constraint: str = "grid:8"
    solver: Literal["second_order", "nearest"] = "second_order"
    sequential: bool = False
    form: grid_form.Wish = "fastest"
    embeddings: bool = True

    @property
    def aim(self) -> Constraint:
        """The constraint itself.

        Raises:
            OptionError: there is none of this text.
        """
        return constraint_from_text(self.constraint)


class Chosen(NamedTuple):
    """What is to be done: the weights and their uses, why others stay; and weight -> form, of a grid."""

    found: Found
    grids: dict[ir.Value, grid_form.Form]


def requires(model: Model, config: Config, scope: Scope) -> None:
    """A node asked for by its exact name can take the constraint, in the form asked for.

    Raises:
        OptionError: names the node, and why it cannot.
    """
    left = _choose(model, config, scope).found.whole()
    for node in model.ir.graph:
        if node.name not in scope.only or not in_scope(scope, node):
            continue
        reason = left.get(node, "")
        if node.domain != "" or node.op_type not in OPERATORS:
            reason = f"{node.domain or node.op_type} has no weight that can be constrained"
        if reason:
            raise OptionError(
                f"constrain_weights cannot put node {node.name!r} into {config.constraint}: {reason}; "
                "change the option or leave it out of the scope"
            )


def apply(model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> Result:
    """Solve for every weight of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and the tables, and store it.

    A weight that several nodes read is stored once, or, where one of them must keep it as it is, not at all.

    Raises:
        ModelError: a weight holds NaN or infinity.
        DataError, CandidateError: the samples, or the runtime on them; see `measuring.moments`.
    """
    clone = model.clone()
    chosen = _choose(clone, config, scope)
    found = chosen.found
    for weight, uses in found.uses.items():
        check_finite(uses[0].node, weight)
    answers = _tied(model, found, config, evidence) if isinstance(config.aim, Shared) else {}
    answers = answers or _solved(model, found, config, evidence)
    predicted = tuple(_prediction(weight, found.uses[weight][0], answers[weight], config) for weight in found.uses)
    for weight, uses in _stored_together(found, config):
        _store(uses, answers[weight].solved.form, chosen.grids[weight], config)
    notes = _notes_of_left(found)
    if not predicted:
        return Result(model, False, (*notes, f"constrain_weights: no weight to put into {config.constraint}"))
    drop_unused(clone.ir)
    changed = replace(clone, reference=model.reference or model)
    notes = (*notes, *_notes_of_solver(predicted, config, None if evidence is None else len(evidence.samples)))
    return Result(changed, True, notes, _new_types(model, clone), predicted)


def ensures(before: Model, result: Result, config: Config) -> None:
    """The weights became smaller, if the constraint promises that; else they lie in it.

    Raises:
        CandidateError: says what was not kept.
    """
    if not result.modified:
        return
    constraint = config.aim.then if isinstance(config.aim, Composed) else config.aim
    if isinstance(constraint, Grid):
        _ensure_types(before, result, constraint.bits)
    if isinstance(config.aim, Sparse):
        _ensure_sparse(result, config.aim)
    elif result.model.weight_bytes() >= before.weight_bytes():
        raise CandidateError(f"constrain_weights: {config.constraint} saved nothing")


def _ensure_types(before: Model, result: Result, bits: int) -> None:
    """Integers have the type that their bits ask for, or UINT8 in bit planes and inside MatMulNBits."""
    opset = result.model.ir.graph.opset_imports.get("", 0)
    allowed = (f"INT{wider(bits, opset)}", "UINT8")
    for name, value in result.model.ir.graph.initializers.items():
        if name in before.ir.graph.initializers or "_quantized" not in name:
            continue
        if value.dtype is None or value.dtype.name not in allowed:
            raise CandidateError(f"{name} is {value.dtype}, promised {' or '.join(allowed)}")


def _ensure_sparse(result: Result, constraint: Sparse) -> None:
    names = {prediction.layer for prediction in result.predicted}
    found = weight_uses((node for node in result.model.ir.graph if node.name in names), True)
    for weight, uses in found.uses.items():
        if not constraint.contains(uses[0].to_matrix(np.asarray(constant(weight))), uses[0].k_shape):
            raise CandidateError(f"{weight.name} is not {as_text(constraint)}, as promised")


# --- what is constrained


def _choose(model: Model, config: Config, scope: Scope) -> Chosen:
    found = weight_uses(nodes_in_scope(model, scope, *OPERATORS), config.embeddings)
    opset = model.ir.graph.opset_imports.get("", 0)
    grids: dict[ir.Value, grid_form.Form] = {}
    for weight, uses in list(found.uses.items()):
        form, reason = _form(uses, config, opset)
        if reason:
            found.leave(weight, reason)
        else:
            grids[weight] = form
    if isinstance(config.aim, Shared):
        _leave_unlike(found)
    return Chosen(found, grids)


def _form(uses: Sequence[WeightMatrix], config: Config, opset: int) -> grid_form.Choice:
    constraint = config.aim
    if not isinstance(constraint, Shared):  # the stack is not made yet
        obstacle = constraint.obstacle(uses[0].shape_GOK, uses[0].k_shape)
        if obstacle:
            return grid_form.Choice(obstacle=obstacle)
    stored = constraint.then if isinstance(constraint, Composed) else constraint
    if isinstance(constraint, LowRank) or (isinstance(constraint, Composed) and isinstance(constraint.first, LowRank)):
        return grid_form.Choice(obstacle=factored_form.obstacle(uses))
    if isinstance(stored, Grid):
        return grid_form.choose(uses, stored, config.form, opset)
    if config.form not in ("fastest", "cast"):
        return grid_form.Choice(obstacle=f"the form {config.form} is one of grids; use form fastest")
    if isinstance(stored, Codebook):
        return grid_form.Choice(obstacle=codebook_form.obstacle(uses, stored, opset))
    return grid_form.Choice()


def _leave_unlike(found: Found) -> None:
    """Weights without groups can be tied to others of the same layout and shape."""
    for weight, uses in list(found.uses.items()):
        if uses[0].split[0] > 1 and len(uses[0].shape) < len(uses[0].split):
            found.leave(weight, "a grouped convolution's weight cannot be stacked with others")
    for group in _alike(found):
        if len(group) == 1:
            found.leave(group[0], f"no other weight in the scope has its shape {found.uses[group[0]][0].shape}")


def _alike(found: Found) -> list[list[ir.Value]]:
    groups: dict[tuple[tuple[int, ...], ...], list[ir.Value]] = {}
    for weight, uses in found.uses.items():
        groups.setdefault((uses[0].shape, uses[0].split, uses[0].order), []).append(weight)
    return list(groups.values())


# --- solving


class Answer(NamedTuple):
    """What a solver says of a weight, and where the moments came from; these are let go, as they are large."""

    solved: Solved
    source: str


def _solved(model: Model, found: Found, config: Config, evidence: Evidence | None) -> dict[ir.Value, Answer]:
    """Solve for all weights; those that would not pay are left."""
    names = {weight.name or "": weight for weight, uses in found.uses.items() if read_alike(uses)}
    if config.solver == "nearest":
        names = {}
    answers: dict[ir.Value, Answer] = {}
    trial = model.clone() if config.sequential else model  # with the numbers of what is compressed already
    for stage, (moments, drifts) in _stages(trial, list(names), config, evidence):
        for name in stage:
            weight, use = names[name], found.uses[names[name]][0]
            known = moments.get(name)
            if evidence is None or config.sequential or known is None or known.source != "samples":
                answers[weight] = _answer(weight, use, known, config, drifts.pop(name, None))
            else:  # plans that differ elsewhere ask for the same
                key = (name, config.constraint)
                solved = evidence.once(model, key, partial(_solve, _matrix(weight, use), known, config, use.k_shape))
                answers[weight] = Answer(solved, known.source)
            form = answers[weight].solved.form
            if config.sequential and not _obstacle_in_form([use], form, config):
                real = use.from_matrix(floats_of(form))
                trial.ir.graph.initializers[name].const_value = ir.tensor(real, name=name)
    for weight in found.uses.keys() - answers.keys():  # in any order: each by itself
        answers[weight] = _answer(weight, found.uses[weight][0], None, config)
    for weight, uses in list(found.uses.items()):
        reason = _obstacle_in_form(uses, answers[weight].solved.form, config)
        if reason:
            found.leave(weight, reason)
    return answers


def _stages(
    model: Model, names: Sequence[str], config: Config, evidence: Evidence | None
) -> Iterator[tuple[Sequence[str], Seen]]:
    """Weights that are solved for together, and what is known of their inputs, with the numbers before them as then."""
    if evidence is None or not len(evidence.samples) or not names:
        yield names, Seen(_without_data(model, names), {})
    elif config.sequential and not isinstance(config.aim, Shared):
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


def _source(moments: Moments | None) -> str:
    return "" if moments is None else moments.source


def _without_data(model: Model, names: Sequence[str]) -> dict[str, Moments]:
    """From noise and batch norms; none where the model does not run on noise."""
    try:
        return moments_without_data(model, names) if names else {}
    except (CandidateError, DataError):  # the solver falls back to nearest then, and says so
        return {}


def _answer(
    weight: ir.Value, use: WeightMatrix, moments: Moments | None, config: Config, drifts: Drifts | None = None
) -> Answer:
    w_GOK = _matrix(weight, use)
    w_GOK = w_GOK if drifts is None else target(w_GOK, *drifts).w_GOK
    return Answer(_solve(w_GOK, moments, config, use.k_shape), _source(moments))


def _solve(w_GOK: np.ndarray, moments: Moments | None, config: Config, k_shape: tuple[int, ...] = ()) -> Solved:
    solve = second_order.solve if config.solver == "second_order" else nearest.solve
    return solve(w_GOK, config.aim, moments, k_shape)


def _tied(model: Model, found: Found, config: Config, evidence: Evidence | None) -> dict[ir.Value, Answer]:
    """One weight for each group of layers whose weights are alike."""
    answers: dict[ir.Value, Answer] = {}
    for group in _alike(found):
        names = [weight.name or "" for weight in group]
        known: dict[str, Moments] = {}
        if config.solver == "second_order":
            (_, (known, _)), *_ = _stages(model, names, config, evidence)
        moments = _stacked([known.get(name) for name in names])
        stack = np.concatenate([_matrix(weight, found.uses[weight][0]) for weight in group])
        solved = _solve(stack, moments, config)
        each = floats_of(solved.form)[: len(stack) // len(group)]
        shares = [number / len(group) for number in solved[1:4]]
        one = Solved(Dense(each), shares[0], shares[1], shares[2], solved.reason)
        answers.update(dict.fromkeys(group, Answer(one, _source(moments))))
    return answers


def _matrix(weight: ir.Value, use: WeightMatrix) -> np.ndarray:
    return use.to_matrix(np.asarray(constant(weight)))


def _stacked(moments: Sequence[Moments | None]) -> Moments | None:
    """Of weights stacked along G."""
    known = [each for each in moments if each is not None]
    if len(known) < len(moments):
        return None
    h = [each.h_GKK for each in known if each.h_GKK is not None]
    rows = [each.rows_GO for each in known if each.rows_GO is not None]
    if len(h) == len(known):
        return Moments(np.concatenate(h), None, known[0].samples, known[0].source)
    return Moments(None, np.concatenate(rows), known[0].samples) if len(rows) == len(known) else None


# --- storing


def _obstacle_in_form(uses: Sequence[WeightMatrix], form: Form, config: Config) -> str:
    if not isinstance(form, Factored | Chained):
        return ""
    reason = factored_form.saving_obstacle(uses[0], factored_form.parts_of(uses[0], form))
    return f"{reason}; kept whole" if reason else ""


def _stored_together(found: Found, config: Config) -> list[tuple[ir.Value, list[WeightMatrix]]]:
    """A weight and what is to read its form: its own uses, or those of all layers that share it."""
    if not isinstance(config.aim, Shared):
        return list(found.uses.items())
    return [(group[0], [use for weight in group for use in found.uses[weight]]) for group in _alike(found)]


def _store(uses: Sequence[WeightMatrix], form: Form, grid: grid_form.Form, config: Config) -> None:
    """Put a form in the place of a weight."""
    match form:
        case Dense():
            pattern = config.aim.pattern if isinstance(config.aim, Sparse) else None
            store_dense(uses, form.w_GOK, "" if pattern is None else f"{pattern[0]}:{pattern[1]}")
        case Indexed():
            codebook_form.store_indexed(uses, form)
        case Factored() | Chained():
            factored_form.store_factored(uses, form, config.form)
        case _:
            grid_form.store_grid(uses, grid, form)


# --- what is said


def _prediction(weight: ir.Value, use: WeightMatrix, answer: Answer, config: Config) -> Prediction:
    solved, source = answer
    return Prediction(
        layer=use.node.name or "",
        weight=weight.name or "",
        constraint=config.constraint,
        loss=solved.loss,
        nearest_loss=solved.nearest_loss,
        zero_loss=solved.zero_loss,
        stored_bytes=-(-stored_bits(solved.form) // 8),
        source=source,
        reason=solved.reason if config.solver == "second_order" else "",
    )


def _notes_of_left(found: Found) -> tuple[str, ...]:
    return tuple(
        f"constrain_weights left {node.name} as it was: {reason}"
        for node, reason in found.whole().items()
        if computes_with_constant(node)
    )


def _notes_of_solver(predicted: Sequence[Prediction], config: Config, samples: int | None) -> list[str]:
    """What the solver could not do, in a line for each reason."""
    notes = []
    if config.solver == "second_order":
        notes = [_note(reason, predicted) for reason in dict.fromkeys(each.reason for each in predicted) if reason]
        sources = sorted({each.source for each in predicted} - {"", "samples"})
        notes += [f"constrain_weights: second moments from {source}, not from samples" for source in sources]
        if samples is not None and samples < FEW_SAMPLES:
            notes.append(f"constrain_weights: second moments of only {samples} samples; give more, or take nearest")
    if isinstance(config.aim, Sparse):
        notes.append("constrain_weights: zeros bring no speed on this runtime, and make only an archive smaller")
    return notes


def _note(reason: str, predicted: Sequence[Prediction]) -> str:
    layers = [each.layer for each in predicted if each.reason == reason]
    names = ", ".join(layers[:NAMED]) + (f" and {len(layers) - NAMED} more" if len(layers) > NAMED else "")
    return f"constrain_weights took the nearest for {names}: {reason}"


def _new_types(before: Model, after: Model) -> tuple[str, ...]:
    """The integer types of the initializers that are new, shapes aside: INT8, INT4, UINT8 and so on."""
    known = before.ir.graph.initializers
    fresh = (value for name, value in after.ir.graph.initializers.items() if name not in known)
    types = {value.dtype for value in fresh if value.dtype is not None and value.dtype.is_integer()}
    return tuple(sorted(dtype.name for dtype in types - {ir.DataType.INT64}))
