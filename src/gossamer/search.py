"""All rounds of candidates: proposals, refinements, repairs, training, limits on bytes and on latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from gossamer.errors import GossamerError
from gossamer.gate import meets
from gossamer.hastening import Measured, hasten, time_layers
from gossamer.measuring.machine import sums_in_16_bits
from gossamer.nouns.budget import Budget
from gossamer.nouns.plan import Plan
from gossamer.nouns.record import Candidate
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN, propose
from gossamer.planning.choice import leader
from gossamer.planning.features import Features, features
from gossamer.planning.guard import culprits, fewest, raised, to_mend, worth_mending
from gossamer.planning.limits import Attempt
from gossamer.planning.priced import Place
from gossamer.planning.recovering import to_train, trained
from gossamer.planning.refinement import correct_in_order, mend_by_rounding, refine, round_by_loss
from gossamer.shrinking import MOST_TRAINED, Ledger, shrink, train_smaller, weigh, weigh_archives
from gossamer.trials import Bench, TimeUp, Trial, added, attempts, check_time, final_race, find_blame, original

Proposal = Callable[[Features, Sequence[Candidate], Budget], tuple[Plan, ...]]


def try_all(bench: Bench) -> tuple[list[Trial], str]:
    """All rounds of candidates, and what cut them short, if anything did; what is finished by then is kept."""
    tried: list[Trial] = [original(bench)]
    try:
        found, aim = features(run_plan(CLEAN, bench.model, bench.evidence, bench.memo).model), bench.budget.minimize
        weight_bits = 7 if sums_in_16_bits(bench.target) else 8
        for plan in propose(found, bench.select.runtime, aim, weight_bits):
            tried.extend(attempts(plan, bench, tried))
        _follow_up(bench, tried, found, (refine, mend_by_rounding))
        _guard(bench, tried)
        _follow_up(bench, tried, found, (round_by_loss, correct_in_order))
        _recover(bench, tried)
        if aim != "latency" or not any(trial.candidate.met for trial in tried):
            _shrink(bench, tried)
        if bench.budget.max_latency_ratio is not None and not any(trial.candidate.met for trial in tried):
            _hasten(bench, tried)
        tried = final_race(bench, tried)
    except KeyboardInterrupt:
        bench.say("interrupted: going on with the best so far")
        return tried, "interrupt"
    except TimeUp:
        bench.say("the time is up: going on with the best so far")
        return tried, "time limit"
    return tried, ""


def _follow_up(bench: Bench, tried: list[Trial], found: Features, proposals: Sequence[Proposal]) -> None:
    """What each proposes, in view of all that was tried until then."""
    for proposal in proposals:
        for plan in proposal(found, [trial.candidate for trial in tried], bench.budget):
            tried.extend(attempts(plan, bench, tried))


def _guard(bench: Bench, tried: list[Trial]) -> None:
    """Where the best integer plan breaks the floor: as few of its layers as will do are raised, the worst first.

    Twice as many each time, until the floor holds or the gain is gone; then halved down to the fewest that hold.
    """
    aim = bench.budget.minimize
    broken = to_mend([trial.candidate for trial in tried], bench.budget)
    if broken is None:
        return
    check_time(bench)
    bench.say(f"{broken.name} breaks the floor: looking for the layers to blame")
    try:
        order = culprits(find_blame(bench, broken))
    except Exception as error:  # what is finished must not be lost, whatever the search for more meets
        bench.say(f"the layers to blame cannot be found: {error}")
        return

    def holds(count: int) -> bool | None:
        nodes = tuple(dict.fromkeys(node for move in order[:count] for node in move))
        trial = added(raised(broken, nodes), bench, tried)
        if trial is None:
            return False
        if not trial.candidate.met and not worth_mending(trial.candidate, [t.candidate for t in tried], aim):
            return None  # with more of them it would be slower still
        return trial.candidate.met

    fewest(len(order), holds)


def _recover(bench: Bench, tried: list[Trial]) -> None:
    """Where there are samples to learn from, and speed is the aim: what would be the fastest if it were true enough."""
    if bench.evidence.school is None or bench.budget.minimize != "latency":
        return
    plan = to_train([trial.candidate for trial in tried], bench.budget)
    if plan is None:
        bench.say("nothing to train: no plan of integers would be better than what holds the floor as it is")
        return
    check_time(bench)
    untrained = next(trial for trial in tried if trial.candidate.plan == plan)
    _trained(bench, tried, untrained, min(bench.train_s, bench.deadline - perf_counter()))


def _trained(bench: Bench, tried: list[Trial], untrained: Trial, seconds: float) -> Trial | None:
    """The trial of a plan once it is trained, and what that did; None if it cannot be."""
    plan, school = untrained.candidate.plan, bench.evidence.school
    if school is None:
        return None
    try:
        schooling = school.fit(run_plan(plan, bench.model, bench.evidence, bench.memo).model, seconds)
    except GossamerError as error:  # what is finished must not be lost, whatever training meets
        bench.say(f"{plan.name} cannot be trained: {error}")
        return None
    if schooling is None:
        bench.say(f"{plan.name} is not trained, as {seconds:.0f} s are too short; give more --train-time")
        return None
    bench.say(f"training {plan.name}")
    trial = added(trained(plan, schooling), bench, tried)
    if trial is not None and trial.candidate.facts is not None:
        drops = (one.candidate.facts.accuracy.drop for one in (untrained, trial) if one.candidate.facts)
        bench.say("training took the drop from {:.4f} to {:.4f}".format(*drops))
    return trial


def _shrink(bench: Bench, tried: list[Trial]) -> None:
    """Bits for every weight from one limit, where bytes are the aim, or where nothing so far is within the limits."""
    full_bytes, aim = bench.select.size_bytes, bench.budget.minimize
    limit_bytes = bench.budget.size_limit(full_bytes)
    if aim == "latency" and limit_bytes is None:
        return
    check_time(bench)
    bench.say("weighing what every weight could become")

    def attempt(plan: Plan) -> Attempt | None:
        trial = added(plan, bench, tried)
        facts = None if trial is None else trial.candidate.facts
        return None if trial is None or facts is None else Attempt(facts.bytes.result, trial.candidate.met)

    try:
        look = weigh_archives if aim == "download" else weigh
        found = look(bench.model, bench.evidence, bench.memo, (bench.deadline - perf_counter()) / 3)
        bench.gains.update({entry.weight: entry.gain for entry in found.entries})
        shrink(found, full_bytes, limit_bytes, aim != "latency", attempt)
        _train_smaller(bench, tried, found, limit_bytes)
    except GossamerError as error:  # a limit out of reach costs nothing that is finished
        bench.say(str(error))
        bench.warnings.append(str(error))


def _train_smaller(bench: Bench, tried: list[Trial], found: Ledger, limit_bytes: int | None) -> None:
    """Where there are samples to learn from: plans smaller than what holds the floor, trained until they hold it."""
    met = [trial for trial in tried if trial.candidate.met and trial.path is not None]
    if bench.evidence.school is None or (met and bench.budget.minimize == "latency"):
        return
    if not met and limit_bytes is None:
        return
    check_time(bench)

    def attempt(plan: Plan) -> Attempt | None:
        untrained = added(plan, bench, tried)
        if untrained is None or untrained.candidate.facts is None:
            return None
        facts = untrained.candidate.facts
        if untrained.candidate.met:
            return Attempt(facts.bytes.result, True)
        seconds = min(bench.train_s, bench.deadline - perf_counter()) / MOST_TRAINED
        trial = _trained(bench, tried, untrained, seconds)
        if trial is None or trial.candidate.facts is None:
            return Attempt(facts.bytes.result, False)
        return Attempt(trial.candidate.facts.bytes.result, trial.candidate.met)

    sizes = [trial.candidate.facts.bytes.result for trial in met if trial.candidate.facts]
    train_smaller(found, min(sizes, default=None), limit_bytes, attempt)


def _hasten(bench: Bench, tried: list[Trial]) -> None:
    """A way to compute every layer, from one limit on latency that nothing so far keeps."""
    anyhow = replace(bench.budget, max_latency_ratio=None)
    alive = [trial.candidate for trial in tried if trial.candidate.facts]
    static = [one for one in alive if any(step.method == "quantize_static" for step in one.plan.steps)]
    full_ms = tried[0].candidate.facts.latency_ms.original if tried[0].candidate.facts else 0.0
    held = [one.facts.latency_ms.ratio for one in alive if one.facts and meets(one.facts, anyhow)]
    check_time(bench)
    bench.say("timing what every layer could become")

    def attempt(plan: Plan) -> Measured | None:
        trial = added(plan, bench, tried)
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
