"""Candidates made, sent through the gate, and ranked; the one to return is verified on samples that chose nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from time import perf_counter

import msgspec

from gossamer.blame import Timed, blame
from gossamer.errors import CandidateError, GossamerError, OptionError, OutputError
from gossamer.gate import Baseline, baseline, judge, meets, open_timed, unchanged
from gossamer.hastening import Measured, hasten, time_layers
from gossamer.journal import Entry, Journal
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.latency import PROOF, TRIAL, Timing, race, summarise
from gossamer.measuring.machine import sums_in_16_bits
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
from gossamer.planning.candidates import CLEAN, propose
from gossamer.planning.choice import finalists, leader, rank, shortfall
from gossamer.planning.features import features
from gossamer.planning.guard import culprits, fewest, raised, to_mend, worth_mending
from gossamer.planning.limits import Attempt
from gossamer.planning.priced import Place
from gossamer.planning.recovering import to_train, trained
from gossamer.planning.refinement import correct_in_order, refine, round_by_loss
from gossamer.shrinking import shrink, weigh, weigh_archives

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


def try_all(bench: Bench) -> tuple[list[Trial], str]:
    """All rounds of candidates, and what cut them short, if anything did; what is finished by then is kept."""
    tried: list[Trial] = [_original(bench)]
    try:
        found, aim = features(run_plan(CLEAN, bench.model, bench.evidence, bench.memo).model), bench.budget.minimize
        weight_bits = 7 if sums_in_16_bits(bench.target) else 8
        for plan in propose(found, bench.select.runtime, aim, weight_bits):
            tried.extend(_try(plan, bench, tried))
        for plan in refine(found, [trial.candidate for trial in tried], bench.budget):
            tried.extend(_try(plan, bench, tried))
        _guard(bench, tried)
        for finish in (round_by_loss, correct_in_order):
            for plan in finish(found, [trial.candidate for trial in tried], bench.budget):
                tried.extend(_try(plan, bench, tried))
        _recover(bench, tried)
        if aim != "latency" or not any(trial.candidate.met for trial in tried):
            _shrink(bench, tried)
        if bench.budget.max_latency_ratio is not None and not any(trial.candidate.met for trial in tried):
            _hasten(bench, tried)
        tried = _race(bench, tried)
    except KeyboardInterrupt:
        bench.say("interrupted: going on with the best so far")
        return tried, "interrupt"
    except TimeUp:
        bench.say("the time is up: going on with the best so far")
        return tried, "time limit"
    return tried, ""


def try_one(bench: Bench, plan: Plan) -> list[Trial]:
    """The original, and the one plan that a person asks for.

    Raises:
        OptionError: it cannot be carried out, or changes nothing.
    """
    tried = [_original(bench)]
    tried.extend(_try(plan, bench, tried))
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


def _original(bench: Bench) -> Trial:
    begin = perf_counter()
    facts = unchanged(bench.select)
    bench.say(f"{ORIGINAL}: {facts.latency_ms.original:.3f} ms, {facts.bytes.original:,} bytes")
    met = meets(facts, bench.budget)
    return Trial(Candidate(Plan(ORIGINAL), facts, met, seconds=perf_counter() - begin))


def _try(plan: Plan, bench: Bench, tried: list[Trial]) -> Iterator[Trial]:
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


def _added(plan: Plan, bench: Bench, tried: list[Trial]) -> Trial | None:
    """The plan's trial, among those tried from now on; None if there is nothing new about it.

    Raises:
        TimeUp: see `_try`.
    """
    found = list(_try(plan, bench, tried))
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


def _guard(bench: Bench, tried: list[Trial]) -> None:
    """Where the best integer plan breaks the floor: as few of its layers as will do are raised, the worst first.

    Twice as many each time, until the floor holds or the gain is gone; then halved down to the fewest that hold.
    """
    aim = bench.budget.minimize
    broken = to_mend([trial.candidate for trial in tried], bench.budget)
    if broken is None:
        return
    if perf_counter() > bench.deadline:
        raise TimeUp
    bench.say(f"{broken.name} breaks the floor: looking for the layers to blame")
    try:
        order = culprits(find_blame(bench, broken))
    except Exception as error:  # what is finished must not be lost, whatever the search for more meets
        bench.say(f"the layers to blame cannot be found: {error}")
        return

    def holds(count: int) -> bool | None:
        nodes = tuple(dict.fromkeys(node for move in order[:count] for node in move))
        trial = _added(raised(broken, nodes), bench, tried)
        if trial is None:
            return False
        if not trial.candidate.met and not worth_mending(trial.candidate, [t.candidate for t in tried], aim):
            return None  # with more of them it would be slower still
        return trial.candidate.met

    fewest(len(order), holds)


def _recover(bench: Bench, tried: list[Trial]) -> None:
    """Where there are samples to learn from: what would be the best if it were true enough is trained until it is."""
    school = bench.evidence.school
    if school is None:
        return
    plans = to_train([trial.candidate for trial in tried], bench.budget)
    if not plans:
        bench.say("nothing to train: no plan of integers would be better than what holds the floor as it is")
    for left, plan in zip(range(len(plans), 0, -1), plans, strict=True):
        untrained = next((trial for trial in tried if trial.candidate.plan.steps == plan.steps), None)
        untrained = untrained or _added(plan, bench, tried)
        if untrained is None or untrained.candidate.facts is None or untrained.candidate.met:
            continue
        if perf_counter() > bench.deadline:
            raise TimeUp
        seconds = min(bench.train_s, bench.deadline - perf_counter()) / left
        try:
            schooling = school.fit(run_plan(plan, bench.model, bench.evidence, bench.memo).model, seconds)
        except GossamerError as error:  # what is finished must not be lost, whatever training meets
            bench.say(f"{plan.name} cannot be trained: {error}")
            continue
        if schooling is None:
            bench.say(f"{plan.name} is not trained, as {seconds:.0f} s are too short; give more --train-time")
            continue
        bench.say(f"training {plan.name}")
        trial = _added(trained(plan, schooling), bench, tried)
        if trial is not None and trial.candidate.facts is not None:
            drops = (one.candidate.facts.accuracy.drop for one in (untrained, trial) if one.candidate.facts)
            bench.say("training took the drop from {:.4f} to {:.4f}".format(*drops))


def _shrink(bench: Bench, tried: list[Trial]) -> None:
    """Bits for every weight from one limit, where bytes are the aim, or where nothing so far is within the limits."""
    full_bytes, aim = bench.select.size_bytes, bench.budget.minimize
    limit_bytes = bench.budget.size_limit(full_bytes)
    if aim == "latency" and limit_bytes is None:
        return
    if perf_counter() > bench.deadline:
        raise TimeUp
    bench.say("weighing what every weight could become")

    def attempt(plan: Plan) -> Attempt | None:
        trial = _added(plan, bench, tried)
        facts = None if trial is None else trial.candidate.facts
        return None if trial is None or facts is None else Attempt(facts.bytes.result, trial.candidate.met)

    try:
        look = weigh_archives if aim == "download" else weigh
        found = look(bench.model, bench.evidence, bench.memo, (bench.deadline - perf_counter()) / 3)
        bench.gains.update({entry.weight: entry.gain for entry in found.entries})
        shrink(found, full_bytes, limit_bytes, aim != "latency", attempt)
    except GossamerError as error:  # a limit out of reach costs nothing that is finished
        bench.say(str(error))
        bench.warnings.append(str(error))


def _hasten(bench: Bench, tried: list[Trial]) -> None:
    """A way to compute every layer, from one limit on latency that nothing so far keeps."""
    anyhow = replace(bench.budget, max_latency_ratio=None)
    alive = [trial.candidate for trial in tried if trial.candidate.facts]
    static = [one for one in alive if any(step.method == "quantize_static" for step in one.plan.steps)]
    full_ms = tried[0].candidate.facts.latency_ms.original if tried[0].candidate.facts else 0.0
    held = [one.facts.latency_ms.ratio for one in alive if one.facts and meets(one.facts, anyhow)]
    if perf_counter() > bench.deadline:
        raise TimeUp
    bench.say("timing what every layer could become")

    def attempt(plan: Plan) -> Measured | None:
        trial = _added(plan, bench, tried)
        facts = None if trial is None else trial.candidate.facts
        return None if facts is None else Measured(1 / facts.latency_ms.ratio, meets(facts, anyhow))

    try:
        base = leader(static, "latency").plan if static else Plan("float", CLEAN.steps)
        place = Place(bench.select.runtime, bench.target.threads, bench.select.feeds)
        left_s = (bench.deadline - perf_counter()) / 3
        table = time_layers(bench.model, bench.evidence, bench.memo, place, base, full_ms, left_s)
        limit_ms = (bench.budget.max_latency_ratio or 1.0) * full_ms
        hasten(table, limit_ms, full_ms / max(held, default=1.0), bench.budget.minimize == "latency", attempt)
    except GossamerError as error:  # a limit out of reach costs nothing that is finished
        bench.say(str(error))
        bench.warnings.append(str(error))


def find_blame(bench: Bench, plan: Plan, budget_s: float = BLAME_S) -> tuple[LayerBlame, ...]:
    """The layers of a plan and what they cost, within a minute, the budget and the time that is left."""
    budget_s = min(BLAME_S, budget_s, bench.deadline - perf_counter())
    timed = Timed(bench.select.runtime, bench.target.threads, bench.select.feeds)
    return blame(plan, bench.model, bench.evidence, timed, bench.memo, budget_s)


def _race(bench: Bench, tried: list[Trial]) -> list[Trial]:
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
