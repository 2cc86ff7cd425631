"""What `gossamer compress` makes of three networks on this machine, beside onnxruntime's quantizers in the same race.

    python bench/speed.py [--nets resnet18,mobilenetv2,minilm] [--seconds 40] [--samples 96]

The networks are built from seeds (bench/nets.py), so this is about speed and signal-to-noise ratio; a random network
says nothing about accuracy. Gossamer chooses by itself, with a generous floor. The peers calibrate on the samples that
Gossamer calibrated on; signal-to-noise ratio is taken on samples that neither saw. One thread throughout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import gossamer
import judge
import nets
import peers
from gossamer.intake.splits import split
from gossamer.nouns.samples import samples_from_arrays

TARGETS = {"resnet18": 3.1, "mobilenetv2": 1.9, "minilm": 3.5}  # of the issue that asked for this bench
GENEROUS = 0.9  # of agreement: the arg-max of a random network's outputs hangs by a thread
HELD_OUT = 16


def main() -> None:
    """Each network in turn."""
    arguments = parsed()
    print(judge.header(f"python bench/speed.py --seconds {arguments.seconds} --samples {arguments.samples}"))
    for net in arguments.nets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            compare(net, Path(folder), arguments.seconds, arguments.samples)


def compare(net: str, folder: Path, seconds: float, count: int) -> None:
    """Compress one network, let the peers do so too, and race all files."""
    nets.write(net, folder, count)
    original, data = folder / f"{net}.onnx", folder / f"{net}.npz"
    record = gossamer.compress(original, data, gossamer.Budget(max_drop=GENEROUS), folder / "out")
    arrays = dict(np.load(data))
    calibrate, _, verify, _ = split(samples_from_arrays(arrays), record.splits.seed)
    files = {"float": original, f"gossamer: {record.chosen}": folder / "out" / "model.onnx"}
    files |= rivals(net, original, folder, {name: array[calibrate.rows] for name, array in arrays.items()})
    judged = {name: array[verify.rows[:HELD_OUT]] for name, array in arrays.items()}
    one = {name: array[:1] for name, array in judged.items()}
    timings = judge.timings(files, one, seconds)
    expected = judge.outputs(original, judged)
    print(f"## {net} (target {TARGETS[net]}x)\n")
    print("| | ms | share of float (10-90 %) | faster | SNR dB | MB |\n|---|---|---|---|---|---|")
    for name, path in files.items():
        noise = judge.snr_db(judge.outputs(path, judged), expected)
        print(f"| {name} | {timings[name]} | {noise:.1f} | {path.stat().st_size / 1e6:.1f} |")
    print_limit(dict(list(files.items())[:2]), one)
    for candidate in record.candidates:
        if candidate.facts is not None:
            facts = candidate.facts
            print(
                f"tried {candidate.plan.name}: {facts.latency_ms.ratio:.2f}x, {facts.accuracy.snr_db:.1f} dB",
                file=sys.stderr,
            )


def rivals(net: str, original: Path, folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Path]:
    """onnxruntime's quantizers on the same calibration samples."""
    prepared = peers.prepared(original, folder)
    files = {}
    for granularity in peers.GRANULARITIES:
        name = f"quantize_static, {granularity}"
        files[name] = peers.static(prepared, folder / f"static-{granularity}.onnx", arrays, granularity, "minmax")
        if net == "minilm":
            name = f"quantize_dynamic, {granularity}"
            files[name] = peers.dynamic(prepared, folder / f"dynamic-{granularity}.onnx", granularity)
    return files


def print_limit(pair: dict[str, Path], feeds: dict[str, np.ndarray]) -> None:
    """Where the time goes, and what would be left if all but convolutions and products cost nothing."""
    before, after = judge.operators_ms(pair, feeds)
    total, left = sum(before.values()), sum(after.values())
    products = judge.spent_ms(before, judge.FLOAT_PRODUCTS)
    integer = judge.spent_ms(after, judge.INTEGER_PRODUCTS)
    real = judge.spent_ms(after, judge.FLOAT_PRODUCTS)
    print(
        f"\nProducts and convolutions: {products:.1f} of {total:.1f} ms in float; in the result {integer:.1f} of "
        f"{left:.1f} ms in integers ({integer / left:.0%}) and {real:.1f} in float ({real / left:.0%}), "
        f"{products / (integer + real):.2f}x faster together. Were all else free, the whole would be "
        f"{total / (integer + real):.2f}x faster."
    )
    print("Result by operator, ms: " + ", ".join(f"{op} {ms:.2f}" for op, ms in list(after.items())[:8]) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=40.0, help="of racing, for each network")
    parser.add_argument("--samples", type=int, default=96)
    return parser.parse_args()


if __name__ == "__main__":
    main()
