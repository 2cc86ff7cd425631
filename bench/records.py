"""Deep Compression's records in real bytes: pruned, shared, trained and packed, beside the paper's own pipeline.

    python bench/records.py [--parts digits:lenet300,digits:lenet5,...,sparse:demo,sparse:resnet8] [--seeds 3]

- gossamer: from the dense net, rounds of removal and of training behind each; each layer's share of zeros is found by
  one score over all layers. At each point of the curve values become shared, tables and biases are trained and rounded,
  dead channels go, and the file is packed: all bytes of the `.goss` are counted.
- paper: Deep Compression as the paper describes it (`records_paper.py`), from the same dense nets, with the same
  images and epochs; its graph is not counted.
- sparse: networks of the training bench at 90 to 98 % zeros (`records_sparse.py`).

Settings are chosen on validation images with the first seed. "No loss" is the smallest point, for all seeds the same,
whose validation accuracy is not below the dense net's; the line says what it then does on test images. Differences
are paired over these, of which each counts with its mean over seeds. `--quick` is to see that all runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
from records_tables import change, spread

PARTS = "digits:lenet300,digits:lenet5,fashion:lenet300,fashion:lenet5,fashion:vgg,sparse:demo,sparse:resnet8"
EFFORTS = {
    ("lenet300", "digits"): Effort(40, 15, 10),
    ("lenet5", "digits"): Effort(12, 5, 4),
    ("lenet300", "fashion"): Effort(10, 2, 1, 20_000),
    ("lenet5", "fashion"): Effort(8, 1, 1, 10_000),
    ("vgg", "fashion"): Effort(5, 1, 1, 10_000),
}
QUICK = Effort(2, 1, 1, 2_000)
DENSITIES = {  # of all weights, round by round
    "lenet300": (0.2, 0.09, 0.045, 0.028, 0.018, 0.012, 0.008, 0.0055),
    "lenet5": (0.15, 0.06, 0.025, 0.012, 0.008, 0.0055, 0.0038, 0.0026),
    "vgg": (0.1, 0.04, 0.016, 0.008, 0.004),
}
FIRST_POINT = {"lenet300": 2, "lenet5": 1, "vgg": 2}  # of the curve, by rounds before it
RATES = {"lenet300": (3e-3, 1e-2), "lenet5": (3e-3, 1e-2), "vgg": (1e-2,)}  # to choose from
SHARE_RATE = 3e-3
LENETS = ("codebook:16", "codebook:8", "codebook:4", "codebook:3")
SHARES = {"lenet300": LENETS, "lenet5": LENETS, "vgg": ("codebook:8",)}
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
            print_part(net, data, QUICK if arguments.quick else EFFORTS[net, data], arguments.seeds)


def task_of(case: Case, rate: float) -> Task:
    """A dense network with what it is made small by."""
    effort = case.effort
    return Task(
        f"{case.net} {case.data} {case.seed}",
        nets.dense(case).path,
        nets.learned(case),
        nets.data(case.data).validation,
        DENSITIES[case.net],
        (rate, SHARE_RATE),
        (effort.prune, effort.share),
        case.seed,
    )


def print_part(net: str, data: str, effort: Effort, seeds: int) -> None:
    """One network on one data set, both pipelines."""
    by_seed = [Case(net, data, seed, effort) for seed in range(seeds)]
    rungs, middle = range(FIRST_POINT[net], len(DENSITIES[net])), len(DENSITIES[net]) // 2 - 1
    rate = max(RATES[net], key=lambda one: cases.pruned(task_of(by_seed[0], one), middle).facts["validation"])
    share = cases.chosen(SHARES[net], partial(cases.packed, task_of(by_seed[0], rate), rungs[-3]), TOLERANCE)
    count = sum(p.numel() for p in nets.build(net, 0).parameters())
    print(f"## {net} on {data}: {count:,} weights, {seeds} seeds\n\n{effort}; rate {rate}, {share}\n")
    dense = Row("dense, float32", [nets.dense(case) for case in by_seed], by_seed)
    curves = [
        ([cases.packed(task_of(case, rate), rung, share) for rung in rungs], records_paper.points(case))
        for case in by_seed
    ]  # seed by seed, so that a bench that is cut short has whole ones in its cache
    points, papers = (zip(*each, strict=True) for each in zip(*curves, strict=True))
    ours = [Row("**gossamer**", point, by_seed) for point in points]
    theirs = [Row("paper", point, by_seed) for point in papers]
    print(HEAD + "|---" * HEAD.count(" |") + "|")
    for row in (dense, *ours, *theirs):
        print(line_of(row, dense, 4 * count))
    print()
    for name, rows in (("gossamer", ours), ("paper", theirs)):
        for words, lost in (("no loss", 0.0), ("one point lost", 0.01)):
            print(chosen_line(f"{name}, {words}", rows, dense, lost, 4 * count))
    print(f"- published, on full MNIST or ImageNet, so to be compared in ratio only: {PUBLISHED[net]}\n", flush=True)


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
