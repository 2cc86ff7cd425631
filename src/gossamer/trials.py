"""Candidates made, sent through the gate, and ranked; the one to return is verified on samples that chose nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from time import perf_counter

import msgspec

from gossamer.blame import Timed, blame
from gossamer.errors import CandidateError, OptionError, OutputError
from gossamer.gate import Baseline, baseline, judge, meets, open_timed, unchanged
from gossamer.journal import Entry, Journal
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import PROOF, TRIAL, Timing, race, summarise
from gossamer.measuring.quality import Metric
from gossamer.nouns.budget import Budget
from gossamer.nouns.diagnosis import LayerBlame
from gossamer.nouns.facts import Facts
from gossamer.nouns.model import Model, model_sha256, save, size_bytes
from gossamer.nouns.plan import ORIGINAL, Calibration, Plan
from gossamer.nouns.record import Candidate, Splits
from gossamer.nouns.samples import Samples
from gossamer.nouns.schooling import TRAIN_S
from gossamer.nouns.target import Target
from gossamer.passes.contract import Memo, run_plan
from gossamer.planning.choice import finalists, rank, shortfall

BLAME_S = 60.0  # seconds for finding the layers to blame
FINAL = Timing(budget_s=4.0, precision=0.01)  # of all that may be returned, in one race
ROOM_BYTES = 2_000_000_000  # of files that are open at once


class TimeUp(Exception):
    """The time limit leaves no room for another candidate."""


Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What every trial shares.

    Attributes:
        model: normalised, in memory.
        path: the original's file; never changed.
        journal: where candidates are kept and written down.
        metric, budget: what counts.
        select: the original, opened and scored on the split that chooses.
        verify: the split that took no part in anything.
        evidence: statistics of the calibration split.
        target: where the result is to run.
        splits, calibration: for the record and for plan.yaml.
        notes: what coming in changed.
        say: told of every candidate.
        memo: models by the steps that made them.
        finished: digests of the files that were sent through the gate, so that none is tried twice.
        gains: weight -> noise of the network's outputs over that of its layer's, where it was measured.
        warnings: for the record.
        deadline: when to begin no further candidate, on the clock of `perf_counter`.
        train_s: seconds for training, of all candidates together.
    """

    model: Model
    path: Path
    journal: Journal
    metric: Metric
    budget: Budget
    select: Baseline
    verify: Samples
    evidence: Evidence
    target: Target
    splits: Splits
    calibration: Calibration
    notes: tuple[str, ...]
    say: Say
    memo: Memo = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    gains: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    deadline: float = inf
    train_s: float = TRAIN_S


