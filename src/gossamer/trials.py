"""Candidates made, sent through the gate, and ranked; the one to return is verified on samples that chose nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from gossamer.errors import CandidateError, OutputError
from gossamer.gate import Baseline, baseline, judge, meets, unchanged
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.quality import Metric
from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Facts
from gossamer.nouns.model import Model, save, sha256
from gossamer.nouns.plan import Plan
from gossamer.nouns.record import Candidate
from gossamer.nouns.samples import Samples
from gossamer.passes.contract import Memo, run_plan
from gossamer.planning.candidates import ORIGINAL, propose
from gossamer.planning.choice import rank
from gossamer.planning.refinement import refine
from gossamer.runtimes import onnxruntime as runtime

TRIAL_S = 1.5  # seconds of timing for a candidate
PROOF_S = 4.0  # and for the one that is returned

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What every trial shares.

    Attributes:
        model: normalised, in memory.
        path: the original's file; never changed.
        work: folder for candidates, gone in the end.
        metric, budget: what counts.
        select: the original, opened and scored on the split that chooses.
        verify: the split that took no part in anything.
        evidence: statistics of the calibration split.
        say: told of every candidate.
        memo: models by the steps that made them.
        finished: digests of the files that were sent through the gate, so that none is tried twice.
    """

    model: Model
    path: Path
    work: Path
    metric: Metric
    budget: Budget
    select: Baseline
    verify: Samples
    evidence: Evidence
    say: Say
    memo: Memo = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Trial:
    """A candidate's record entry and, if it passed the gate, its file and the tensor types it promises."""

    candidate: Candidate
    path: Path | None = None
    stores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The trial to return, its facts, and whether those are from the verify split."""

    trial: Trial
    facts: Facts
    verified: bool = True
    warnings: tuple[str, ...] = ()


def try_all(bench: Bench) -> tuple[list[Trial], bool]:
    """Both rounds of candidates, and whether Ctrl-C cut them short; what is finished by then is kept."""
    tried: list[Trial] = [_original(bench)]
    try:
        for plan in propose(bench.model, runtime, bench.budget.minimize):
            if plan.name != ORIGINAL:
                tried.extend(_try(plan, bench, len(tried)))
        for plan in refine(bench.model, [trial.candidate for trial in tried], bench.budget.minimize):
            tried.extend(_try(plan, bench, len(tried)))
    except KeyboardInterrupt:
        bench.say("interrupted: going on with the best so far")
        return tried, True
    return tried, False


def verify_best(bench: Bench, tried: list[Trial]) -> Outcome:
    """The best trial whose floor also holds on the verify split; if none does, the one with the smallest drop."""
    trials = {trial.candidate.plan.name: trial for trial in tried}
    ranked = [trials[candidate.plan.name] for candidate in rank([t.candidate for t in tried], bench.budget)]
    try:
        original = baseline(bench.select.session, bench.path, bench.verify, bench.metric)
        return _first_that_holds(ranked, original, bench)
    except KeyboardInterrupt:
        bench.say("interrupted: the figures are those of the samples that chose")
        best = ranked[0]
        if best.candidate.facts is None:
            raise
        return Outcome(best, best.candidate.facts, verified=False)


def _first_that_holds(ranked: list[Trial], original: Baseline, bench: Bench) -> Outcome:
    verified: list[Outcome] = []
    warnings: list[str] = []
    for trial in ranked:
        name = trial.candidate.plan.name
        try:
            facts = (
                unchanged(original)
                if trial.path is None
                else judge(trial.path, original, bench.metric, trial.stores, PROOF_S)
            )
        except CandidateError as error:
            warnings.append(f"{name} passed the gate where it was chosen, but not on the verify split: {error}")
            continue
        if meets(facts.accuracy, bench.budget):
            return Outcome(trial, facts, warnings=tuple(warnings))
        verified.append(Outcome(trial, facts))
        if trial.candidate.met:
            warnings.append(
                f"{name} met the floor where it was chosen, but drops {facts.accuracy.drop:.4f} on the verify split; "
                "the next candidate was taken"
            )
            bench.say(warnings[-1])
    best = min(verified, key=lambda outcome: outcome.facts.accuracy.drop)
    return replace(best, warnings=tuple(warnings))


def _original(bench: Bench) -> Trial:
    begin = perf_counter()
    facts = unchanged(bench.select)
    bench.say(f"{ORIGINAL}: {facts.latency_ms.original:.3f} ms, {facts.bytes.original:,} bytes")
    met = meets(facts.accuracy, bench.budget)
    return Trial(Candidate(Plan(ORIGINAL), facts, met, seconds=perf_counter() - begin))


def _try(plan: Plan, bench: Bench, index: int) -> Iterator[Trial]:
    """Make a candidate and send it through the gate; its failure is recorded, not raised.

    Gives nothing if the plan finds nothing to change, or ends in the same graph as one before it.
    """
    begin = perf_counter()
    path = bench.work / f"{index}.onnx"
    try:
        applied = run_plan(plan, bench.model, bench.evidence, bench.memo)
        if not applied.modified:
            return
        save(applied.model, path)
        digest = sha256(path)
        if digest in bench.finished:
            return
        bench.finished.add(digest)
        facts = judge(path, bench.select, bench.metric, applied.stores, TRIAL_S)
    except OutputError:  # a full disk would end every other candidate too, and is the person's to mend
        raise
    except Exception as error:  # whatever one candidate meets, the others deserve their turn
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        bench.say(f"{plan.name}: {reason}")
        yield Trial(Candidate(plan, error=reason, seconds=perf_counter() - begin))
        return
    met = meets(facts.accuracy, bench.budget)
    bench.say(_line(plan.name, facts, met))
    yield Trial(Candidate(plan, facts, met, "", perf_counter() - begin, applied.notes), path, applied.stores)


def _line(name: str, facts: Facts, met: bool) -> str:
    smaller = facts.bytes.original / facts.bytes.result
    told = f"{facts.latency_ms.ratio:.2f}x as fast, {smaller:.2f}x smaller, drop {facts.accuracy.drop:.4f}"
    return f"{name}: {told}{'' if met else ', over the floor'}"
