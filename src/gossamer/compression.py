"""The story: a model and data come in; what goes out was loaded, run, timed and scored on its runtime.

`compress` tells it in one function. Each step is public too: `load`, `plan`, `apply`; `measure` and `verify`.
"""

from __future__ import annotations

import dataclasses
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import msgspec

from gossamer.constraints.contract import constraint_from_text, rate_of
from gossamer.delivery import check_not_input, writable_folder
from gossamer.errors import MissingExtraError, OptionError
from gossamer.gate import baseline, open_original
from gossamer.handover import hand_over
from gossamer.intake.binding import bind, cast_notes
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.intake.splits import split
from gossamer.journal import Run, open_journal, workshop
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import PROOF
from gossamer.measuring.machine import available_cores, describe, sums_in_16_bits
from gossamer.measuring.quality import Metric, choose_metric
from gossamer.nouns.budget import Budget, check_budget
from gossamer.nouns.model import Model, model_sha256, save, sha256
from gossamer.nouns.plan import Calibration, Plan, Scope, Step, trains
from gossamer.nouns.record import Record, Split, Splits
from gossamer.nouns.samples import Samples
from gossamer.nouns.schooling import TRAIN_S, School
from gossamer.nouns.target import Target
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN, propose
from gossamer.planning.features import features
from gossamer.replay import read_plan, recorded_options, recorded_path, recorded_splits, splits_of
from gossamer.runtimes.contract import find
from gossamer.search import try_all
from gossamer.solving import NO_RATE
from gossamer.trials import Bench, Say, try_one, verify_best


def silent(_: str) -> None:
    """The default of every `say`: no progress is shown."""


def compress(
    model: Any,
    data: Any,
    budget: Budget = Budget(),  # noqa: B008  # frozen, so it can be shared
    out: str | Path = "out",
    data_options: DataOptions | None = None,
    metric: str | None = None,
    seed: int = 0,
    target: Target = Target(),  # noqa: B008
    say: Say = silent,
    train_data: Any = None,
    train_s: float = TRAIN_S,
) -> Record:
    """Make a model as fast or small as its budget allows, and write it with the proof into a folder.

    Args:
        model: a path to an ONNX file, an `onnx.ModelProto`, or a `Model` (see `load_torch` for torch modules).
        data: a path, `module:function`, arrays, a DataLoader or `Samples`; labels are optional.
        budget: the accuracy floor and what to minimise.
        out: gets model.onnx, plan.yaml, record.json and report.html, all at the end.
        data_options: how pictures of a folder become arrays.
        metric: "top1", "agreement", "snr" or `module:function`; by default the one that suits the data.
        seed: of the three splits.
        target: the runtime, its threads and the processor that the result is meant for.
        say: called with a line of progress now and then.
        train_data: samples to learn from, as `data`; labels are not needed. A plan of integers that would be the best
            but for its accuracy is then trained, taught by the original.
        train_s: seconds for training, of all candidates together.

    Returns:
        What `record.json` holds. An interrupt (Ctrl-C) ends the trials and returns the best so far. A run that was
        killed goes on where it was when it is started again with the same model, data and folder.

    Raises:
        InputError: the model, the data, an option or the folder cannot be used.
    """
    begin = perf_counter()
    check_budget(budget)
    source, folder = read(model), writable_folder(out)
    check_not_input(model, folder)
    with workshop(folder) as work:
        say("reading the model and the data")
        bench = _set_up(source, data, budget, data_options, metric, seed, target, work, say, begin, train_data, train_s)
        tried, cut = try_all(bench)
        say("verifying the choice")
        outcome = verify_best(bench, tried)
        return hand_over(bench, tried, cut, outcome, source, folder, work, begin)


