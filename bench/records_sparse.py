"""The training bench's networks with most of their weights zero, and packed.

They come in float from `training.py`'s cache, and are trained as `gossamer train --constraint sparse:R --removal
gradual` does it, taught by labels and by the float network; but that the validation part chooses the epoch. Then the
float networks of all seeds teach what is left, whose weights are averaged. Each point begins where the one before
ended. Two files a point: floats that are left, and 16 shared values.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

import fetch
import gossamer
import records_cases
import training
import training_cases
import training_nets
from gossamer.constraints.contract import as_text
from gossamer.constraints.sparse import Sparse
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Plan, Step
from gossamer.passes.contract import run, run_plan
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.in_form import Course, train_in_form
from gossamer.training.lessons import Lessons
from gossamer.training.options import Options
from gossamer.training.spread import aims_by_layer
from gossamer.training.stages import Formed, in_stages
from gossamer.training.teacher import Voice
from gossamer.training.teaching import Distillation, Parts, Student, teach
from gossamer.training.watching import Watch
from records_files import Made, made_once, write_facts
from records_tables import change, spread
from training_cases import FULL, QUICK, Case, Effort

POINTS = {"demo": (0.95,), "resnet8": (0.9, 0.95, 0.98)}  # of all weights, zeros
EPOCHS = {"demo": (14,), "resnet8": (6, 5, 5)}
HELD_EPOCHS = {"demo": 6, "resnet8": 3}  # behind each point's removal
TEACHERS = 3  # float networks of as many seeds
SHARED_EPOCHS = 2
SAMPLES = 55_000
OPTIONS = Options(batch=128, rate=1e-2, precision="bfloat16" if training_nets.HALVED else "float32", device="cpu")
HELD_RATE = 4e-3  # of 1e-3 and this by the validation loss, demo, first seed
SHARED_RATE = 1e-3
SHARE = "codebook:16"


def print_part(net: str, seeds: int, quick: bool) -> None:
    """One network at each of its shares of zeros."""
    effort, epochs, more = (QUICK, (1,) * len(POINTS[net]), 1) if quick else (FULL, EPOCHS[net], HELD_EPOCHS[net])
    by_seed = [Case(net, seed, effort) for seed in range(seeds)]
    rows = [training.Row("float", [training_cases.floated(case) for case in by_seed])]
    points: dict[tuple[float, str], list[training_cases.Made]] = {}  # seed by seed, so that some are whole early
    for case in by_seed:
        before = Made(training_cases.floated(case).path.parent, {"cpu_s": 0.0})
        for zeros, each in zip(POINTS[net], epochs, strict=True):
            before = held(case, sparse(case, before, zeros, each), more)
            for share in ("", SHARE):
                made = packed(case, before, zeros, share)
                points.setdefault((zeros, share), []).append(training_cases.Made(made.path, made.facts))
    for (zeros, share), files in points.items():
        rows.append(training.Row(f"{zeros:.0%} zeros{', ' + share if share else ''}", files))
    print(
        f"## {net} on fashion, sparse: {seeds} seeds, {epochs} and {more} epochs of {samples_of(by_seed[0]):,} images\n"
    )
    print("| | accuracy (lowest-highest) | to float, points (95 %) | bytes | smaller | CPU s |")
    print("|---" * 6 + "|")
    size = float(np.mean([made.path.stat().st_size for made in rows[0].made]))
    for row in rows:
        print(line_of(row, rows[0], effort, size))
    print(flush=True)


def samples_of(case: Case) -> int:
    return SAMPLES if case.effort is FULL else 8_000


# --- made once


def sparse(case: Case, before: Made, zeros: float, epochs: int) -> Made:
    """Zeros that appear in the first half of training; CPU seconds are those of all points so far."""
    options = msgspec.structs.replace(OPTIONS, epochs=epochs, seed=case.seed)
    key = key_of(case, before.folder.name, zeros, repr(options))
    checkpoint = fetch.cache() / "records" / f"sparse-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.safetensors"

    def fill(folder: Path) -> None:
        begin = time.process_time()
        model = normalise(read(before.path))
        course = course_of(case, model, options, checkpoint)
        outcome, _ = in_stages(model, course, options, Formed(f"sparse:{zeros!r}", removal="gradual"), folder)
        save(outcome.model, folder / "model.onnx")
        checkpoint.unlink()
        trained = outcome.trained
        told = {"best": trained.best_epoch, "epochs": [epoch.right for epoch in trained.epochs]}
        write_facts(folder, {**told, "cpu_s": time.process_time() - begin + before.facts["cpu_s"]})

    return made_once("sparse", key, fill)


def held(case: Case, first: Made, epochs: int) -> Made:
    """Zeros stay where they are, and all float networks teach the rest."""
    options = msgspec.structs.replace(OPTIONS, epochs=epochs, seed=case.seed, rate=HELD_RATE, average=0.999)
    teachers = [training_cases.floated(replace(case, seed=seed)).path for seed in range(TEACHERS)]

    def fill(folder: Path) -> None:
        begin, model = time.process_time(), normalise(read(first.path))
        outcome = train_in_form(model, course_of(case, model, options, None, teachers), options, sparse=True)
        save(outcome.model, folder / "model.onnx")
        spent = time.process_time() - begin + first.facts["cpu_s"]
        write_facts(folder, {"best": outcome.trained.best_epoch, "cpu_s": spent})

    digests = [training_cases.digest_of(file) for file in teachers]
    return made_once("sparse-held", [first.folder.name, digests, repr(options), records_cases.recipe()], fill)


def shared(case: Case, first: Made, zeros: float, share: str) -> Made:
    """Values shared behind that, and trained; without a share what there is."""
    if not share:
        return first
    options = msgspec.structs.replace(OPTIONS, epochs=SHARED_EPOCHS, seed=case.seed, rate=SHARED_RATE)

    def fill(folder: Path) -> None:
        begin, model = time.process_time(), normalise(read(first.path))
        course = course_of(case, model, options, None)
        evidence = Evidence(course.learn.samples.first(records_cases.CALIBRATION))
        by_layer = aims_by_layer(model, Sparse(ratio=zeros), evidence)
        config = {"by_layer": {node: f"{as_text(aim)}+{share}" for node, aim in by_layer.items()}}
        step = Step("constrain_weights", {"constraint": share, "solver": "nearest", **config})
        outcome = train_in_form(run(step, model, evidence).model, course, options, sparse=True)
        save(outcome.model, folder / "model.onnx")
        spent = time.process_time() - begin + first.facts["cpu_s"]
        write_facts(folder, {"best": outcome.trained.best_epoch, "cpu_s": spent})

    return made_once("sparse-shared", [first.folder.name, share, repr(options), records_cases.recipe()], fill)


def packed(case: Case, first: Made, zeros: float, share: str) -> Made:
    """The same, folded, without dead channels, and packed: `model.goss` lies beside `model.onnx`."""
    made = shared(case, first, zeros, share)
    steps = records_cases.FINISH if share else records_cases.FINISH[1:]

    def fill(folder: Path) -> None:
        model = run_plan(Plan("finish", steps), normalise(read(made.path))).model
        records_cases.write_light(model, folder / "model.onnx")
        found = gossamer.pack_file(folder / "model.onnx", folder / "model.goss").bytes
        right = training_cases.accuracy(folder / "model.onnx", training_cases.validation(case.effort))
        write_facts(folder, {"bytes": found.archive, "validation": right, "cpu_s": made.facts["cpu_s"]})
        training_cases.tell(f"  {case.net} {case.seed} {zeros:.0%} {share}: {right:.2%}, {found.archive:,} bytes")

    key = [made.folder.name, [step.key() for step in steps], training_cases.code_digest()]
    return made_once("sparse-packed", key, fill)


def key_of(case: Case, *settings: object) -> list[object]:
    dense = training_cases.digest_of(training_cases.floated(case).path)
    code = records_cases.recipe(), Path(__file__).read_text()
    return [dense, samples_of(case), case.effort.validation, *settings, *code]


def course_of(
    case: Case, model: Model, options: Options, checkpoint: Path | None, teachers: Sequence[Path] = ()
) -> Course:
    """As `train_model` makes it, with the validation part to choose by; without teachers its float network is one."""
    images = training_nets.data().train.take(slice(samples_of(case))), training_cases.validation(case.effort)
    parts = [records_cases.samples_of(part, model) for part in images]
    files = teachers or (training_cases.floated(case).path,)
    said = [[Voice(records_cases.said_once(file, part)) for file in files] for part in images]
    watch = Watch(say=partial(say, f"{case.net} {case.seed}"))
    student = Student(model, open_session(model, 1))
    teaching = [
        teach(student, Parts(part, part, part, part, True), voices, Distillation(), options, watch.say)
        for part, voices in zip(parts, said, strict=True)
    ]
    lessons = Lessons(parts[0], teaching[0].learn), Lessons(parts[1], teaching[1].choose)
    return Course(teaching[0].losses, (), *lessons, checkpoint, watch)


def say(name: str, line: str) -> None:
    training_cases.tell(f"{name}: {line}")


def line_of(row: training.Row, against: training.Row, effort: Effort, float_bytes: float) -> str:
    """A row of the table."""
    mine, base = (training.right(each, effort) for each in (row, against))
    sizes: Sequence[float] = [made.facts.get("bytes", float_bytes) for made in row.made]
    size, seconds = float(np.mean(sizes)), np.mean([made.facts["cpu_s"] for made in row.made])
    points = "" if row is against else change(mine, base)
    return f"| {row.name} | {spread(mine)} | {points} | {size:,.0f} | {float_bytes / size:.0f}x | {seconds:.0f} |"
