"""Each loss of distillation on the same student, sorted, with plain soft labels and labels alone as controls.

    python bench/training.py --parts losses

Beside which other loss each stands is its paper's choice: most beside the cross-entropy with labels, FitNets' features
beside soft labels, regression on the teacher's outputs alone. Factors are those that the papers recommend, temperature
and share of labels Gossamer's defaults for all, the rate the one that is best with labels alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gossamer.errors import GossamerError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import read_samples
from gossamer.measuring.intervals import student_t
from gossamer.nouns.model import save
from gossamer.training.holding_out import hold_out
from gossamer.training.lessons import Lessons
from gossamer.training.loop import train
from gossamer.training.losses.hard_labels import HardLabels
from gossamer.training.losses.mutual import Mutual
from gossamer.training.lower import lower
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil, WeightedLoss
from gossamer.training.run import Job
from gossamer.training.together import Together
from gossamer.training.watching import Watch
from gossamer.training.write_back import write_back
from training_cases import (
    BATCH,
    Case,
    Effort,
    Made,
    begun,
    best_rate,
    code_digest,
    floated,
    folded,
    hits,
    made_once,
    nets_script,
    part_file,
    student,
    tell,
    write_facts,
)

TEACHER, NET = "demo", "student"
EPOCHS, SAMPLES = 6, 10_000
ALONE, SOFT = "labels alone", "soft labels"
LOSSES = {  # as the papers have them
    ALONE: ("hard_labels",),
    SOFT: ("soft_labels",),
    "features": ("soft_labels", "features"),
    "attention": ("hard_labels", "attention"),
    "relations": ("hard_labels", "relations"),
    "similarities": ("hard_labels", "similarities"),
    "contrast": ("hard_labels", "contrast"),
    "correlation": ("hard_labels", "correlation"),
    "decoupled": ("hard_labels", "decoupled"),
    "outputs": ("outputs",),
}
BORN, MUTUAL = "born again", "mutual"
BESIDE = {BORN: "soft labels of a student alone of another seed", MUTUAL: "labels, beside a student of another seed"}
PEER = 100  # added to the seed of the student that another one learns beside
HEAD = f"| | losses | accuracy (lowest-highest) | over {ALONE}, points (95 %) | over {SOFT} (95 %; by seed) | CPU s |"


@dataclass(frozen=True)
class Row:
    """One way to be taught: its files, one a seed, and which test images they get right (S, N)."""

    name: str
    made: list[Made]
    right_SN: np.ndarray


def print_table(effort: Effort, seeds: int, quick: bool) -> None:
    """All of it; every seed's files before the next one's, so that what was cut short has whole seeds."""
    effort = replace(effort, student_epochs=1 if quick else EPOCHS, student_samples=2_000 if quick else SAMPLES)
    cases = [Case(NET, seed, effort) for seed in range(seeds)]
    rate = best_rate(lambda rate: student(cases[0], LOSSES[ALONE], rate, None, BATCH), effort.student_rates)
    print(
        f"## Each loss: a {NET} of {TEACHER}, a fifth of its weights, {effort.student_samples:,} images with labels, "
        f"{effort.student_epochs} epochs, {seeds} seeds, rate {rate:g}\n"
    )
    made: dict[str, list[Made]] = {}
    for case in cases:
        for name, make in makers(case, rate, seeds).items():
            tell(f"-- {name}, seed {case.seed}")
            try:
                made.setdefault(name, []).append(make())
            except GossamerError as error:
                print(f"{name}, seed {case.seed}: failed: {error}\n")
    rows = [Row(name, files, np.stack([hits(file, effort) for file in files])) for name, files in made.items()]
    _print([row for row in rows if len(row.made) == seeds])


def makers(case: Case, rate: float, seeds: int) -> dict[str, Callable[[], Made]]:
    """What makes each file of one seed."""
    other = Case(case.net, (case.seed + 1) % max(seeds, 2), case.effort)
    teacher = floated(Case(TEACHER, case.seed, case.effort)).path

    def taught(losses: tuple[str, ...]) -> Callable[[], Made]:
        return lambda: student(case, losses, rate, None if losses == LOSSES[ALONE] else teacher, BATCH)

    def born_again() -> Made:
        return student(case, LOSSES[SOFT], rate, student(other, LOSSES[ALONE], rate, None, BATCH).path, BATCH)

    plain = {name: taught(losses) for name, losses in LOSSES.items()}
    return {**plain, BORN: born_again, MUTUAL: lambda: side_by_side(case, rate)}


def side_by_side(case: Case, rate: float) -> Made:
    """Two students that learn from labels and from each other; the first is the result, and chooses the epoch."""
    effort = case.effort
    paths = [begun(case.net, seed) for seed in (case.seed, case.seed + PEER)]
    data = part_file("train", effort.student_samples)
    options = Options(epochs=effort.student_epochs, batch=BATCH, rate=rate, seed=case.seed, device="cpu", decay=5e-4)

    def fill(folder: Path) -> None:
        begin = time.process_time()
        models = [normalise(read(path)) for path in paths]
        (choose,), learn = hold_out(read_samples(data), options.seed)
        losses = [WeightedLoss(loss) for loss in (HardLabels(0), HardLabels(1), Mutual((0, 1)))]
        pupil = Pupil(Together([lower(model) for model in models]), losses)
        trained = train(Job(pupil, Lessons(learn), Lessons(choose), options, watch=Watch(say=tell)))
        first = pupil.student.students[0]  # type: ignore[index]  # a Together
        save(write_back(first, models[0]), folder / "model.onnx")
        write_facts(folder, {"cpu_s": time.process_time() - begin, "best": trained.best_epoch})

    key = [case, rate, repr(options), nets_script(), code_digest()]
    return folded(made_once("mutual", key, fill))


def _print(rows: Sequence[Row]) -> None:
    """The table, best first."""
    by_name = {row.name: row for row in rows}
    print(HEAD)
    print("|---" * 6 + "|")
    for row in sorted(rows, key=lambda row: -row.right_SN.mean()):
        each = row.right_SN.mean(1)
        spread = f"{each.mean():.2%} ({each.min():.2%}-{each.max():.2%})"
        cost = np.mean([made.facts.get("cpu_s", 0.0) for made in row.made])
        name = row.name if row.name in (ALONE, SOFT) else f"**{row.name}**"
        losses = BESIDE.get(row.name) or ", ".join(LOSSES[row.name])
        alone, soft = (_change(row, by_name[control]) for control in (ALONE, SOFT))
        print(f"| {name} | {losses} | {spread} | {alone} | {soft}{_by_seed(row, by_name[SOFT])} | {cost:.0f} |")
    print(flush=True)


def _change(row: Row, base: Row) -> str:
    """Mean over seeds, with the interval of a test image's mean; nothing of a row against itself."""
    if row is base:
        return ""
    change_N = (row.right_SN.astype(float) - base.right_SN).mean(0)
    low, high = student_t(change_N)
    return f"{100 * change_N.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _by_seed(row: Row, base: Row) -> str:
    if row is base:
        return ""
    each = 100 * (row.right_SN.mean(1) - base.right_SN.mean(1))
    return "; " + " ".join(f"{change:+.2f}" for change in each)