def carry_out(
    plan: Plan,
    model: Any,
    data: Any,
    budget: Budget = Budget(),  # noqa: B008
    out: str | Path = "out",
    data_options: DataOptions | None = None,
    metric: str | None = None,
    seed: int = 0,
    target: Target = Target(),  # noqa: B008
    say: Say = silent,
    train_data: Any = None,
) -> Record:
    """Carry out one plan, whatever becomes of the floor, and measure the result as `compress` does.

    Args:
        plan: see `constraining`, or written by hand.
        budget: says whether the floor and the limits hold; nothing else is tried if not.
        train_data: as for `compress`, if a step trains.

    Returns:
        What `record.json` holds.

    Raises:
        InputError: the model, the data, an option or the folder cannot be used.
        CandidateError: the result fails.
    """
    begin = perf_counter()
    check_budget(budget)
    if any(map(trains, plan.steps)) != (train_data is not None):
        got = "without --train-data" if train_data is None else "with --train-data, and nothing would learn from it"
        raise OptionError(f"{plan.name} {got}; give --solver train and --train-data together")
    source, folder = read(model), writable_folder(out)
    check_not_input(model, folder)
    with workshop(folder) as work:
        say("reading the model and the data")
        bench = _set_up(source, data, budget, data_options, metric, seed, target, work, say, begin, train_data)
        tried = try_one(bench, plan)
        say("verifying the result")
        outcome = verify_best(bench, tried[1:])
        return hand_over(bench, tried, "", outcome, source, folder, work, begin)


def _set_up(
    source: Model,
    data: Any,
    budget: Budget,
    options: DataOptions | None,
    metric: str | None,
    seed: int,
    target: Target,
    work: Path,
    say: Say,
    begin: float,
    train_data: Any = None,
    train_s: float = TRAIN_S,
) -> Bench:
    """The original opened and scored, the samples bound to it and split, the model made ready for passes."""
    path = source.path or work / "original.onnx"
    if source.path is None:
        save(source, path)
    opened = open_original(path, target)
    unbound = read_samples(data, options)
    samples = bind(unbound, opened.reference.inputs)
    rule = choose_metric(opened.reference, samples, metric)
    calibrate, select, verify, optimistic = split(samples, seed)
    prepared = normalise(source)
    school = None if train_data is None else _school(prepared, train_data, options, seed, work, say, (select, verify))
    scoring = perf_counter()
    original = baseline(opened, path, select, rule, budget.minimize == "download")
    limit_s = inf if budget.time_limit_s is None else budget.time_limit_s
    a_sample_s = (perf_counter() - scoring) / len(select)
    reserve_s = min(PROOF.budget_s, limit_s / 5) + 2 * a_sample_s * len(verify)  # what verifying will take
    parts = tuple(Split(len(part), part.digest()) for part in (calibrate, select, verify))
    versions = describe(target.runtime).versions
    run = Run(
        model_sha256(path),
        parts[0].digest,
        parts[1].digest,
        _identity(rule),
        target,
        versions,
        school.digest() if school else "",
    )
    return Bench(
        model=prepared,
        path=path,
        journal=open_journal(work, run),
        metric=rule,
        budget=budget,
        select=original,
        verify=verify,
        evidence=Evidence(calibrate, available_cores(), school),
        target=target,
        splits=Splits(parts[0], parts[1], parts[2], seed, optimistic),
        calibration=Calibration(
            _name_of(data),
            msgspec.to_builtins(options or {}),
            seed,
            available_cores(),
            parts[0].digest,
            _name_of(train_data),
        ),
        notes=(*prepared.notes, *cast_notes(unbound, opened.reference.inputs)),
        say=say,
        deadline=begin + limit_s - reserve_s,
        train_s=train_s,
    )


def _school(
    original: Model,
    train_data: Any,
    options: DataOptions | None,
    seed: int,
    folder: Path | None = None,
    say: Say = silent,
    measured: tuple[Samples, ...] = (),
) -> School:
    """Where candidates are trained, taught by the original.

    Raises:
        MissingExtraError: the extra `train` is not installed.
        DataError: see `open_school`.
    """
    try:
        from gossamer.training.school import open_school
    except ModuleNotFoundError as error:
        raise MissingExtraError("training needs torch: pip install 'gossamer[train]'") from error
    return open_school(original, train_data, options, seed, folder, say, measured)


