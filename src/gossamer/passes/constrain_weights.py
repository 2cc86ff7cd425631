"""Weights moved into a constraint at the least loss, and stored in the form that it allows.

What is stored, and what it brings on onnxruntime:

- grid: integers and scales, see `graph.grid_form`. Small in any form; `matmulnbits` and `dynamiclstm` are faster too.
- codebook: indices and tables, see `graph.codebook_form`. Small; float's latency.
- low rank: two or three thin layers, see `graph.factored_form`, where these take fewer weights and multiply-adds.
- sparse: floats with zeros. This runtime computes with zeros like with any other number, and the file is as large:
  an archive stores it small. With a grid or a codebook behind it, it is stored in that form.
- shared: one initializer for several layers.

How weights get there is in `gossamer.solving`. Layers can differ in their constraints; one step solves for all of them
in the order in which they act, so that a plan of many constraints walks through the network once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

from gossamer.arith.forms import Chained, Dense, Factored, Form, Indexed, stored_bits
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import Constraint, as_text, constraint_from_text, rate_of
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.shared import Shared
from gossamer.constraints.sparse import Sparse
from gossamer.errors import CandidateError, OptionError
from gossamer.graph import codebook_form, factored_form, grid_form
from gossamer.graph.dense_form import store_dense
from gossamer.graph.edit import constant, drop_unused
from gossamer.graph.layers import check_finite
from gossamer.graph.weight_forms import wider
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.graph.weight_uses import OPERATORS, Found, computes_with_constant, weight_uses
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Scope
from gossamer.nouns.prediction import Prediction
from gossamer.nouns.schooling import Schooling
from gossamer.passes.contract import Result, check_names, in_scope, nodes_in_scope, trained
from gossamer.solvers.contract import Solved
from gossamer.solving import NO_RATE, Answer, Solver, alike, solve_all

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
        by_layer: node, by name or pattern -> a constraint of its own; a name counts before patterns, the first of them.
        solver: how they get there: at the least loss to the layer's output; to the nearest point; or at the least loss
            and then trained by the original, all in one, until its outputs are right again.
        sequential: for second_order: stage by stage, behind what is compressed already, towards the float outputs.
        form: the nodes that make floats of integers on a grid, see `graph.grid_form`.
        embeddings: also the tables of Gather.
        schooling: for train: how long, see `train_weights`.
    """

    constraint: str = "grid:8"
    by_layer: dict[str, str] = {}
    solver: Literal[Solver, "train"] = "second_order"
    sequential: bool = False
    form: grid_form.Wish = "fastest"
    embeddings: bool = True
    schooling: Schooling = Schooling()

    @property
    def first_solver(self) -> Solver:
        """What moves weights into the constraint, before any training."""
        return "second_order" if self.solver == "train" else self.solver

    def text_of(self, node: str) -> str:
        """The constraint of a node."""
        if not self.by_layer or node in self.by_layer:
            return self.by_layer.get(node, self.constraint)
        return next((text for name, text in self.by_layer.items() if fnmatchcase(node, name)), self.constraint)


class Chosen(NamedTuple):
    """What is to be done: the weights and their uses, why others stay; weight -> constraint; -> form, of a grid."""

    found: Found
    aims: dict[ir.Value, Constraint]
    grids: dict[ir.Value, grid_form.Form]


