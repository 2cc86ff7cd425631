"""Deep Compression's records in real bytes: pruned, shared, trained and packed, beside the paper's own pipeline.

    python bench/records.py [--parts digits:lenet300,digits:lenet5,fashion:lenet300,fashion:lenet5,vgg] [--seeds 3]

- gossamer: from the dense net, rounds of removal at the least loss and of training behind each; each layer's share of
  zeros is found by one score over all layers. At each point of the curve values become shared (`sparse+codebook` at a
  rate), tables and biases are trained, floats rounded, and the file packed: all bytes of the `.goss` are counted.
- paper: Deep Compression as the paper describes it (`records_paper.py`), from the same dense nets, with the same
  images and epochs; its graph is not counted.

Settings are chosen on validation images with the first seed. "No loss" is the smallest point, for all seeds the same,
whose validation accuracy is not below the dense net's; the table says what it then does on test images. Differences
are paired over these, of which each counts with its mean over seeds. `--quick` is to see that all runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

import gossamer
import judge
import records_nets as nets
import records_paper
from gossamer.graph.edit import constant
from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.intervals import student_t
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.passes.contract import run
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.lessons import Lessons
from gossamer.training.loop import Trained, train
from gossamer.training.lower import lower
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil
from gossamer.training.run import Job
from gossamer.training.teaching import Distillation, Parts, Student, teach
from gossamer.training.watching import Watch
from gossamer.training.write_back import write_back
from gossamer.training.zeros import keep_zeros
from records_nets import Case, Effort, Made, made_once, write_facts
from training_cases import code_digest, tell
from training_nets import Part

PARTS = "digits:lenet300,digits:lenet5,fashion:lenet300,fashion:lenet5"
EFFORTS = {
    ("lenet300", "digits"): Effort(40, 20, 12),
    ("lenet5", "digits"): Effort(16, 5, 4),
    ("lenet300", "fashion"): Effort(10, 2, 2),
    ("lenet5", "fashion"): Effort(6, 1, 1),
    ("vgg", "fashion"): Effort(5, 1, 1),
}
QUICK = Effort(2, 1, 1, 2_000)
DENSITIES = {  # of all weights, round by round; points of the curve from the third on
    "lenet300": (0.2, 0.08, 0.045, 0.025, 0.015, 0.009, 0.006),
    "lenet5": (0.15, 0.06, 0.03, 0.015, 0.008, 0.005, 0.003),
    "vgg": (0.15, 0.06, 0.03, 0.015, 0.008, 0.005, 0.003),
}
FIRST_POINT = 2
ALLOCATIONS = ("score", "uniform")
SHARES = ("codebook:16", "codebook:8", "codebook:4", "codebook:16:rate=2e-6")
CALIBRATION = 1_000
PRUNE_RATE, SHARE_RATE = 2e-3, 1e-3
TOLERANCE = 0.0025  # of validation accuracy
FEW, HELD, MOST = 0.3, 0.5, 0.999  # zeros of a layer: fewer are none; those held in training; at most
FLOAT_BITS = 6  # of biases and tables
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
        data, _, net = part.partition(":") if ":" in part else ("fashion", "", part)
        print_part(net, data, QUICK if arguments.quick else EFFORTS[net, data], arguments.seeds)


# --- the pipeline


def pruned(case: Case, allocation: str, rung: int) -> Made:
    """So many rounds of removal, each trained."""
    densities = DENSITIES[case.net][: rung + 1]
    source = nets.dense(case) if rung == 0 else pruned(case, allocation, rung - 1)

    def fill(folder: Path) -> None:
        begin, model = time.process_time(), normalise(read(source.path))
        evidence = evidence_of(case)
        ratios = RATIOS[allocation](model, evidence, densities[-1])
        config = {"constraint": "sparse:0.5", "by_layer": {node: f"sparse:{r:.5f}" for node, r in ratios.items()}}
        sparse = run(Step("constrain_weights", config), model, evidence).model
        solve_s = time.process_time() - begin
        result, trained = taught(case, sparse, PRUNE_RATE, case.effort.prune)
        save(result, folder / "model.onnx")
        spent = {"cpu_s": time.process_time() - begin, "solve_s": solve_s, "best": trained.best_epoch}
        write_facts(folder, {**spent, "ratios": ratios, "validation": validated(folder / "model.onnx", case)})
        tell(f"{case.net} {case.data} {case.seed} {allocation} {densities[-1]}: {(folder / 'facts.json').read_text()}")

    return made_once("pruned", [*key(case), allocation, densities, PRUNE_RATE], fill)


def shared(case: Case, allocation: str, rung: int, share: str) -> Made:
    """Values shared behind so many rounds, trained, rounded and packed."""
    source = pruned(case, allocation, rung)

    def fill(folder: Path) -> None:
        begin, model = time.process_time(), normalise(read(source.path))
        zeros = {uses[0].node.name or "": share_of_zeros(uses[0].value) for uses in weights_of(model).values()}
        config = {"constraint": share, "by_layer": {node: f"sparse:{r:.6f}+{share}" for node, r in zeros.items()}}
        coded = run(Step("constrain_weights", config), model, evidence_of(case)).model
        solve_s = time.process_time() - begin
        result, trained = taught(case, coded, SHARE_RATE, case.effort.share)
        result = run(Step("round_floats", {"bits": FLOAT_BITS}), result).model
        nets.write_light(result, folder / "model.onnx")
        facts = gossamer.pack_file(folder / "model.onnx", folder / "model.goss")
        told = {"bytes": facts.bytes.archive, "graph": facts.bytes.graph, "solve_s": solve_s}
        told |= {"cpu_s": time.process_time() - begin, "best": trained.best_epoch}
        write_facts(folder, {**told, "validation": validated(folder / "model.onnx", case)})
        tell(f"  {share} at {DENSITIES[case.net][rung]}: {(folder / 'facts.json').read_text()}")

    densities = DENSITIES[case.net][: rung + 1]
    return made_once("shared", [*key(case), allocation, densities, share, PRUNE_RATE, SHARE_RATE, FLOAT_BITS], fill)


def key(case: Case) -> list[object]:
    """What everything made by the pipeline depends on."""
    return [case.net, case.data, case.seed, repr(case.effort), nets.nets_script(), code_digest()]


def taught(case: Case, model: Model, rate: float, epochs: int) -> tuple[Model, Trained]:
    """As `train_model` trains, by labels and the dense net, but that the validation part chooses the epoch."""
    learn, choose = (samples_of(part, model) for part in (nets.learned(case), nets.data(case.data).validation))
    options = Options(epochs=epochs, batch=nets.BATCH, rate=rate, seed=case.seed, device="cpu")
    student = Student(model, open_session(model, 1))
    lessons = [
        teach(
            student, Parts(part, part, part, part, True), nets.dense(case).path, Distillation(), options, lambda _: None
        )
        for part in (learn, choose)
    ]
    module = lower(lessons[0].graph)
    keep_zeros(module, lessons[0].graph)
    data, validation = Lessons(learn, lessons[0].learn), Lessons(choose, lessons[1].choose)
    trained = train(Job(Pupil(module, lessons[0].losses), data, validation, options, watch=Watch(say=lambda _: None)))
    return write_back(module, lessons[0].graph), trained


def samples_of(part: Part, model: Model) -> Samples:
    return samples_from_arrays({next(iter(model.ir.graph.inputs)).name or "": part.image}, part.labels)


def evidence_of(case: Case) -> Evidence:
    return Evidence(samples_from_arrays({"image": nets.learned(case).image[:CALIBRATION]}))


def validated(path: Path, case: Case) -> float:
    return nets.accuracy_of(path, nets.data(case.data).validation)


# --- each layer's share of zeros


def weights_of(model: Model) -> dict[str, tuple[WeightMatrix, ...]]:
    return matrices_by_weight(model.ir.graph)


def share_of_zeros(value: ir.Value) -> float:
    return float(np.mean(np.asarray(constant(value)) == 0))


def by_score(model: Model, evidence: Evidence, density: float) -> dict[str, float]:
    """One score over all layers: LAMP's (Lee et al. 2021), a weight's energy over that of all in its layer that are not
    less; with the energy that its input brings, and not of the weight alone."""
    found = weights_of(model)
    moments = evidence.moments(model, list(found))
    scores = {}
    for name, (use, *_) in found.items():
        h = moments[name].h_GKK
        energy = use.to_matrix(np.asarray(constant(use.value))).astype(np.float64) ** 2
        energy *= 1 if h is None else np.diagonal(h, axis1=1, axis2=2)[:, None, :]
        ordered = np.sort(energy.reshape(-1))
        scores[use.node.name or ""] = ordered / np.maximum(np.cumsum(ordered[::-1])[::-1], 1e-30)
    every = np.concatenate(list(scores.values()))
    limit = np.partition(every, -round(density * every.size))[-round(density * every.size)]
    return {node: _holdable(float(np.mean(score < limit))) for node, score in scores.items()}


def _holdable(ratio: float) -> float:
    """Training holds the zeros of layers that are half zero at least."""
    return 0.0 if ratio < FEW else min(max(ratio, HELD), MOST)


def uniform(model: Model, evidence: Evidence, density: float) -> dict[str, float]:
    """The same density for all layers, and its square root for the last."""
    nodes = [uses[0].node.name or "" for uses in weights_of(model).values()]
    return {node: _holdable(1 - (density**0.5 if node == nodes[-1] else density)) for node in nodes}


RATIOS = {"score": by_score, "uniform": uniform}


# --- tables


class Row:
    """A point of a curve: what each seed gave."""

    def __init__(self, name: str, made: Sequence[Made]) -> None:
        self.name, self.made = name, list(made)

    def mean(self, fact: str) -> float:
        """Of a fact over seeds."""
        return float(np.mean([made.facts[fact] for made in self.made]))


def print_part(net: str, data: str, effort: Effort, seeds: int) -> None:
    """One network on one data set, both pipelines."""
    cases = [Case(net, data, seed, effort) for seed in range(seeds)]
    count = sum(p.numel() for p in nets.build(net, 0).parameters())
    chosen = best_allocation(cases[0])
    share = best_share(cases[0], chosen)
    print(f"## {net} on {data}: {count:,} weights, {seeds} seeds\n\n{effort}; {chosen}, {share}\n")
    dense = Row("dense, float32", [nets.dense(case) for case in cases])
    rungs = range(FIRST_POINT, len(DENSITIES[net]))
    curves = [
        ([shared(case, chosen, rung, share) for rung in rungs], records_paper.points(case)) for case in cases
    ]  # seed by seed, so that a bench that is cut short has whole ones in its cache
    points, papers = (zip(*each, strict=True) for each in zip(*curves, strict=True))
    ours = [Row(f"**gossamer**, {DENSITIES[net][rung]:.1%}", point) for rung, point in zip(rungs, points, strict=True)]
    theirs = [Row(f"paper, {np.mean([made.facts['density'] for made in point]):.1%}", point) for point in papers]
    print("| weights | validation | test (lowest-highest) | to dense, points (95 %) | bytes | graph | ratio | CPU s |")
    print("|---" * 8 + "|")
    for row in (dense, *ours, *theirs):
        print(line_of(row, dense, cases, 4 * count))
    print()
    for name, rows in (("gossamer", ours), ("paper", theirs)):
        for words, lost in (("no loss", 0.0), ("one point lost", 0.01)):
            print(chosen_line(f"{name}, {words}", rows, dense, lost, cases, 4 * count))
    print(f"- published, on full MNIST or ImageNet, so to be compared in ratio only: {PUBLISHED[net]}\n", flush=True)


def best_allocation(case: Case) -> str:
    """The one that validates best at the first point."""
    return max(ALLOCATIONS, key=lambda one: pruned(case, one, FIRST_POINT).facts["validation"])


def best_share(case: Case, allocation: str) -> str:
    """The fewest bytes among those that lose no more than a quarter of a point to the first, late in the walk."""
    made = {share: shared(case, allocation, len(DENSITIES[case.net]) - 3, share).facts for share in SHARES}
    floor = made[SHARES[0]]["validation"] - TOLERANCE
    return min((share for share in SHARES if made[share]["validation"] >= floor), key=lambda one: made[one]["bytes"])


def line_of(row: Row, dense: Row, cases: Sequence[Case], float_bytes: int) -> str:
    """A row of the table."""
    each = hits(row, cases).mean(1)
    spread = f"{each.mean():.2%} ({each.min():.2%}-{each.max():.2%})"
    seconds = f"{row.mean('cpu_s'):.0f}"
    if row is dense:
        return f"| {row.name} | {row.mean('validation'):.2%} | {spread} | | {float_bytes:,} | | 1x | {seconds} |"
    sizes = [made.facts["bytes"] for made in row.made]
    graph = f"{row.mean('graph'):.0f}" if "graph" in row.made[0].facts else "not counted"
    size = f"{np.mean(sizes):,.0f} ({min(sizes):,}-{max(sizes):,})"
    left = f"{row.mean('validation'):.2%} | {spread} | {change(row, dense, cases)} | {size} | {graph}"
    return f"| {row.name} | {left} | {float_bytes / np.mean(sizes):.0f}x | {seconds} |"


def chosen_line(
    name: str, rows: Sequence[Row], dense: Row, lost: float, cases: Sequence[Case], float_bytes: int
) -> str:
    """The smallest point that validation allows, and what it does on test images."""
    good = [row for row in rows if row.mean("validation") >= dense.mean("validation") - lost]
    if not good:
        return f"- {name}: no point of the curve"
    best = min(good, key=lambda row: row.mean("bytes"))
    size = best.mean("bytes")
    return f"- {name}: {size:,.0f} bytes, **{float_bytes / size:.0f}x**; test {change(best, dense, cases)} points"


def change(row: Row, dense: Row, cases: Sequence[Case]) -> str:
    """To the dense nets, mean over seeds, with the interval of a test image's mean."""
    change_N = (hits(row, cases).astype(float) - hits(dense, cases)).mean(0)
    if not np.ptp(change_N):
        return f"{100 * change_N[0]:+.2f}"
    low, high = student_t(change_N)
    return f"{100 * change_N.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def hits(row: Row, cases: Sequence[Case]) -> np.ndarray:
    """Which test images each seed's net gets right (S, N)."""
    return np.stack([nets.test_hits(made, case) for made, case in zip(row.made, cases, strict=True)])


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