def _name_of(data: Any) -> str:
    """What a plan calls samples, so that it can be carried out again."""
    return str(data) if isinstance(data, (str, Path)) else ""


def _identity(rule: Metric) -> str:
    """The metric's name and, of a person's own, the digest of its file: edited, it is another metric."""
    code = getattr(rule.function, "__code__", None)
    return rule.name if code is None else f"{rule.name} {sha256(Path(code.co_filename))}"


def plan(model: Any, budget: Budget = Budget(), target: Target = Target()) -> tuple[Plan, ...]:  # noqa: B008
    """The plans that `compress` would try first for a model."""
    check_budget(budget)
    found = features(run_plan(CLEAN, normalise(read(model))).model)
    return propose(found, find(target.runtime), budget.minimize, 7 if sums_in_16_bits(target) else 8)


def constraining(
    constraint: str,
    solver: Literal["second_order", "nearest", "train"] = "second_order",
    layers: tuple[str, ...] = (),
    sequential: bool = True,
    samples: bool = True,
) -> Plan:
    """The plan that moves weights into one constraint and, with samples, corrects biases behind it.

    Args:
        constraint: as text, `grid:4`; see `constraints.contract`.
        solver: train is second_order and then training, which moves biases too.
        layers: names of nodes or shell patterns; empty means all.
        sequential: each layer is solved behind those that are done, and makes up for their errors.

    Raises:
        OptionError: there is no such constraint, one with a rate is given to `nearest`, or train has no samples.
    """
    if rate_of(constraint_from_text(constraint)) and solver == "nearest":
        raise OptionError(f"{constraint}: {NO_RATE}")
    if solver == "train" and not samples:
        raise OptionError("solver train needs samples that measure (--data) beside those to learn from (--train-data)")
    behind = sequential and samples and solver != "nearest"
    config = {"constraint": constraint, "solver": solver, **({"sequential": True} if behind else {})}
    mend = (Step("correct_bias", {"statistics": "sequential"}),) if samples and solver != "train" else ()
    return Plan(constraint, (*CLEAN.steps, Step("constrain_weights", config, Scope(only=layers)), *mend))


def apply(
    plan: Plan | str | Path,
    model: Any,
    data: Any = None,
    data_options: DataOptions | None = None,
    train_data: Any = None,
) -> Model:
    """Carry out a plan, or replay a plan.yaml. The same plan, model and samples give the same bytes.

    Args:
        plan: a Plan, or the path of a plan.yaml.
        data: the samples to calibrate with; by default those that the plan names. Samples given here are split as
            `compress` splits them, with the plan's seed.
        train_data: the samples to learn from, if a step trains; by default those that the plan names.

    Raises:
        InputError: the plan, model or data cannot be used, or the plan's own samples have changed since.
    """
    base = Path() if isinstance(plan, Plan) else Path(plan).parent
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    source = read(model)
    if not plan.steps:  # the answer was: leave it as it is
        return source
    prepared, splits = normalise(source), None
    if data is not None:
        splits = splits_of(data, data_options, plan, source)
    elif plan.calibration.data:
        splits = recorded_splits(plan, source, base)
    evidence = None if splits is None else Evidence(splits.calibrate, plan.calibration.threads)
    if evidence is not None and splits is not None and any(map(trains, plan.steps)):
        named = train_data if train_data is not None else recorded_path(plan.calibration.train_data, base)
        options, measured = data_options or recorded_options(plan), (splits.select, splits.verify)
        seed = plan.calibration.seed
        evidence.school = _school(prepared, named, options, seed, measured=measured) if named else None
    applied = run_plan(plan, prepared, evidence)
    return dataclasses.replace(applied.model, notes=(*applied.model.notes, *applied.notes))
