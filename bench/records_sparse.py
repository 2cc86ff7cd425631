"""The training bench's networks with most of their weights zero: pruned in rounds, taught by themselves, and packed.

They come in float from `training.py`'s cache. Two files a point: floats that are left, and 16 shared values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import records_cases
import training
import training_cases
import training_nets
from records_cases import Task
from records_tables import change, spread
from training_cases import FULL, QUICK, Case, Effort

DENSITIES = {"demo": (0.25, 0.1, 0.05), "resnet8": (0.3, 0.1, 0.05, 0.02)}
POINTS = {"demo": (0.05,), "resnet8": (0.1, 0.05, 0.02)}
SAMPLES, RATES = 55_000, (3e-3, 1e-3)
EPOCHS = {"demo": (4, 2), "resnet8": (2, 1)}  # of a round, and behind sharing
SHARE = "codebook:16"


def print_part(net: str, seeds: int, quick: bool) -> None:
    """One network at each of its densities."""
    effort = QUICK if quick else FULL
    by_seed = [Case(net, seed, effort) for seed in range(seeds)]
    dense = [training_cases.floated(case) for case in by_seed]
    tasks = [task_of(case, 500 if quick else SAMPLES) for case in by_seed]
    points = [(density, share) for density in POINTS[net] for share in ("", SHARE)]
    rungs = [DENSITIES[net].index(density) for density, _ in points]
    found = [
        [records_cases.packed(task, rung, share) for rung, (_, share) in zip(rungs, points, strict=True)]
        for task in tasks
    ]
    rows = [training.Row("float", dense)]
    for at, (density, share) in enumerate(points):
        files = [training_cases.Made(each[at].path, each[at].facts) for each in found]
        rows.append(training.Row(f"{1 - density:.0%} zeros{', ' + share if share else ''}", files))
    print(f"## {net} on fashion, sparse: {seeds} seeds, {EPOCHS[net][0]} epochs of {SAMPLES:,} images a round\n")
    print("| | accuracy (lowest-highest) | to float, points (95 %) | bytes | smaller | CPU s |")
    print("|---" * 6 + "|")
    size = float(np.mean([made.path.stat().st_size for made in dense]))
    for row in rows:
        print(line_of(row, rows[0], effort, size))
    print(flush=True)


def task_of(case: Case, samples: int) -> Task:
    """A float network with what it is made sparse by."""
    whole = training_nets.data()
    learn, choose = whole.train.take(slice(samples)), training_cases.validation(case.effort)
    file = training_cases.floated(case).path
    return Task(f"{case.net} {case.seed}", file, learn, choose, DENSITIES[case.net], RATES, EPOCHS[case.net], case.seed)


def line_of(row: training.Row, against: training.Row, effort: Effort, float_bytes: float) -> str:
    """A row of the table."""
    mine, base = (training.right(each, effort) for each in (row, against))
    sizes: Sequence[float] = [made.facts.get("bytes", float_bytes) for made in row.made]
    size, seconds = float(np.mean(sizes)), np.mean([made.facts["cpu_s"] for made in row.made])
    points = "" if row is against else change(mine, base)
    return f"| {row.name} | {spread(mine)} | {points} | {size:,.0f} | {float_bytes / size:.0f}x | {seconds:.0f} |"
