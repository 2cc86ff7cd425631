"""EfficientNet-Lite0 with weights in 4 bits, trained without labels: what of the lost agreement comes back.

The network in float teaches it on Tux Paint's 286 cut-outs without a label, each as it is, mirrored and moved; judged
on the 150 others, as they are and mirrored, which no tool saw. Agreement is with the float network's best class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import gallery
import judge
from gossamer.errors import GossamerError
from gossamer.measuring.intervals import student_t
from gossamer.nouns.plan import Step
from gossamer.training.options import Options
from training_cases import Made, once, quantized_by, trained_by

BITS = 4
CALIBRATION = 64
MOVED_PIXELS = 12
EPOCHS, BATCH, RATE, AVERAGE = 3, 16, 3e-4, 0.99  # few pictures: small steps, and the mean of many
QUICK_SAMPLES, QUICK_EPOCHS = 40, 1


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
        rows["**trained**"] = trained(rows["post-training"].path, work, quick)
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
    gained_N, lost = agree["**trained**"] - agree["post-training"], 1 - agree["post-training"].mean()
    low, high = student_t(gained_N)
    if lost > 0:
        back = f"{gained_N.mean() / lost:.0%} (95 %: {low / lost:.0%} to {high / lost:.0%})"
        print(f"\nOf the agreement that post-training quantization loses, training brings back {back}.\n", flush=True)


def trained(source: Path, work: gallery.Work, quick: bool) -> Made:
    """By soft labels of the float network alone."""
    epochs = QUICK_EPOCHS if quick else EPOCHS
    options = Options(epochs=epochs, batch=BATCH, rate=RATE, average=AVERAGE, device="cpu")
    samples = cutouts(work, QUICK_SAMPLES if quick else None)
    return trained_by("lite0", source, samples, options, teacher=work.model)


def cutouts(work: gallery.Work, count: int | None) -> Path:
    """The unlabelled cut-outs as a file: as they are, mirrored, and either moved by some pixels over the white."""

    def fill(folder: Path) -> None:
        given = np.load(work.data)["image"][:count]
        rng = np.random.default_rng(0)
        mirrored = given[..., ::-1]
        moved = []
        for image_CHW in np.concatenate([given, mirrored]) if count is None else ():
            shift = rng.integers(-MOVED_PIXELS, MOVED_PIXELS + 1, 2)
            moved.append(np.roll(image_CHW, shift, (1, 2)))
        parts = [given, mirrored, *([np.stack(moved)] if moved else [])]
        np.savez(folder / "samples.npz", image=np.concatenate(parts))

    return once("cutouts", [work.model.read_bytes(), count, MOVED_PIXELS], fill) / "samples.npz"
