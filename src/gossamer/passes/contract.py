"""The contract every pass keeps, and the one function that runs a plan's sentence.

A pass is a module of this folder with
    Config                the options, a frozen msgspec Struct that refuses unknown fields
    PRESERVES_FUNCTION    True if outputs stay equal to 1e-5 relative
    NEEDS_SAMPLES         True if it asks `evidence` for statistics
    STORES                names of the tensor types that its result must hold on disk, once it has changed a model
    requires(model, config, scope)                 raises OptionError naming the node that forbids it
    apply(model, config, scope, evidence)          clones, edits the clone, returns Result
    ensures(before, result, config)                raises CandidateError if the promise was not kept
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_type_hints

import msgspec
import onnx_ir as ir

from gossamer.errors import OptionError
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, Scope, Step
from gossamer.nouns.prediction import Prediction
from gossamer.nouns.schooling import Schooling

if TYPE_CHECKING:
    from gossamer.measuring.evidence import Evidence


class Result(NamedTuple):
    """What a pass returns.

    Attributes:
        model: a new model, or the one given if nothing changed.
        modified: whether the graph differs from the one given.
        notes: findings for the record, in plain words.
        stores: tensor types that the file must hold beyond the pass's `STORES`, where they depend on options.
        predicted: what each weight's new form is expected to cost, where the pass solved for that.
    """

    model: Model
    modified: bool
    notes: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    predicted: tuple[Prediction, ...] = ()


class Pass(Protocol):
    """The shape of a pass module."""

    Config: type[msgspec.Struct]
    PRESERVES_FUNCTION: bool
    NEEDS_SAMPLES: bool
    STORES: tuple[str, ...]

    def requires(self, model: Model, config: Any, scope: Scope) -> None: ...
    def apply(self, model: Model, config: Any, scope: Scope, evidence: Evidence | None) -> Result: ...
    def ensures(self, before: Model, result: Result, config: Any) -> None: ...


def names() -> tuple[str, ...]:
    """All passes, by module name."""
    import gossamer.passes as folder

    return tuple(module.name for module in pkgutil.iter_modules(folder.__path__) if module.name != "contract")


def find(method: str) -> Pass:
    """The pass of this name; only its module is imported.

    Raises:
        OptionError: there is no such pass; the text lists all and the nearest.
    """
    if method not in names():
        near = get_close_matches(method, names(), 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise OptionError(f"method {method!r} is unknown{hint} allowed are {', '.join(names())}")
    return importlib.import_module(f"gossamer.passes.{method}")


def configure(step: Step) -> Any:
    """The step's config as the pass's own type.

    Raises:
        OptionError: an unknown option or a wrong value, with its name.
    """
    try:
        return msgspec.convert(step.config, find(step.method).Config)
    except msgspec.ValidationError as error:
        nested = re.search(r"`\$\.(\w+)", str(error))
        kind = get_type_hints(find(step.method).Config).get(nested[1] if nested else "")
        named = getattr(kind, "__struct_fields__", None)
        owner = f"those of {nested[1]}" if named and nested else "its options"
        fields = ", ".join(named or find(step.method).Config.__struct_fields__)
        raise OptionError(f"{step.method}: {error}; {owner} are {fields or 'none'}") from error


def run(step: Step, model: Model, evidence: Evidence | None = None) -> Result:
    """Apply one sentence of a plan.

    Raises:
        OptionError: the method, its config or its scope is wrong, or it cannot apply to this model.
        CandidateError: the pass broke its promise on this model.
    """
    chosen = find(step.method)
    config = configure(step)
    if chosen.NEEDS_SAMPLES and evidence is None:
        raise OptionError(f"{step.method} needs calibration samples; give --data")
    check_names((*step.scope.only, *step.scope.skip), model, f"{step.method}: scope")
    chosen.requires(model, config, step.scope)
    result = chosen.apply(model, config, step.scope, evidence)
    chosen.ensures(model, result, config)
    return result


def trained(
    who: str, model: Model, schooling: Schooling, nodes: frozenset[str] | None, evidence: Evidence | None
) -> tuple[Model, str]:
    """What the evidence's school makes of a model, see `nouns.schooling.School.train`.

    Args:
        who: the step that asks, for the message.

    Raises:
        OptionError: there is nothing to learn from.
        ModelError, CandidateError: see `School.train`.
    """
    if evidence is None or evidence.school is None:
        raise OptionError(f"{who} needs samples to learn from; give --train-data")
    return evidence.school.train(model, schooling, nodes)


class Applied(NamedTuple):
    """A plan carried out.

    Attributes:
        model: the result.
        notes: what the passes found.
        stores: types that the exported file must hold.
        made_by: the steps that changed the graph, as `Step.key` writes them.
        predicted: what the weights' new forms are expected to cost, step by step.
    """

    model: Model
    notes: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()
    predicted: tuple[Prediction, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether any step changed the graph."""
        return bool(self.made_by)


Memo = dict[tuple[str, ...], Applied]


def run_plan(plan: Plan, model: Model, evidence: Evidence | None = None, memo: Memo | None = None) -> Applied:
    """Apply a plan's sentences in order.

    Args:
        memo: results by the steps that led to them, those left out that changed nothing. Plans that begin alike share
            the work, and what `evidence` keeps of the shared models. Only for one model and one evidence.

    Raises:
        OptionError, CandidateError: see `run`.
    """
    memo = {} if memo is None else memo
    applied = Applied(model)
    for step in plan.steps:
        done = (*applied.made_by, step.key())
        if done not in memo:
            result = run(step, applied.model, evidence)
            stores = (*find(step.method).STORES, *result.stores) if result.modified else ()
            memo[done] = Applied(
                result.model,
                (*applied.notes, *result.notes),
                (*applied.stores, *stores),
                done if result.modified else applied.made_by,
                (*applied.predicted, *result.predicted),
            )
        applied = memo[done]
    return applied


def check_names(patterns: Iterable[str], model: Model, where: str) -> None:
    """Every name or pattern must meet a node; a typo must not silently change nothing.

    Raises:
        OptionError: says where the name stands, and the nearest.
    """
    nodes = [node.name or "" for node in model.ir.graph]
    known = set(nodes)
    for pattern in patterns:
        if pattern not in known and not any(fnmatchcase(name, pattern) for name in nodes):
            near = get_close_matches(pattern, nodes, 1)
            hint = f"; did you mean {near[0]}?" if near else "; `gossamer inspect` lists the names"
            raise OptionError(f"{where} {pattern!r} matches no node of {model.name}{hint}")


def in_scope(scope: Scope, node: ir.Node) -> bool:
    """Whether a node is meant by the scope."""
    name = node.name or ""
    if scope.only and not any(fnmatchcase(name, pattern) for pattern in scope.only):
        return False
    return not any(fnmatchcase(name, pattern) for pattern in scope.skip)


def nodes_in_scope(model: Model, scope: Scope, *op_types: str) -> Iterator[ir.Node]:
    """The main graph's nodes of these standard operators, in order. Subgraphs are left intact."""
    for node in list(model.ir.graph):
        if node.domain == "" and node.op_type in op_types and in_scope(scope, node):
            yield node
