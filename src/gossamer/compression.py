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
from msgspec.structs import replace

import gossamer
from gossamer.constraints.contract import constraint_from_text
from gossamer.delivery import check_not_input, deliver, publish, seen_from, writable_folder
from gossamer.diagnosis import diagnose
from gossamer.errors import GossamerError
from gossamer.gate import Baseline, baseline, meets, open_original
from gossamer.intake.binding import bind, cast_notes
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.intake.splits import split
from gossamer.journal import Run, open_journal, workshop
from gossamer.measuring.energy import energy
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import PROOF
from gossamer.measuring.machine import available_cores, describe, peak_rss_bytes, sums_in_16_bits
from gossamer.measuring.quality import Metric, choose_metric, preprocessing_warning
from gossamer.nouns.budget import Budget, check_budget
from gossamer.nouns.diagnosis import Diagnosis
from gossamer.nouns.facts import Bytes, Energy
from gossamer.nouns.model import Model, model_sha256, save, sha256, size_bytes, write_file
from gossamer.nouns.plan import Calibration, Plan, Scope, Step
from gossamer.nouns.prediction import Forecast
from gossamer.nouns.record import Record, Split, Splits
from gossamer.nouns.target import Target
from gossamer.passes.contract import run_plan
from gossamer.planning.allocated import METHOD
from gossamer.planning.candidates import CLEAN, propose
from gossamer.planning.checking import forecast_of
from gossamer.planning.features import features
from gossamer.planning.ledger import SAMPLES
from gossamer.replay import evidence_from, read_plan, recorded_evidence
from gossamer.report.findings import Case
from gossamer.report.html import write_report
from gossamer.runtimes.contract import find
from gossamer.trials import Bench, Outcome, Say, Trial, find_blame, try_all, try_one, verify_best

