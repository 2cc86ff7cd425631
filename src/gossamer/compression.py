"""The story: a model and data come in; what goes out was loaded, run, timed and scored on its runtime.

`compress` tells it in one function. Each step is public too: `load`, `plan`, `apply`, `measure`, `verify`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np


import gossamer
from gossamer.errors import CandidateError, GossamerError, OptionError, OutputError
from gossamer.gate import Baseline, baseline, judge, meets, open_original, unchanged
from gossamer.intake.binding import bind, cast_notes
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.intake.splits import split
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.layer_error import LayerError, layer_errors
from gossamer.measuring.machine import describe, peak_rss_bytes
from gossamer.measuring.quality import Metric, choose_metric, preprocessing_warning
from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Accuracy, Bytes, Facts, Latency
from gossamer.nouns.model import Model, save, size_bytes, write_file
from gossamer.nouns.plan import Calibration, Plan, plan_from_yaml
from gossamer.nouns.record import Candidate, Record, Split, Splits
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import Applied, Memo, run_plan
from gossamer.planning.candidates import ORIGINAL, propose, refine
from gossamer.planning.choice import rank
from gossamer.report.html import write_report
from gossamer.runtimes import onnxruntime as runtime

Say = Callable[[str], None]
TRIAL_S = 1.5  # seconds of timing for a candidate
PROOF_S = 4.0  # and for the one that is returned
LAYER_SAMPLES = 32  # that the noise of single layers is taken over


def silent(_: str) -> None:
    """The default of every `say`: no progress is shown."""


def compress(
    model: Any,
    data: Any,
    budget: Budget | None = None,
    out: str | Path = "out",
    data_options: DataOptions | None = None,
    metric: str | None = None,
    seed: int = 0,
    threads: int = 1,
    say: Say = silent,
) -> Record:
    """Make a model as fast or small as its budget allows, and write it with the proof into a folder.

    Args:
        model: a path to an ONNX file, an `onnx.ModelProto`, or a `Model` (see `load_torch` for torch modules).
        data: a path, `module:function`, arrays, a DataLoader or `Samples`; labels are optional.
        budget: the accuracy floor and what to minimise.
        out: gets model.onnx, plan.yaml, record.json and report.html, all at the end.
        metric: "top1", "agreement", "snr" or `module:function`; by default the one that suits the data.
        seed: of the three splits.
        threads: that the runtime uses, while measuring and while timing.
        say: called with a line of progress now and then.

    Returns:
        What `record.json` holds. An interrupt (Ctrl-C) ends the trials and returns the best so far.

    Raises:
        InputError: the model, the data, an option or the folder cannot be used.
    """
    begin = perf_counter()
    budget = budget or Budget()
    folder = _folder(out)
    with _workshop(folder) as work:
        say("reading the model and the data")
        bench = _set_up(model, data, data_options, metric, seed, threads, work)
        tried = _try_all(bench, budget, work, say)
        candidates = [trial.candidate for trial in tried]
        say("verifying the choice on samples that took no part in it")
        chosen, facts, warnings = _verify_best(bench, budget, tried, say)
        _finish(chosen, bench, folder)
        met = meets(facts.accuracy, budget)
        record = Record(
            met=met,
            artifact=str(folder / "model.onnx"),
            accuracy=facts.accuracy,
            bytes=facts.bytes,
            latency_ms=facts.latency_ms,
            seconds=perf_counter() - begin,
            peak_rss_bytes=peak_rss_bytes(),
            max_drop=budget.max_drop,
            minimize=budget.minimize,
            confident=budget.confident,
            chosen=chosen.candidate.plan.name,
            model=bench.model.name,
            original_sha256=_sha256(bench.path),
            artifact_sha256=_sha256(folder / "model.onnx"),
            labelled=bench.calibrate.labels is not None,
            splits=bench.splits,
            candidates=tuple(candidates),
            machine=describe(),
            warnings=(*bench.warnings, *warnings),
            interrupted=any(trial.interrupted for trial in tried),
            gossamer=gossamer.__version__,
        )
    write_file(folder / "record.json", record.to_json())
    write_report(record, folder / "report.html")
    return record


def plan(model: Any, budget: Budget | None = None) -> tuple[Plan, ...]:
    """The plans that `compress` would try first for a model."""
    return propose(normalise(read(model)), runtime, (budget or Budget()).minimize)


def apply(
    plan: Plan | str | Path,
    model: Any,
    data: Any = None,
    data_options: DataOptions | None = None,
) -> Model:
    """Carry out a plan, or replay a plan.yaml. The same plan, model and samples give the same bytes.

    Args:
        plan: a Plan, or the path of a plan.yaml.
        data: the samples to calibrate with; by default those that the plan names. Samples given here are split as
            `compress` splits them, with the plan's seed.

    Raises:
        InputError: the plan, model or data cannot be used, or the plan's own samples have changed since.
    """
    base = Path()
    if not isinstance(plan, Plan):
        base = Path(plan).parent
        plan = read_plan(Path(plan))
    source = read(model)
    evidence = None
    if data is not None or plan.calibration.data:
        evidence = _replay_evidence(plan, source, data, data_options, base)
    return run_plan(plan, normalise(source), evidence).model


def measure(
    original: str | Path,
    result: str | Path,
    data: Any,
    data_options: DataOptions | None = None,
    metric: str | None = None,
    threads: int = 1,
) -> Facts:
    """Compare two ONNX files on all samples: accuracy or agreement, bytes, interleaved latency.

    Raises:
        InputError: a model or the data cannot be used.
    """
    session = open_original(Path(original), threads)
    samples = bind(read_samples(data, data_options), session.inputs)
    rule = choose_metric(session, samples, metric)
    return judge(Path(result), baseline(session, Path(original), samples, rule), rule, budget_s=PROOF_S)


class Comparison(msgspec.Struct, frozen=True):
    """Two files held against each other; `layers` lists the noise of each tensor that both have, worst first."""

    met: bool
    artifact: str
    accuracy: Accuracy
    bytes: Bytes
    latency_ms: Latency
    seconds: float
    peak_rss_bytes: int
    max_drop: float
    layers: tuple[LayerError, ...]


def compare(
    original: str | Path,
    result: str | Path,
    data: Any,
    max_drop: float = 0.01,
    data_options: DataOptions | None = None,
    metric: str | None = None,
    threads: int = 1,
) -> Comparison:
    """`measure`, and the error of every layer.

    Raises:
        InputError: a model or the data cannot be used.
        CandidateError: `result` does not open or run.
    """
    begin = perf_counter()
    facts = measure(original, result, data, data_options, metric, threads)
    models = normalise(read(original)), read(result)
    samples = bind(read_samples(data, data_options), runtime.open_session(Path(original)).inputs)
    few = samples.take(np.arange(min(len(samples), LAYER_SAMPLES)))
    return Comparison(
        met=meets(facts.accuracy, Budget(max_drop)),
        artifact=str(result),
        accuracy=facts.accuracy,
        bytes=facts.bytes,
        latency_ms=facts.latency_ms,
        seconds=perf_counter() - begin,
        peak_rss_bytes=peak_rss_bytes(),
        max_drop=max_drop,
        layers=tuple(layer_errors(*models, few)),
    )


def verify(
    original: str | Path,
    result: str | Path,
    data: Any,
    budget: Budget | None = None,
    data_options: DataOptions | None = None,
    metric: str | None = None,
    threads: int = 1,
) -> bool:
    """Whether a file meets a budget's floor on all samples, by the gate's own measurement.

    Raises:
        InputError: a model or the data cannot be used.
        CandidateError: the file does not pass the gate.
    """
    return meets(measure(original, result, data, data_options, metric, threads).accuracy, budget or Budget())


def read_plan(path: Path) -> Plan:
    """A plan.yaml from disk.

    Raises:
        OptionError: it is absent or no plan.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise OptionError(f"cannot read plan {path}: {error.strerror or error}") from error
    return plan_from_yaml(text, str(path))


