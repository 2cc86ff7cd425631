"""Deep Compression's records in real bytes: pruned, shared, trained and packed, beside the paper's own pipeline.

    python bench/records.py [--parts digits:lenet300,digits:lenet5,...,sparse:demo,sparse:resnet8] [--seeds 3]

- gossamer: from the dense net, rounds of removal and of training behind each, taught by labels and by the dense net,
  or by those of all seeds together; each layer's share of zeros is found by one score over all layers. At each point
  of the curve values become shared, tables and biases are trained and rounded, dead channels go, and the file is
  packed: all bytes of the `.goss` are counted.
- paper: Deep Compression as the paper describes it (`records_paper.py`), from the same dense nets, with the same
  images and epochs; its graph is not counted. It has no teacher, as the paper has none.
- sparse: networks of the training bench at 90 to 98 % zeros (`records_sparse.py`).

Settings are chosen on validation images with the first seed. "No loss" is the smallest point, for all seeds the same,
whose validation accuracy is not below the dense net's; the line says what it then does on test images. Differences
are paired over these, of which each counts with its mean over seeds. `--quick` is to see that all runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

import judge
import records_cases as cases
import records_nets as nets
import records_paper
import records_sparse
import training_cases
from records_cases import Task
from records_files import Made
from records_nets import Case, Effort
from records_paper import Factors
from records_tables import change, spread

PARTS = "digits:lenet300,digits:lenet5,fashion:lenet300,fashion:lenet5,fashion:vgg,sparse:demo,sparse:resnet8"
LENETS = ("codebook:16", "codebook:8", "codebook:4", "codebook:3")
LENET_RATES = (3e-3, 1e-2)


@dataclass(frozen=True)
class Setting:
    """How a network goes through the bench.

    Attributes:
        effort: of both pipelines.
        densities: shares of all weights that stay in ours, round by round.
        first: rounds before the curve's first point.
        factors: of the paper's thresholds, see `records_paper`.
        rates: of ours after a removal, to choose from, and `shares`, numbers of values.
        chooser: the round behind which numbers of values are compared; None puts them all on the curve.
        average: see `Options`; of ours.
        share_rate: of shared values.
        together: the dense networks of all seeds teach, their mean; else a seed's own.
    """

    effort: Effort
    densities: tuple[float, ...]
    first: int
    factors: Factors
    rates: tuple[float, ...]
    shares: tuple[str, ...]
    chooser: int | None = None
    average: float = 0.0
    share_rate: float = 3e-3
    together: bool = False


LENET300 = (0.2, 0.09, 0.045, 0.028, 0.018, 0.012, 0.008, 0.0055)
LENET5 = (0.15, 0.06, 0.025, 0.012, 0.008, 0.0055, 0.0038, 0.0026)
ALL = Factors((0.4, 0.6, 0.8, 1.0, 1.15, 1.3, 1.5, 1.75), 3)
SETTINGS = {
    ("lenet300", "digits"): Setting(Effort(40, 15, 10, 0.1), LENET300, 2, ALL, LENET_RATES, LENETS, 5),
    ("lenet5", "digits"): Setting(Effort(12, 5, 4, 0.03), LENET5, 1, ALL, LENET_RATES, LENETS, 5),
    ("lenet300", "fashion"): Setting(
        effort=Effort(30, 6, 3, 0.1, 1e-4, 256),
        densities=(0.2, 0.08, 0.06, 0.045, 0.028),
        first=1,
        factors=Factors(ALL.each, 2),
        rates=(1e-2,),  # 3e-3 and 2e-2 validated no better
        shares=("codebook:64", "codebook:16"),
        average=0.999,
        share_rate=1e-3,
        together=True,
    ),
    ("lenet5", "fashion"): Setting(
        effort=Effort(8, 3, 2, 0.05, 2e-4, 128),
        densities=(0.2, 0.08, 0.06, 0.025),
        first=1,
        factors=Factors((0.6, 0.8, 1.0, 1.3), 1),
        rates=(3e-3,),
        shares=("codebook:32",),
        average=0.999,
        share_rate=1e-3,
        together=True,
    ),
    ("vgg", "fashion"): Setting(
        effort=Effort(5, 2, 1, 0.02, 2e-4, 128, samples=20_000),
        densities=(0.15, 0.05, 0.015),
        first=1,
        factors=Factors((0.7, 1.0, 1.2), 1),
        rates=(1e-2,),
        shares=("codebook:16",),
    ),
}
TOLERANCE = 0.0025  # of validation accuracy, when values are chosen
HEAD = """\
| | weights left | validation | test (lowest-highest) | to dense, points (95 %) | bytes | graph | ratio | CPU s |
"""
PUBLISHED = {
    "lenet300": "Deep Compression 27 KB, 40x; EPR 8.56 KB",
    "lenet5": "Deep Compression 44 KB, 39x; EPR 2.84 KB; MIRACLE 1.52 KB",
    "vgg": "Deep Compression (VGG-16 on ImageNet) 49x",
}


def main() -> None:
    """The parts that are asked for."""
    arguments = parsed()
    words = f"--parts {arguments.parts} --seeds {arguments.seeds}{' --quick' if arguments.quick else ''}"
    torch.set_num_threads(1)
    print(judge.header(f"python bench/records.py {words}"), flush=True)
    for part in arguments.parts.split(","):
        data, _, net = part.partition(":")
        if data == "sparse":
            records_sparse.print_part(net, arguments.seeds, arguments.quick)
        else:
            setting = SETTINGS[net, data]
            print_part(net, data, quick(setting) if arguments.quick else setting, arguments.seeds)


def quick(setting: Setting) -> Setting:
    """Few images and epochs."""
    return replace(setting, effort=replace(setting.effort, dense=2, prune=1, share=1, samples=2_000))


def task_of(case: Case, seeds: int, setting: Setting, rate: float) -> Task:
    """A dense network with what it is made small by."""
    effort = case.effort
    others = [replace(case, seed=seed) for seed in range(seeds) if seed != case.seed] if setting.together else []
    return Task(
        f"{case.net} {case.data} {case.seed}",
        nets.dense(case).path,
        nets.learned(case),
        nets.data(case.data).validation,
        setting.densities,
        (rate, setting.share_rate),
        (effort.prune, effort.share),
        case.seed,
        effort.batch,
        effort.precision,
        setting.average,
        tuple(nets.dense(other).path for other in others),
    )


def print_part(net: str, data: str, setting: Setting, seeds: int) -> None:
    """One network on one data set, both pipelines."""
    by_seed = [Case(net, data, seed, setting.effort) for seed in range(seeds)]
    rate, steps = decided(by_seed, setting)
    count = sum(p.numel() for p in nets.build(net, 0).parameters())
    print(f"## {net} on {data}: {count:,} weights, {seeds} seeds\n\n{setting}; rate {rate}\n")
    dense = Row("dense, float32", [nets.dense(case) for case in by_seed], by_seed)
    points, papers = [], []  # seed by seed, so that a bench that is cut short has whole ones in its cache
    for case in by_seed:
        task = task_of(case, seeds, setting, rate)
        points.append([cases.packed(task, *step) for step in steps])
        papers.append(records_paper.points(case, setting.factors))
    names = [f"**gossamer**, {share.partition(':')[2]} values" for _, share in steps]
    ours = [Row(name, made, by_seed) for name, made in zip(names, zip(*points, strict=True), strict=True)]
    theirs = [Row("paper", made, by_seed) for made in zip(*papers, strict=True)]
    print(HEAD + "|---" * HEAD.count(" |") + "|")
    for row in (dense, *ours, *theirs):
        print(line_of(row, dense, 4 * count))
    print()
    for name, rows in (("gossamer", ours), ("paper", theirs)):
        for words, lost in (("no loss", 0.0), ("one point lost", 0.01)):
            print(chosen_line(f"{name}, {words}", rows, dense, lost, 4 * count))
    print(f"- published, on full MNIST or ImageNet, so to be compared in ratio only: {PUBLISHED[net]}\n", flush=True)


def decided(by_seed: Sequence[Case], setting: Setting) -> tuple[float, list[tuple[int, str]]]:
    """The rate, by the first seed's validation, and the points of our curve: rounds and numbers of values."""
    tasks = {rate: task_of(by_seed[0], len(by_seed), setting, rate) for rate in setting.rates}
    rate, shares = setting.rates[0], setting.shares
    if len(tasks) > 1:
        middle = len(setting.densities) // 2 - 1
        rate = max(tasks, key=lambda one: float(cases.pruned(tasks[one], middle).facts["validation"]))
    if setting.chooser is not None and len(shares) > 1:
        shares = (cases.chosen(shares, partial(cases.packed, tasks[rate], setting.chooser), TOLERANCE),)
    return rate, [(rung, share) for share in shares for rung in range(setting.first, len(setting.densities))]