@dataclass(frozen=True)
class Trial:
    """A candidate's record entry and, if it passed the gate, its file and the tensor types it promises."""

    candidate: Candidate
    path: Path | None = None
    stores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The trial to return.

    Attributes:
        facts: its measurements, on the verify split if `verified`.
        unbiased: the verify split turned down no other, so that it had no say in the choice.
    """

    trial: Trial
    facts: Facts
    verified: bool = True
    unbiased: bool = True
    warnings: tuple[str, ...] = ()


def try_one(bench: Bench, plan: Plan) -> list[Trial]:
    """The original, and the one plan that a person asks for.

    Raises:
        OptionError: it cannot be carried out, or changes nothing.
    """
    tried = [original(bench)]
    tried.extend(attempts(plan, bench, tried))
    if len(tried) < 2:
        notes = run_plan(plan, bench.model, bench.evidence, bench.memo).notes
        raise OptionError(
            f"{plan.name} changes nothing in {bench.model.name}: {'; '.join(notes) or 'it is so already'}"
        )
    if tried[1].candidate.error:
        raise OptionError(f"{plan.name}: {tried[1].candidate.error}")
    return tried


def verify_best(bench: Bench, tried: list[Trial]) -> Outcome:
    """The best trial whose floor also holds on the verify split; if none does, the one with the smallest drop."""
    trials = {trial.candidate.plan.name: trial for trial in tried}
    ranked = [trials[candidate.plan.name] for candidate in rank([t.candidate for t in tried], bench.budget)]
    try:
        original = baseline(bench.select.opened, bench.path, bench.verify, bench.metric, bench.select.packed)
        return _first_that_holds(ranked, original, bench)
    except KeyboardInterrupt:
        bench.say("interrupted: the figures are those of the samples that chose")
        best = ranked[0]
        if best.candidate.facts is None:
            raise
        return Outcome(best, best.candidate.facts, verified=False, unbiased=False)


def _first_that_holds(ranked: list[Trial], original: Baseline, bench: Bench) -> Outcome:
    verified: list[Outcome] = []
    warnings: list[str] = []
    for trial in ranked:
        name = trial.candidate.plan.name
        try:
            if trial.path is None:
                facts = unchanged(original)
            else:
                facts = judge(trial.path, original, bench.metric, trial.stores, PROOF)
        except CandidateError as error:
            warnings.append(f"{name} passed the gate where it was chosen, but not on the verify split: {error}")
            continue
        if meets(facts, bench.budget):
            return Outcome(trial, facts, unbiased=not warnings, warnings=tuple(warnings))
        verified.append(Outcome(trial, facts))
        if trial.candidate.met:
            why = f"drops {facts.accuracy.drop:.4f} on the verify split"
            if bench.budget.excess_ratio(facts) > 1:
                why = f"was found too slow when it was timed once more, {facts.latency_ms.ratio:.2f}x as fast"
            warnings.append(f"{name} met the floor where it was chosen, but {why}; the next candidate was taken")
            bench.say(warnings[-1])
    best = min(verified, key=lambda outcome: shortfall(outcome.facts, bench.budget))
    return replace(best, unbiased=len(ranked) < 2, warnings=tuple(warnings))


def original(bench: Bench) -> Trial:
    begin = perf_counter()
    facts = unchanged(bench.select)
    bench.say(f"{ORIGINAL}: {facts.latency_ms.original:.3f} ms, {facts.bytes.original:,} bytes")
    met = meets(facts, bench.budget)
    return Trial(Candidate(Plan(ORIGINAL), facts, met, seconds=perf_counter() - begin))


def attempts(plan: Plan, bench: Bench, tried: list[Trial]) -> Iterator[Trial]:
    """Make a candidate and send it through the gate, or recall what a killed run found of it.

    A failure is recorded, not raised. Gives nothing for the original, for a plan that finds nothing to change, and for
    one that ends in the same file as one before it.

    Raises:
        TimeUp: another candidate like the longest so far would end after the deadline.
    """
    if plan.name == ORIGINAL:
        return
    entry = bench.journal.recall(plan)
    if entry is None:
        if perf_counter() + max(trial.candidate.seconds for trial in tried) > bench.deadline:
            raise TimeUp
        entry = _measure(plan, bench)
        if entry is None:
            return
        bench.journal.add(entry)
    if entry.sha256:
        bench.finished.add(entry.sha256)
    candidate = entry.candidate
    if candidate.facts is None:
        bench.say(f"{plan.name}: {candidate.error}")
        yield Trial(candidate)
        return
    met = meets(candidate.facts, bench.budget)  # a resumed run may have another floor
    bench.say(_line(plan.name, candidate.facts, met))
    candidate = msgspec.structs.replace(candidate, met=met)
    yield Trial(candidate, bench.journal.file_of(plan), entry.stores)


def check_time(bench: Bench) -> None:
    """See that there is time to begin something.

    Raises:
        TimeUp: there is none.
    """
    if perf_counter() > bench.deadline:
        raise TimeUp


def added(plan: Plan, bench: Bench, tried: list[Trial]) -> Trial | None:
    """The plan's trial, among those tried from now on; None if there is nothing new about it.

    Raises:
        TimeUp: see `_try`.
    """
    found = list(attempts(plan, bench, tried))
    tried.extend(found)
    return found[0] if found else None


def _measure(plan: Plan, bench: Bench) -> Entry | None:
    """A new candidate through the gate; None if there is nothing new about it."""
    begin, path = perf_counter(), bench.journal.file_of(plan)
    try:
        applied = run_plan(plan, bench.model, bench.evidence, bench.memo)
        if not applied.modified:
            return None
        save(applied.model, path)
        digest = model_sha256(path)
        if digest in bench.finished:
            return None
        facts = judge(path, bench.select, bench.metric, applied.stores, TRIAL)
    except OutputError:  # a full disk would end every other candidate too, and is the person's to mend
        raise
    except Exception as error:  # whatever one candidate meets, the others deserve their turn
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Entry(Candidate(plan, error=reason, seconds=perf_counter() - begin))
    seconds = perf_counter() - begin
    return Entry(Candidate(plan, facts, False, "", seconds, applied.notes), digest, applied.stores)


def find_blame(bench: Bench, plan: Plan, budget_s: float = BLAME_S) -> tuple[LayerBlame, ...]:
    """The layers of a plan and what they cost, within a minute, the budget and the time that is left."""
    budget_s = min(BLAME_S, budget_s, bench.deadline - perf_counter())
    timed = Timed(bench.select.runtime, bench.target.threads, bench.select.feeds)
    return blame(plan, bench.model, bench.evidence, timed, bench.memo, budget_s)


def final_race(bench: Bench, tried: list[Trial]) -> list[Trial]:
    """The finalists timed once more, all in one race, as what was timed a minute apart differs by noise alone."""
    chosen = finalists([trial.candidate for trial in tried], bench.budget)
    paths = {trial.candidate.plan.name: trial.path for trial in tried if trial.candidate in chosen and trial.path}
    if sum(size_bytes(path) for path in paths.values()) > ROOM_BYTES:
        return tried  # so large that their calls are long, and what was timed is not far off
    if len(paths) < 2:
        return tried
    if perf_counter() + FINAL.budget_s > bench.deadline:
        raise TimeUp
    bench.say(f"timing the {len(paths)} fastest in one race")
    threads = bench.target.threads
    sessions = {name: open_timed(path, bench.select).session for name, path in paths.items()}
    times = race({"": bench.select.session, **sessions}, bench.select.feeds, threads, FINAL)
    return [_timed(trial, times, bench) for trial in tried]


def _timed(trial: Trial, times: dict[str, list[float]], bench: Bench) -> Trial:
    """The trial with its latency of this race, if it took part."""
    candidate, name = trial.candidate, trial.candidate.plan.name
    if candidate.facts is None or name not in times:
        return trial
    latency = summarise(times[""], times[name], bench.target.threads, bench.select.session.runtime)
    facts = replace(candidate.facts, latency_ms=latency)
    return replace(trial, candidate=msgspec.structs.replace(candidate, facts=facts))


def _line(name: str, facts: Facts, met: bool) -> str:
    share = facts.bytes.result / facts.bytes.original
    told = f"{facts.latency_ms.ratio:.2f}x as fast, {share:.0%} of the bytes, drop {facts.accuracy.drop:.4f}"
    return f"{name}: {told}{'' if met else ', misses the floor'}"