@dataclass(frozen=True)
class Bench:
    """What every trial shares.

    Attributes:
        model: normalised, in memory.
        path: the original's file; never changed.
        calibrate, verify: two of the three splits; the third is in `select`.
        select: the original, opened and scored on the split that chooses.
        evidence: statistics of the calibration split.
        memo: models by the steps that made them.
    """

    model: Model
    path: Path
    metric: Metric
    calibrate: Samples
    verify: Samples
    select: Baseline
    splits: Splits
    calibration: Calibration
    warnings: tuple[str, ...]
    evidence: Evidence
    memo: Memo = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A candidate's record entry and, if it passed the gate, its file and the types it stores."""

    candidate: Candidate
    path: Path | None = None
    stores: tuple[str, ...] = ()
    interrupted: bool = False


def _set_up(
    model: Any, data: Any, options: DataOptions | None, metric: str | None, seed: int, threads: int, work: Path
) -> Bench:
    source = read(model)
    path = source.path or work / "original.onnx"
    if source.path is None:
        save(source, path)
    session = open_original(path, threads)
    unbound = read_samples(data, options)
    samples = bind(unbound, session.inputs)
    rule = choose_metric(session, samples, metric)
    calibrate, select, verify, optimistic = split(samples, seed)
    chosen = baseline(session, path, select, rule)
    prepared = normalise(source)
    advice = preprocessing_warning(chosen.scores)
    splits = Splits(*(Split(len(part), part.digest()) for part in (calibrate, select, verify)), seed, optimistic)
    return Bench(
        model=prepared,
        path=path,
        metric=rule,
        calibrate=calibrate,
        verify=verify,
        select=chosen,
        splits=splits,
        calibration=_calibration(data, options, seed, threads, splits.calibrate.digest),
        warnings=(*prepared.notes, *cast_notes(unbound, session.inputs), *([advice] if advice else [])),
        evidence=Evidence(calibrate, threads),
    )