def requires(model: Model, config: Config, scope: Scope) -> None:
    """A node asked for by its exact name can take the constraint, in the form asked for.

    Raises:
        OptionError: names the node, and why it cannot; or there is no constraint of that text, no node of that name.
    """
    for text in dict.fromkeys((config.constraint, *config.by_layer.values())):
        if rate_of(constraint_from_text(text)) and config.solver == "nearest":
            raise OptionError(f"constrain_weights: {text}: {NO_RATE}")
    if config.schooling != Schooling() and config.solver != "train":
        raise OptionError(f"constrain_weights: schooling is of solver train, not of {config.solver}; drop it")
    check_names(config.by_layer, model, "constrain_weights: by_layer")
    left = _choose(model, config, scope).found.whole()
    for node in model.ir.graph:
        if node.name not in (*scope.only, *config.by_layer) or not in_scope(scope, node):
            continue
        reason = left.get(node, "")
        if node.domain != "" or node.op_type not in OPERATORS:
            reason = f"{node.domain or node.op_type} has no weight that can be constrained"
        if reason:
            raise OptionError(
                f"constrain_weights cannot put node {node.name!r} into {config.text_of(node.name)}: {reason}; "
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
    found, aims, grids = _choose(clone, config, scope)
    for weight, uses in found.uses.items():
        check_finite(uses[0].node, weight)

    def is_stored(weight: ir.Value, solved: Solved) -> bool:
        return not _obstacle_in_form(found.uses[weight][0], solved.form)

    answers = solve_all(model, found.uses, aims, config.first_solver, evidence, config.sequential, is_stored)
    for weight, uses in list(found.uses.items()):
        if reason := _obstacle_in_form(uses[0], answers[weight].solved.form):
            found.leave(weight, reason)
    predicted = tuple(
        _prediction(weight, uses[0], answers[weight], aims[weight], config.first_solver)
        for weight, uses in found.uses.items()
    )
    for weight, readers in _stored_together(found, aims):
        _store(readers, answers[weight].solved.form, aims[weight], grids[weight], config)
    notes = _notes_of_left(found)
    if not predicted:
        return Result(model, False, (*notes, f"constrain_weights: no weight to put into {config.constraint}"))
    drop_unused(clone.ir)
    changed = replace(clone, reference=model.reference or model)
    notes = (*notes, *_notes_of_solver(predicted, config, None if evidence is None else len(evidence.samples)))
    if config.solver == "train":
        changed, note = _trained(model, changed, config, scope, evidence)
        notes = (*notes, f"constrain_weights: {note}")
    return Result(changed, True, notes, _new_types(model, clone), predicted)


def ensures(before: Model, result: Result, config: Config) -> None:
    """The weights became smaller, if their constraints promise that; zeros are where they were promised.

    Raises:
        CandidateError: says what was not kept.
    """
    if not result.modified:
        return
    aims = {one.layer: constraint_from_text(config.text_of(one.layer)) for one in result.predicted}
    stored = [aim.then if isinstance(aim, Composed) else aim for aim in aims.values()]
    if any(isinstance(aim, Grid) for aim in stored):
        _ensure_types(before, result, {aim.bits for aim in stored if isinstance(aim, Grid)})
    _ensure_sparse(result, {layer: aim for layer, aim in aims.items() if isinstance(aim, Sparse)})
    if stored and all(isinstance(aim, Sparse) for aim in stored):
        return
    if result.model.weight_bytes() >= before.weight_bytes():
        texts = ", ".join(dict.fromkeys(map(config.text_of, aims))) or config.constraint
        raise CandidateError(f"constrain_weights: {texts} saved nothing")


def _ensure_types(before: Model, result: Result, bits: set[int]) -> None:
    """Integers have the type that their bits ask for, or UINT8 in bit planes and inside MatMulNBits."""
    opset = result.model.ir.graph.opset_imports.get("", 0)
    allowed = {"UINT8", *(f"INT{wider(each, opset)}" for each in bits)}
    for name, value in result.model.ir.graph.initializers.items():
        if name in before.ir.graph.initializers or "_quantized" not in name:
            continue
        if value.dtype is None or value.dtype.name not in allowed:
            raise CandidateError(f"{name} is {value.dtype}, promised {' or '.join(sorted(allowed))}")


def _ensure_sparse(result: Result, aims: Mapping[str, Sparse]) -> None:
    found = weight_uses((node for node in result.model.ir.graph if node.name in aims), True)
    for weight, uses in found.uses.items():
        aim = aims[uses[0].node.name or ""]
        if not aim.contains(uses[0].to_matrix(np.asarray(constant(weight))), uses[0].k_shape):
            raise CandidateError(f"{weight.name} is not {as_text(aim)}, as promised")


def _trained(before: Model, model: Model, config: Config, scope: Scope, evidence: Evidence | None) -> tuple[Model, str]:
    """The model with what the nodes of the scope read trained, and what is to be said of it; new nodes belong to it.

    Raises:
        OptionError: there are no samples to learn from.
        ModelError, CandidateError: see `nouns.schooling.School.train`.
    """
    known = {node.name for node in before.ir.graph}
    inside = (node.name or "" for node in model.ir.graph if node.name not in known or in_scope(scope, node))
    nodes = None if scope == Scope() else frozenset(inside)
    result, note = trained("constrain_weights: solver train", model, config.schooling, nodes, evidence)
    return replace(result, reference=model.reference), note


# --- what is constrained


def _choose(model: Model, config: Config, scope: Scope) -> Chosen:
    found = weight_uses(nodes_in_scope(model, scope, *OPERATORS), config.embeddings)
    opset = model.ir.graph.opset_imports.get("", 0)
    aims: dict[ir.Value, Constraint] = {}
    grids: dict[ir.Value, grid_form.Form] = {}
    for weight, uses in list(found.uses.items()):
        texts = dict.fromkeys(config.text_of(use.node.name or "") for use in uses)
        aims[weight] = constraint_from_text(next(iter(texts)))
        form, reason = _form(uses, aims[weight], config, opset)
        if len(texts) > 1:
            reason = f"its weight {weight.name} would have to be {' and '.join(texts)} at once"
        if reason:
            found.leave(weight, reason)
        else:
            grids[weight] = form
    _leave_unlike(found, aims)
    return Chosen(found, aims, grids)


def _form(uses: Sequence[WeightMatrix], aim: Constraint, config: Config, opset: int) -> grid_form.Choice:
    if not isinstance(aim, Shared):  # the stack is not made yet
        obstacle = aim.obstacle(uses[0].shape_GOK, uses[0].k_shape)
        if obstacle:
            return grid_form.Choice(obstacle=obstacle)
    stored = aim.then if isinstance(aim, Composed) else aim
    if isinstance(aim, LowRank) or (isinstance(aim, Composed) and isinstance(aim.first, LowRank)):
        return grid_form.Choice(obstacle=factored_form.obstacle(uses))
    if isinstance(stored, Grid):
        return grid_form.choose(uses, stored, config.form, opset)
    if config.form not in ("fastest", "cast"):
        return grid_form.Choice(obstacle=f"the form {config.form} is one of grids; use form fastest")
    if isinstance(stored, Codebook):
        return grid_form.Choice(obstacle=codebook_form.obstacle(uses, stored, opset))
    return grid_form.Choice()


def _leave_unlike(found: Found, aims: Mapping[ir.Value, Constraint]) -> None:
    """Weights without groups can be tied to others of the same layout and shape."""
    for weight, uses in list(found.uses.items()):
        if isinstance(aims[weight], Shared) and uses[0].split[0] > 1 and len(uses[0].shape) < len(uses[0].split):
            found.leave(weight, "a grouped convolution's weight cannot be stacked with others")
    for group in alike({weight: uses for weight, uses in found.uses.items() if isinstance(aims[weight], Shared)}):
        if len(group) == 1:
            found.leave(group[0], f"no other weight in the scope has its shape {found.uses[group[0]][0].shape}")


# --- storing


def _obstacle_in_form(use: WeightMatrix, form: Form) -> str:
    if not isinstance(form, Factored | Chained):
        return ""
    reason = factored_form.saving_obstacle(use, factored_form.parts_of(use, form))
    return f"{reason}; kept whole" if reason else ""


def _stored_together(
    found: Found, aims: Mapping[ir.Value, Constraint]
) -> list[tuple[ir.Value, Sequence[WeightMatrix]]]:
    """A weight and what is to read its form: its own uses, or those of all layers that share it."""
    shared = {weight: uses for weight, uses in found.uses.items() if isinstance(aims[weight], Shared)}
    alone = [(weight, uses) for weight, uses in found.uses.items() if weight not in shared]
    return [
        *alone,
        *((group[0], [use for weight in group for use in shared[weight]]) for group in alike(shared)),
    ]


def _store(uses: Sequence[WeightMatrix], form: Form, aim: Constraint, grid: grid_form.Form, config: Config) -> None:
    """Put a form in the place of a weight."""
    match form:
        case Dense():
            pattern = aim.pattern if isinstance(aim, Sparse) else None
            store_dense(uses, form.w_GOK, "" if pattern is None else f"{pattern[0]}:{pattern[1]}")
        case Indexed():
            codebook_form.store_indexed(uses, form)
        case Factored() | Chained():
            factored_form.store_factored(uses, form, config.form)
        case _:
            grid_form.store_grid(uses, grid, form)


# --- what is said


def _prediction(weight: ir.Value, use: WeightMatrix, answer: Answer, aim: Constraint, solver: Solver) -> Prediction:
    solved, source = answer
    return Prediction(
        layer=use.node.name or "",
        weight=weight.name or "",
        constraint=as_text(aim),
        loss=solved.loss,
        nearest_loss=solved.nearest_loss,
        zero_loss=solved.zero_loss,
        stored_bytes=-(-stored_bits(solved.form) // 8),
        source=source,
        reason=solved.reason if solver == "second_order" else "",
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
    if config.first_solver == "second_order":
        notes = [_note(reason, predicted) for reason in dict.fromkeys(each.reason for each in predicted) if reason]
        sources = sorted({each.source for each in predicted} - {"", "samples"})
        notes += [f"constrain_weights: second moments from {source}, not from samples" for source in sources]
        if samples is not None and samples < FEW_SAMPLES:
            notes.append(f"constrain_weights: second moments of only {samples} samples; give more, or take nearest")
    if any(isinstance(constraint_from_text(each.constraint), Sparse) for each in predicted):
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
