"""EfficientNet-Lite0 with weights in 4 bits, trained without labels: what of the lost agreement comes back.

The network in float teaches it, section by section (`gossamer.training.sections`), on pictures that `scenes` puts
together from Tux Paint's 286 cut-outs without a label. Beside it, what these do without any gradient: every
layer is solved behind those before it, towards what it gives in the float network (`quantize_static`, sequential).
Judged on the 150 others, as they are and mirrored, which no tool saw; agreement is with the float network's best class.
Pictures, sections and rate were chosen on 60 of the 286, which training did not see then; all 286 train here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import gallery
import judge
import scenes
import stamps
from gossamer.errors import GossamerError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.intervals import student_t
from gossamer.nouns.model import Model, save
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN
from gossamer.training.hints import features
from gossamer.training.holding_out import hold_out
from gossamer.training.in_form import Course, train_in_form
from gossamer.training.lessons import Lessons
from gossamer.training.losses.soft_labels import SoftLabels
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.sections import sections, train_section, with_weights
from gossamer.training.teacher import from_model
from gossamer.training.watching import Watch
from training_cases import Made, code_digest, digest_of, made_once, quantized_by, tell, write_facts

BITS = 4
CALIBRATION = 64
SIDES = ((112, 56), (28,), (14,), (7,))  # of the squares that the blocks of a section end in
PICTURES, QUICK_PICTURES = 1600, 40
BATCH, RATE, AVERAGE = 4, 3e-3, 0.98
TEMPERATURE = 2.0
IN_ORDER = "**layer by layer, in sequence**"


def print_table(quick: bool, seconds: float) -> None:
    """Float, post-training, trained."""
    work = gallery.work("lite0")
    judged = np.load(work.folder / "judge.npz")["image"]
    judged = judged[:30] if quick else np.concatenate([judged, judged[..., ::-1]])
    print(f"## EfficientNet-Lite0, W{BITS}A8, without labels: judged on {len(judged)} cut-outs\n")
    static = Step("quantize_static", {"weight_bits": BITS, "rounding": "second_order"})
    calibration = np.load(work.data)["image"][:CALIBRATION]
    rows: dict[str, Made] = {"float": Made(work.model, {})}
    try:
        rows["post-training"] = quantized_by(work.model, (static, Step("correct_bias")), calibration)
        in_order = Step(static.method, {**static.config, "sequential": True})
        every = np.load(work.data)["image"][: CALIBRATION if quick else None]
        rows[IN_ORDER] = quantized_by(work.model, (in_order, Step("correct_bias")), beheld(every))
        rows["**by section, by gradients**"] = trained(rows["post-training"].path, work, quick)
    except GossamerError as error:
        print(f"failed: {error}\n")
        return
    times = judge.timings({name: made.path for name, made in rows.items()}, {"image": judged[:1]}, seconds)
    wanted = judge.outputs(work.model, {"image": judged})
    print("| | agreement | SNR dB | ms | latency, share of float (10-90 %) | faster | CPU s |\n" + "|---" * 7 + "|")
    agree: dict[str, np.ndarray] = {}
    for name, made in rows.items():
        got = judge.outputs(made.path, {"image": judged})
        agree[name] = (got.argmax(1) == wanted.argmax(1)).astype(float)
        share, noise = f"{agree[name].mean():.2%}", judge.snr_db(got, wanted)
        print(f"| {name} | {share} | {noise:.1f} | {times[name]} | {made.facts.get('cpu_s', 0):.0f} |")
    lost = 1 - agree["post-training"].mean()
    for name in [name for name in rows if name not in ("float", "post-training")]:
        gained_N = agree[name] - agree["post-training"]
        low, high = student_t(
            gained_N if quick else gained_N.reshape(2, -1).mean(0)
        )  # a mirror image is no other picture
        if lost > 0:
            back = f"{gained_N.mean() / lost:.0%} (95 %: {low / lost:.0%} to {high / lost:.0%})"
            print(f"\n{name}: {back} of the agreement that post-training quantization loses.", flush=True)
    print()


def beheld(image_NCHW: np.ndarray) -> np.ndarray:
    """The cut-outs, their mirror images, and as many pictures put together from them, in any order."""
    made = [stamps.as_input(picture) for picture in scenes.scenes(stamps.unlabelled(), len(image_NCHW), 0)]
    every = np.concatenate([image_NCHW, image_NCHW[..., ::-1], np.stack(made)])
    return np.ascontiguousarray(every[np.random.default_rng(0).permutation(len(every))])


def trained(source: Path, work: gallery.Work, quick: bool) -> Made:
    """By the float network alone, section by section; each picture is seen once by each."""
    options = Options(epochs=1, batch=BATCH, rate=RATE, average=AVERAGE, device="cpu")
    count = QUICK_PICTURES if quick else PICTURES

    def fill(folder: Path) -> None:
        begin = time.process_time()
        made = scenes.scenes(stamps.unlabelled(), count, options.seed)
        images = np.stack([stamps.as_input(picture) for picture in made])
        teacher = run_plan(CLEAN, normalise(read(work.model))).model
        save(by_section(replace(read(source), reference=teacher), teacher, images, options), folder / "model.onnx")
        write_facts(folder, {"cpu_s": time.process_time() - begin})

    code = [Path(str(module.__file__)).read_text() for module in (scenes, stamps)]
    return made_once("lite0", [digest_of(source), SIDES, count, repr(options), *code, code_digest()], fill)


def by_section(student: Model, teacher: Model, image_NCHW: np.ndarray, options: Options) -> Model:
    """As `train_in_sections`, but that sections end where the pictures become smaller."""
    (name,) = (str(value.name) for value in student.ir.graph.inputs)
    (choose,), learn = hold_out(samples_from_arrays({name: image_NCHW}), options.seed)
    logits = from_model(teacher, [str(value.name) for value in teacher.ir.graph.outputs])
    lessons = Lessons(learn, logits), Lessons(choose, logits)
    course = Course((WeightedLoss(SoftLabels(TEMPERATURE)),), (), *lessons, None, Watch(say=tell))
    shared = {str(value.name) for node in student.ir.graph for value in node.outputs}
    clipped = {str(node.outputs[0].name) for node in teacher.ir.graph if node.op_type == "Clip"}
    ends = [end for end in features(teacher, {name: image_NCHW[:1]}) if end.name in shared - clipped]
    *followed, last = sections(student, [[end.name for end in ends if end.positions[0] in sides] for sides in SIDES])
    for section in followed:
        student = with_weights(student, train_section(student, teacher, section, course, options).model)
    return train_in_form(student, course, options, last.nodes).model
