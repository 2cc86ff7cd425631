"""What a run leaves: the result, its proof, and why it is as it is, all at once in one folder."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from msgspec.structs import replace

import gossamer
from gossamer.archive.files import pack_file
from gossamer.delivery import ORIGINAL, deliver, publish, seen_from
from gossamer.diagnosis import diagnose
from gossamer.errors import GossamerError
from gossamer.gate import Baseline, meets
from gossamer.intake.onnx_file import read
from gossamer.measuring.energy import energy
from gossamer.measuring.machine import describe, peak_rss_bytes
from gossamer.measuring.quality import preprocessing_warning
from gossamer.nouns.diagnosis import Diagnosis
from gossamer.nouns.facts import Bytes, Energy
from gossamer.nouns.model import Model, model_sha256, size_bytes, write_file
from gossamer.nouns.plan import trains
from gossamer.nouns.prediction import Forecast
from gossamer.nouns.record import Record
from gossamer.nouns.target import Target
from gossamer.passes.contract import run_plan
from gossamer.planning.allocated import METHOD
from gossamer.planning.checking import forecast_of
from gossamer.planning.ledger import SAMPLES
from gossamer.report.findings import Case
from gossamer.report.html import write_report
from gossamer.trials import Bench, Outcome, Trial, find_blame

LOOK_SHARE = 0.2  # of the search's time, for finding out why its result is as it is
FORECAST_S = 10.0  # for holding each weight's prediction against measurement


def hand_over(
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
    forecast = diagnosis = None
    if not cut:
        try:
            forecast = _forecast(bench, outcome)
            diagnosis = _diagnosis(bench, tried, outcome, forecast, source, begin)
        except KeyboardInterrupt:  # the result is there already
            cut = "interrupt"
            bench.warnings.append("an interrupt ended the look into the result")
    staged, chosen = work / "result", outcome.trial.candidate.plan
    artifact = staged / ("model.goss" if bench.select.packed else "model.onnx")
    deliver(outcome.trial.path or bench.path, staged / "model.onnx", ours=outcome.trial.path is not None)
    # the very file that is handed over, whichever it is
    bench.select.runtime.open_session(staged / "model.onnx", bench.target.threads)
    if bench.select.packed:
        pack_file(staged / "model.onnx", artifact)
    if source.path is None:  # leave the file that the result was held against
        deliver(bench.path, staged / ORIGINAL)
    learned = any(map(trains, chosen.steps))
    calibration = replace(
        bench.calibration,
        data=seen_from(folder, bench.calibration.data),
        train_data=seen_from(folder, bench.calibration.train_data) if learned else "",
    )
    write_file(staged / "plan.yaml", replace(chosen, calibration=calibration).to_yaml().encode())
    record = _record(bench, tried, cut, outcome, diagnosis, forecast, artifact, folder, begin)
    write_file(staged / "record.json", record.to_json())
    write_report(record, staged / "report.html")
    publish(staged, folder)
    return record


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
    except Exception as error:  # what was expected of a result must never cost the result
        bench.say(f"predictions were not checked: {error}")
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
        slow = any(step.config.get("sequential") for step in chosen.steps)  # each move would be solved anew
        blames = () if slow else find_blame(bench, chosen, look_s / 2)
        return diagnose(case, bench.model, bench.evidence, bench.memo, bench.select, blames, min(5.0, look_s / 2))
    except Exception as error:  # what is known of a result must never cost the result
        bench.say(f"the look into the result ended early: {error}")
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
        artifact=str(folder / artifact.name),
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