class Row:
    """A point of a curve: what each seed gave."""

    def __init__(self, name: str, made: Sequence[Made], by_seed: Sequence[Case]) -> None:
        self.name, self.made, self.by_seed = name, list(made), by_seed

    def mean(self, fact: str) -> float:
        """Of a fact over seeds."""
        return float(np.mean([made.facts[fact] for made in self.made]))

    def hits(self) -> np.ndarray:
        """Which test images each seed's net gets right (S, N)."""
        return np.stack([test_hits(made, case) for made, case in zip(self.made, self.by_seed, strict=True)])


def test_hits(made: Made, case: Case) -> np.ndarray:
    """Which test images a result gets right (N,) bool: its file's, or what was kept of a result without one."""
    kept = made.folder / "test-hits.npy"
    if not kept.exists():
        part = nets.data(case.data).test
        np.save(kept, training_cases.logits(made.path, part.image).argmax(1) == part.labels)
    return np.asarray(np.load(kept))


def line_of(row: Row, dense: Row, float_bytes: int) -> str:
    """A row of the table."""
    accuracy = spread(row.hits())
    seconds = f"{row.mean('cpu_s'):.0f}"
    if row is dense:
        return (
            f"| {row.name} | all | {row.mean('validation'):.2%} | {accuracy} | | {float_bytes:,} | | 1x | {seconds} |"
        )
    sizes = [made.facts["bytes"] for made in row.made]
    graph = f"{row.mean('graph'):.0f}" if "graph" in row.made[0].facts else "not counted"
    size = f"{np.mean(sizes):,.0f} ({min(sizes):,}-{max(sizes):,})"
    left = f"{row.mean('density'):.2%} | {row.mean('validation'):.2%} | {accuracy} | {change(row.hits(), dense.hits())}"
    return f"| {row.name} | {left} | {size} | {graph} | {float_bytes / np.mean(sizes):.0f}x | {seconds} |"


def chosen_line(name: str, rows: Sequence[Row], dense: Row, lost: float, float_bytes: int) -> str:
    """The smallest point that validation allows, and what it does on test images."""
    good = [row for row in rows if row.mean("validation") >= dense.mean("validation") - lost]
    if not good:
        return f"- {name}: no point of the curve"
    best = min(good, key=lambda row: row.mean("bytes"))
    size = best.mean("bytes")
    return (
        f"- {name}: {size:,.0f} bytes, **{float_bytes / size:.0f}x**; test {change(best.hits(), dense.hits())} points"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, few images and epochs: to see that all runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = 1
    return arguments


if __name__ == "__main__":
    main()
