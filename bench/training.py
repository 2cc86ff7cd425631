"""What training gains: quantization-aware training, students, torchao beside it; a published network without labels.

    python bench/training.py [--parts nets,peer,students,losses,lite0] [--nets demo,resnet8] [--bits 8,4,3,2]

- nets: Fashion-MNIST (55,000 images train, 5,000 choose epochs and rates, 10,000 are looked at once), networks trained
  from each seed; post-training quantization in so many bits of weights with activations in 8, and the same files
  trained on (`gossamer train`), taught by the float network, without labels; the epoch with the least loss counts.
- peer: torchao's PT2E quantization-aware training from the same float networks: same images and their labels besides,
  same soft labels, optimizer, epochs and rates to choose from. Its files are what its own export gives, in onnxruntime.
- students: a ResNet-8 of half the width, trained from nothing: alone, and with each loss from the larger one.
- losses: the same student by a MobileNet-like teacher, each loss of distillation, sorted (`training_losses.py`).
- lite0: EfficientNet-Lite0 with weights in 4 bits, trained on Tux Paint's unlabelled cut-outs by its float self.

Rates are chosen with the first seed, for networks at 4 bits, and serve all bits and seeds. All accuracies are of files
in onnxruntime. Differences are paired over test images, of which each counts with its mean over seeds. `--quick` is to
see that all runs; its figures say nothing.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

import judge
import training_lite0
import training_losses
import training_nets
from gossamer.errors import GossamerError
from records_tables import change, spread
from training_cases import (
    BATCH,
    FULL,
    QUICK,
    Case,
    Effort,
    Made,
    best_rate,
    floated,
    hits,
    our_steps,
    quantized,
    student,
    tell,
    tuned,
)
from training_peer_runs import PEER_PACKAGES, peer_steps, peer_tuned

RATE_BITS = 4  # rates are chosen here, where most is to be learned again
PEER_BITS = (8, 4)
TEACHER = "resnet8"
LOSSES = {
    "soft labels": ("soft_labels",),
    "features": ("hard_labels", "features"),
    "soft labels, features": ("soft_labels", "features"),
}
HEAD = "| | accuracy (lowest-highest) | {against}, points (95 %) | ms | share of the first (10-90 %) | faster | CPU s |"


@dataclass(frozen=True)
class Row:
    """One method: its files, one a seed; or why there are none."""

    name: str
    made: list[Made] = field(default_factory=list)
    failed: str = ""


def main() -> None:
    """The parts that are asked for."""
    arguments = parsed()
    effort, parts = (QUICK if arguments.quick else FULL), arguments.parts.split(",")
    versions = dict(package.split("==") for package in PEER_PACKAGES[:2])
    words = f"--parts {arguments.parts} --nets {arguments.nets} --bits {arguments.bits} --seeds {arguments.seeds}"
    print(judge.header(f"python bench/training.py {words}{' --quick' if arguments.quick else ''}", versions))
    print(f"{effort}\n", flush=True)
    if {"nets", "peer"} & set(parts):
        for net in arguments.nets.split(","):
            print_net(net, effort, parts, arguments)
    if "students" in parts:
        print_students(effort, arguments)
    if "losses" in parts:
        training_losses.print_table(effort, arguments.seeds, arguments.quick)
    if "lite0" in parts:
        training_lite0.print_table(arguments.quick, arguments.seconds)


def print_net(net: str, effort: Effort, parts: Sequence[str], arguments: argparse.Namespace) -> None:
    """One network by all methods, and what a step takes."""
    cases = [Case(net, seed, effort) for seed in range(arguments.seeds)]
    bits = [int(word) for word in arguments.bits.split(",")]
    original = Row("float", [floated(case) for case in cases])
    size = sum(p.numel() for p in training_nets.build(net, 0).parameters() if p.dim() > 1)
    print(f"## {net}: {size:,} weights, {len(cases)} seeds\n")
    rows = [original]
    rows += list(ours(cases, bits)) if "nets" in parts else []
    rows += list(torchao(cases, [b for b in PEER_BITS if b in bits])) if "peer" in parts else []
    print_rows(rows, original, "difference to float", effort, arguments.seconds)
    if "peer" in parts:
        print_steps(cases[0], width_of(bits))


def ours(cases: Sequence[Case], bits: Sequence[int]) -> Iterator[Row]:
    """Post-training and trained, in each width of weights."""
    rate = attempt(lambda: best_rate(partial(tuned, cases[0], width_of(bits)), cases[0].effort.tune_rates))
    for width in bits:
        yield row(f"W{width}A8 post-training", [partial(quantized, case, width) for case in cases])
        if isinstance(rate, str):
            yield Row(f"**W{width}A8 trained**", failed=rate)
        else:
            made = [partial(tuned, case, width, rate) for case in cases]
            yield row(f"**W{width}A8 trained**, rate {rate:g}", made)


def torchao(cases: Sequence[Case], bits: Sequence[int]) -> Iterator[Row]:
    """The peer, in the widths that its quantizer is asked for."""
    rate = attempt(lambda: best_rate(partial(peer_tuned, cases[0], width_of(bits)), cases[0].effort.tune_rates))
    for width in bits:
        if isinstance(rate, str):
            yield Row(f"torchao W{width}A8", failed=rate)
        else:
            made = [partial(peer_tuned, case, width, rate) for case in cases]
            yield row(f"torchao W{width}A8, rate {rate:g}", made)


def width_of(bits: Sequence[int]) -> int:
    """The width that rates are chosen at."""
    return RATE_BITS if RATE_BITS in bits else bits[0]


def print_students(effort: Effort, arguments: argparse.Namespace) -> None:
    """A student alone and with each loss."""
    seeds = range(arguments.seeds)
    teachers = [floated(Case(TEACHER, seed, effort)) for seed in seeds]
    cases = [Case("student", seed, effort) for seed in seeds]
    rate = best_rate(lambda rate: student(cases[0], ("hard_labels",), rate, None), effort.student_rates)
    alone = row("student alone", [partial(student, case, ("hard_labels",), rate, None) for case in cases])
    taught = [
        row(
            f"**student, {name}**",
            [partial(student, case, losses, rate, t.path) for case, t in zip(cases, teachers, strict=True)],
        )
        for name, losses in LOSSES.items()
    ]
    print(f"## Students of {TEACHER}: a quarter of its weights, {len(cases)} seeds, rate {rate:g}\n")
    print_rows(
        [Row("teacher", teachers), alone, *taught], alone, "gain over the student alone", effort, arguments.seconds
    )


# --- rows


def attempt(choose: Callable[[], float]) -> float | str:
    """A rate, or why there is none."""
    try:
        return choose()
    except (GossamerError, subprocess.SubprocessError) as error:
        return str(error)


def row(name: str, makers: Sequence[Callable[[], Made]]) -> Row:
    """Every seed's file, or why one is missing."""
    tell(f"-- {name}")
    try:
        return Row(name, [make() for make in makers])
    except (GossamerError, subprocess.SubprocessError) as error:
        return Row(name, failed=str(error).replace("|", "/"))