def _try_all(bench: Bench, budget: Budget, work: Path, say: Say) -> list[Trial]:
    """Every candidate of both rounds; an interrupt keeps those that are finished."""
    tried: list[Trial] = []
    try:
        for candidate in propose(bench.model, runtime, budget.minimize):
            tried.append(_try(candidate, bench, budget, work, len(tried), say))
        for candidate in refine(bench.model, [trial.candidate for trial in tried]):
            tried.append(_try(candidate, bench, budget, work, len(tried), say))
    except KeyboardInterrupt:
        say("interrupted: keeping the best so far")
        if not tried:
            tried.append(_try(Plan(ORIGINAL), bench, budget, work, 0, say))
        tried[-1] = Trial(tried[-1].candidate, tried[-1].path, tried[-1].stores, interrupted=True)
    return tried


def _try(plan: Plan, bench: Bench, budget: Budget, work: Path, index: int, say: Say) -> Trial:
    """Make a candidate and send it through the gate; its failure is recorded, not raised."""
    begin = perf_counter()
    path = bench.path if not plan.steps else work / f"{index}.onnx"
    try:
        applied = run_plan(plan, bench.model, bench.evidence, bench.memo) if plan.steps else Applied(bench.model)
        if plan.steps and not applied.modified:
            raise CandidateError("nothing to change: the same as the original")
        if plan.steps:
            save(applied.model, path)
        facts = judge(path, bench.select, bench.metric, applied.stores, TRIAL_S) if plan.steps else unchanged(bench.select)
    except OutputError:  # a full disk is the person's to mend, and would end every other candidate too
        raise
    except (GossamerError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        say(f"{plan.name}: {reason}")
        return Trial(Candidate(plan, error=reason, seconds=perf_counter() - begin))
    met = meets(facts.accuracy, budget)
    say(
        f"{plan.name}: {facts.latency_ms.ratio:.2f}x faster, {facts.bytes.original / facts.bytes.result:.2f}x smaller, "
        f"drop {facts.accuracy.drop:.4f}{'' if met else ' (over the floor)'}"
    )
    candidate = Candidate(plan, facts, met, "", perf_counter() - begin, applied.notes)
    return Trial(candidate, path, applied.stores)


def _verify_best(bench: Bench, budget: Budget, tried: list[Trial], say: Say) -> tuple[Trial, Facts, tuple[str, ...]]:
    """The best candidate whose floor also holds on the verify split; if none does, the best of all, marked as not met."""
    original = baseline(bench.select.session, bench.path, bench.verify, bench.metric)
    by_plan = {trial.candidate.plan.name: trial for trial in tried}
    ranked = [by_plan[candidate.plan.name] for candidate in rank([t.candidate for t in tried], budget)]
    verified: list[tuple[Trial, Facts]] = []
    warnings: list[str] = []
    for trial in ranked:
        if trial.path is None:
            continue
        facts = judge(trial.path, original, bench.metric, trial.stores, PROOF_S)
        if meets(facts.accuracy, budget):
            return trial, facts, tuple(warnings)
        verified.append((trial, facts))
        if trial.candidate.met:
            line = f"{trial.candidate.plan.name} met the floor where it was chosen, but drops {facts.accuracy.drop:.4f}"
            warnings.append(f"{line} on the verify split; the next candidate was taken")
            say(warnings[-1])
    best = min(verified, key=lambda pair: pair[1].accuracy.drop)
    return *best, tuple(warnings)


def _finish(chosen: Trial, bench: Bench, folder: Path) -> None:
    """Move the chosen file and its plan into the folder."""
    if chosen.path is None:
        raise CandidateError("no candidate passed the gate")
    plan = Plan(chosen.candidate.plan.name, chosen.candidate.plan.steps, _relative(bench.calibration, folder))
    _publish(chosen.path, folder / "model.onnx", keep=not plan.steps)
    write_file(folder / "plan.yaml", plan.to_yaml().encode())


def _publish(source: Path, target: Path, keep: bool) -> None:
    """Put an artifact under its final name; the original is copied, a candidate of ours is rebuilt from its parts."""
    if source.resolve() == target.resolve():
        return
    if size_bytes(source) == source.stat().st_size and not keep:
        os.replace(source, target)
        return
    if size_bytes(source) == source.stat().st_size:
        write_file(target, source.read_bytes())
        return
    save(read(source), target)  # weights beside the graph: their file must be named after the new one


def _calibration(data: Any, options: DataOptions | None, seed: int, threads: int, digest: str) -> Calibration:
    named = str(data) if isinstance(data, (str, Path)) else ""
    settings = msgspec.to_builtins(options) if options is not None else {}
    return Calibration(named, settings, seed, threads, digest)


def _relative(calibration: Calibration, folder: Path) -> Calibration:
    """The same, with a path as seen from the folder that will hold plan.yaml, so that both can be moved together."""
    if not calibration.data or not Path(calibration.data).exists():
        return calibration
    try:
        data = os.path.relpath(Path(calibration.data).resolve(), folder.resolve())
    except ValueError:  # another drive
        data = str(Path(calibration.data).resolve())
    return msgspec.structs.replace(calibration, data=data)


def _replay_evidence(plan: Plan, source: Model, data: Any, options: DataOptions | None, base: Path) -> Evidence:
    calibration = plan.calibration
    named = calibration.data
    if data is None:
        here = base / named
        data = here if here.exists() else named
        options = msgspec.convert(calibration.options, DataOptions) if calibration.options else options
    session = runtime.open_session(source.path or source, calibration.threads)
    calibrate = split(bind(read_samples(data, options), session.inputs), calibration.seed)[0]
    if calibration.digest and str(data) in (named, str(base / named)) and calibrate.digest() != calibration.digest:
        raise OptionError(
            f"the calibration samples in {named} are not those the plan was made with; "
            "restore them, or give --data to calibrate anew"
        )
    return Evidence(calibrate, calibration.threads)


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}; choose another -o") from error
    return folder


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A folder for candidates, on the same disk as the result, gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix=".candidates-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        sha = hashlib.sha256()
        while chunk := file.read(1 << 20):
            sha.update(chunk)
        return sha.hexdigest()