LOOK_SHARE = 0.3  # of the search's time, for finding out why its result is as it is
FORECAST_S = 10.0  # for holding each weight's prediction against measurement


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

    Returns:
        What `record.json` holds. An interrupt (Ctrl-C) ends the trials and returns the best so far. A run that was
        killed goes on where it was when it is started again with the same model, data and folder.

    Raises:
        InputError: the model, the data, an option or the folder cannot be used.
    """
    begin = perf_counter()
    check_budget(budget)
    source, folder = read(model), writable_folder(out)
    check_not_input(source.path, folder)
    with workshop(folder) as work:
        say("reading the model and the data")
        bench = _set_up(source, data, budget, data_options, metric, seed, target, work, say, begin)
        tried, cut = try_all(bench)
        say("verifying the choice")
        outcome = verify_best(bench, tried)
        return _hand_over(bench, tried, cut, outcome, source, folder, work, begin)


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
) -> Record:
    """Carry out one plan, whatever becomes of the floor, and measure the result as `compress` does.

    Args:
        plan: see `constraining`, or written by hand.
        budget: says whether the floor and the limits hold; nothing else is tried if not.

    Returns:
        What `record.json` holds.

    Raises:
        InputError: the model, the data, an option or the folder cannot be used.
        CandidateError: the result fails.
    """
    begin = perf_counter()
    check_budget(budget)
    source, folder = read(model), writable_folder(out)
    check_not_input(source.path, folder)
    with workshop(folder) as work:
        say("reading the model and the data")
        bench = _set_up(source, data, budget, data_options, metric, seed, target, work, say, begin)
        tried = try_one(bench, plan)
        say("verifying the result")
        outcome = verify_best(bench, tried[1:])
        return _hand_over(bench, tried, "", outcome, source, folder, work, begin)


def _hand_over(
    bench: Bench,
    tried: list[Trial],
    cut: str,
    outcome: Outcome,
    source: Model,
    folder: Path,
    work: Path,
    begin: float,
) -> Record:
    """The result and its proof in the folder, all at once."""
    forecast = None if cut else _forecast(bench, outcome)
    diagnosis = None if cut else _diagnosis(bench, tried, outcome, forecast, source, begin)
    staged, chosen = work / "result", outcome.trial.candidate.plan
    deliver(outcome.trial.path or bench.path, staged / "model.onnx", ours=outcome.trial.path is not None)
    # the very file that is handed over, whichever it is
    bench.select.runtime.open_session(staged / "model.onnx", bench.target.threads)
    if source.path is None:  # leave the file that the result was held against
        deliver(bench.path, staged / "original.onnx")
    calibration = replace(bench.calibration, data=seen_from(folder, bench.calibration.data))
    write_file(staged / "plan.yaml", replace(chosen, calibration=calibration).to_yaml().encode())
    record = _record(bench, tried, cut, outcome, diagnosis, forecast, staged / "model.onnx", folder, begin)
    write_file(staged / "record.json", record.to_json())
    write_report(record, staged / "report.html")
    publish(staged, folder)
    return record


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
    scoring = perf_counter()
    original = baseline(opened, path, select, rule)
    limit_s = inf if budget.time_limit_s is None else budget.time_limit_s
    reserve_s = min(PROOF.budget_s, limit_s / 5) + 2 * (perf_counter() - scoring) * len(verify) / len(
        select
    )  # what verifying will take
    parts = tuple(Split(len(part), part.digest()) for part in (calibrate, select, verify))
    versions = describe(target.runtime).versions
    run = Run(model_sha256(path), parts[0].digest, parts[1].digest, _identity(rule), target, versions)
    named = str(data) if isinstance(data, (str, Path)) else ""
    return Bench(
        model=prepared,
        path=path,
        journal=open_journal(work, run),
        metric=rule,
        budget=budget,
        select=original,
        verify=verify,
        evidence=Evidence(calibrate, available_cores()),
        target=target,
        splits=Splits(parts[0], parts[1], parts[2], seed, optimistic),
        calibration=Calibration(named, msgspec.to_builtins(options or {}), seed, available_cores(), parts[0].digest),
        notes=(*prepared.notes, *cast_notes(unbound, opened.reference.inputs)),
        say=say,
        deadline=begin + limit_s - reserve_s,
    )


def _identity(rule: Metric) -> str:
    """The metric's name and, of a person's own, the digest of its file: edited, it is another metric."""
    code = getattr(rule.function, "__code__", None)
    return rule.name if code is None else f"{rule.name} {sha256(Path(code.co_filename))}"


def _forecast(bench: Bench, outcome: Outcome) -> Forecast | None:
    """What was expected of the weights, beside what came of them; None where none was constrained, or time is up."""
    chosen = outcome.trial.candidate.plan
    first = next((at for at, step in enumerate(chosen.steps) if step.method == METHOD), None)
    left_s = bench.deadline - perf_counter()
    if first is None or left_s < 0:
        return None
    bench.say("holding predictions against measurement")
    try:
        before = run_plan(replace(chosen, steps=chosen.steps[:first]), bench.model, bench.evidence, bench.memo).model
        predicted = run_plan(chosen, bench.model, bench.evidence, bench.memo).predicted
        few, snr_db = bench.select.samples.first(SAMPLES), outcome.facts.accuracy.snr_db
        budget_s = min(FORECAST_S, left_s)
        return forecast_of(predicted, bench.gains, before, bench.evidence, few, snr_db, budget_s)
    except (Exception, KeyboardInterrupt) as error:  # what was expected of a result must never cost the result
        bench.say(f"predictions were not checked: {error or 'interrupted'}")
        return None


def _diagnosis(
    bench: Bench, tried: list[Trial], outcome: Outcome, forecast: Forecast | None, source: Model, begin: float
) -> Diagnosis | None:
    """Why the result is as it is; None where time is up."""
    if perf_counter() > bench.deadline:
        return None
    bench.say("looking into the result")
    chosen, facts = outcome.trial.candidate.plan, outcome.facts
    case = Case(
        plan=chosen,
        facts=facts,
        met=meets(facts, bench.budget),
        budget=bench.budget,
        splits=bench.splits,
        candidates=tuple(trial.candidate for trial in tried),
        operators=len(bench.model.ir.graph),
        model=str(source.path or "original.onnx"),
        data=bench.calibration.data or "DATA",
        advice=preprocessing_warning(bench.select.scores) or "",
        options=_words(bench),
        forecast=forecast,
    )
    try:
        look_s = LOOK_SHARE * (perf_counter() - begin)
        blames = find_blame(bench, chosen, look_s / 2)
        return diagnose(case, bench.model, bench.evidence, bench.memo, bench.select, blames, min(5.0, look_s / 2))
    except (Exception, KeyboardInterrupt) as error:  # what is known of a result must never cost the result
        bench.say(f"the look into the result ended early: {error or 'interrupted'}")
        return None


def _words(bench: Bench) -> str:
    """The options of the command that findings repeat, as far as they are not the usual ones."""
    target, usual = bench.target, Target()
    given = {
        "metric": bench.metric.name if bench.metric.name not in ("top1", "agreement") else "",
        "runtime": target.runtime if target.runtime != usual.runtime else "",
        "threads": str(target.threads) if target.threads != usual.threads else "",
        "instructions": target.instructions if target.instructions != usual.instructions else "",
        "seed": str(bench.splits.seed) if bench.splits.seed else "",
    }
    return "".join(f" --{name} {value}" for name, value in given.items() if value)


def _record(
    bench: Bench,
    tried: list[Trial],
    cut: str,
    outcome: Outcome,
    diagnosis: Diagnosis | None,
    forecast: Forecast | None,
    artifact: Path,
    folder: Path,
    begin: float,
) -> Record:
    """Everything that was measured. `artifact` is the file as it will be handed over, still in the workshop."""
    facts, chosen = outcome.facts, outcome.trial.candidate
    advice = preprocessing_warning(bench.select.scores)
    out_of_time = f"the time limit ended the search after {len(tried)} candidates" if cut == "time limit" else ""
    flattered = () if outcome.unbiased else ("accuracy",)
    return Record(
        met=meets(facts, bench.budget),
        artifact=str(folder / "model.onnx"),
        accuracy=facts.accuracy,
        bytes=Bytes(facts.bytes.original, size_bytes(artifact)),
        latency_ms=facts.latency_ms,
        seconds=perf_counter() - begin,
        peak_rss_bytes=peak_rss_bytes(),
        max_drop=bench.budget.max_drop,
        minimize=bench.budget.minimize,
        confident=bench.budget.confident,
        chosen=chosen.plan.name,
        model=bench.model.name,
        data=bench.verify.source,
        original_sha256=model_sha256(bench.path),
        artifact_sha256=model_sha256(artifact),
        labelled=bench.verify.labels is not None,
        splits=replace(bench.splits, optimistic=tuple(dict.fromkeys((*flattered, *bench.splits.optimistic)))),
        candidates=tuple(trial.candidate for trial in tried),
        machine=describe(bench.target.runtime),
        diagnosis=diagnosis,
        forecast=forecast,
        energy=_energy(bench.model, artifact, bench.select),
        warnings=tuple(filter(None, [advice, out_of_time, *bench.warnings, *outcome.warnings])),
        notes=(*bench.notes, *chosen.notes),
        interrupted=cut == "interrupt" or not outcome.verified,
        gossamer=gossamer.__version__,
        max_bytes=bench.budget.size_limit(facts.bytes.original),
        max_latency_ratio=bench.budget.max_latency_ratio,
    )


def _energy(original: Model, result: Path, timed: Baseline) -> Energy | None:
    """Energy of one call, or None where it can neither be measured nor estimated."""
    try:
        return energy(original, read(result), timed.feeds, timed.runtime, timed.session.threads)
    except GossamerError:
        return None


def plan(model: Any, budget: Budget = Budget(), target: Target = Target()) -> tuple[Plan, ...]:  # noqa: B008
    """The plans that `compress` would try first for a model."""
    check_budget(budget)
    found = features(run_plan(CLEAN, normalise(read(model))).model)
    return propose(found, find(target.runtime), budget.minimize, 7 if sums_in_16_bits(target) else 8)


def constraining(
    constraint: str,
    solver: Literal["second_order", "nearest"] = "second_order",
    layers: tuple[str, ...] = (),
    sequential: bool = True,
    samples: bool = True,
) -> Plan:
    """The plan that moves weights into one constraint and, with samples, corrects biases behind it.

    Args:
        constraint: as text, `grid:4`; see `constraints.contract`.
        layers: names of nodes or shell patterns; empty means all.
        sequential: each layer is solved behind those that are done, and makes up for their errors.

    Raises:
        OptionError: there is no such constraint.
    """
    constraint_from_text(constraint)
    behind = sequential and samples and solver == "second_order"
    config = {"constraint": constraint, "solver": solver, **({"sequential": True} if behind else {})}
    mend = (Step("correct_bias", {"statistics": "sequential"}),) if samples else ()
    return Plan(constraint, (*CLEAN.steps, Step("constrain_weights", config, Scope(only=layers)), *mend))


def apply(plan: Plan | str | Path, model: Any, data: Any = None, data_options: DataOptions | None = None) -> Model:
    """Carry out a plan, or replay a plan.yaml. The same plan, model and samples give the same bytes.

    Args:
        plan: a Plan, or the path of a plan.yaml.
        data: the samples to calibrate with; by default those that the plan names. Samples given here are split as
            `compress` splits them, with the plan's seed.

    Raises:
        InputError: the plan, model or data cannot be used, or the plan's own samples have changed since.
    """
    base = Path() if isinstance(plan, Plan) else Path(plan).parent
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    source = read(model)
    if not plan.steps:  # the answer was: leave it as it is
        return source
    evidence = None
    if data is not None:
        evidence = evidence_from(data, data_options, plan, source)
    elif plan.calibration.data:
        evidence = recorded_evidence(plan, source, base)
    applied = run_plan(plan, normalise(source), evidence)
    return dataclasses.replace(applied.model, notes=(*applied.model.notes, *applied.notes))