def print_rows(rows: Sequence[Row], against: Row, words: str, effort: Effort, seconds: float) -> None:
    """The table; latency is of the first seed's files, in one race."""
    files = {row.name: row.made[0].path for row in rows if row.made}
    times = judge.timings(files, {"image": training_nets.data().validation.image[:1]}, seconds)
    print(HEAD.format(against=words))
    print("|---" * 7 + "|")
    base = right(against, effort) if against.made else None
    for row in rows:
        if not row.made:
            print(f"| {row.name} | failed: {row.failed} | | | | | |")
            continue
        mine = right(row, effort)
        points = "" if row is against or base is None else change(mine, base)
        seconds_each = np.mean([made.facts.get("cpu_s", 0.0) for made in row.made])
        print(f"| {row.name} | {spread(mine)} | {points} | {times[row.name]} | {seconds_each:.0f} |")
    print(flush=True)


def right(row: Row, effort: Effort) -> np.ndarray:
    """Which test images the files of a row get right (S, N)."""
    return np.stack([hits(made, effort) for made in row.made])


# --- steps


def print_steps(case: Case, bits: int) -> None:
    """What a step of training takes, beside a step of the float network with its norms, in turns in one process."""
    print(f"| step of {BATCH} images of {case.net}, W{bits}A8 | float, ms | quantization-aware, ms | ratio |")
    print("|---|---|---|---|")
    for name, measured in (("**gossamer**", our_steps), ("torchao", peer_steps)):
        try:
            found = measured(case, bits)
        except (GossamerError, subprocess.SubprocessError) as error:
            print(f"| {name} | failed: {error} | | |")
            continue
        ratio = found["qat_ms"] / found["float_ms"]
        print(f"| {name} | {found['float_ms']:.0f} | {found['qat_ms']:.0f} | {ratio:.2f}x |")
    print(flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="nets,peer,students,losses,lite0")
    parser.add_argument("--nets", default="demo,resnet8", help=f"of {', '.join(training_nets.NETS)}")
    parser.add_argument("--bits", default="8,4,3,2", help="of weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of racing, for each table")
    parser.add_argument("--quick", action="store_true", help="one seed, few images and epochs: to see that all runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.seconds = 1, 2.0
    return arguments


if __name__ == "__main__":
    main()
