"""What quantizing costs: wall time and peak memory at 256 samples of 3x224x224, Gossamer beside its peers.

    python bench/cost.py [--nets mobilenetv2,resnet18] [--samples 256]

One plan on a given set of samples, not a search: model file and .npz in, quantized file out, each in a fresh process
with all cores. Seconds and peak memory (VmHWM) are those of the whole process, Python's start and imports included.
onnxruntime's percentile and entropy keep every activation, about 62 MB a sample on MobileNetV2: they need 16 GB, and
where there is less they fail, which the table says. Peers' runs are kept in the cache, as they take long; ours is
measured three times, and the median counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

if TYPE_CHECKING:
    from gallery import Work
    from peer_runs import Run

PEERS = (
    "ort-minmax-channel",
    "ort-percentile-channel",
    "ort-entropy-channel",
    "nncf-onnx-default",
    "nncf-openvino-default",
)
OURS = ("minmax", "percentile", "entropy")
ROUNDS = 3


def main(arguments: argparse.Namespace) -> None:
    """One table for each network; the parent alone needs torch, to make the networks."""
    import judge
    import peer_runs
    from gallery import work

    print(judge.header("python bench/cost.py", peer_runs.versions()))
    for name in arguments.nets.split(","):
        net = work(name)
        table(net, peer_runs.costs(net, PEERS, arguments.samples), arguments.samples)


def table(net: Work, peers: Iterable[Run], samples: int) -> None:
    """Peers first, then ours."""
    print(f"## {net.name}, {samples} samples\n\n| | seconds | peak MB |\n|---|---|---|")
    for run in peers:
        what = (
            f"{run.seconds:.1f} | {run.peak_rss_bytes / 1e6:.0f}"
            if run.path
            else f"{run.seconds:.1f}, failed: {run.note} |"
        )
        print(f"| {run.name} | {what} |", flush=True)
    for ranges in OURS:
        seconds, peaks = zip(*(child(net, ranges, samples) for _ in range(ROUNDS)), strict=True)
        print(f"| **gossamer**, {ranges} | {statistics.median(seconds):.1f} | {max(peaks) / 1e6:.0f} |", flush=True)
    print()


def child(net: Work, ranges: str, samples: int) -> tuple[float, int]:
    """Seconds and peak memory of one run of ours in a fresh process."""
    words = [sys.executable, __file__, "--case", str(net.model), str(net.data), ranges, "--samples", str(samples)]
    begin = time.perf_counter()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    return time.perf_counter() - begin, int(done.stdout.splitlines()[-1])


def run_case(model_path: str, data_path: str, ranges: str, samples: int) -> int:
    """All convolutions and products in integers, biases corrected, as `compress` makes its first integer candidate."""
    from gossamer.intake.binding import bind
    from gossamer.intake.normalise import normalise
    from gossamer.intake.onnx_file import read
    from gossamer.intake.samples import read_samples
    from gossamer.measuring.evidence import Evidence
    from gossamer.measuring.machine import peak_rss_bytes
    from gossamer.nouns.model import save
    from gossamer.passes.contract import run_plan
    from gossamer.planning.candidates import CLEAN, propose
    from gossamer.planning.features import features
    from gossamer.runtimes.contract import find

    runtime, threads = find("onnxruntime"), os.cpu_count() or 1
    given = bind(read_samples(data_path, None), runtime.open_session(Path(model_path)).inputs)
    model = normalise(read(model_path))
    plans = propose(features(run_plan(CLEAN, model).model), runtime, "latency")
    plan = next(plan for plan in plans if plan.name == "int8")
    steps = tuple(
        replace(step, config={**step.config, "ranges": ranges}) if step.method == "quantize_static" else step
        for step in plan.steps
    )
    applied = run_plan(replace(plan, steps=steps), model, Evidence(given.take(np.arange(samples)), threads))
    with tempfile.TemporaryDirectory() as folder:
        save(applied.model, Path(folder) / "model.onnx")
    assert "torch" not in sys.modules
    return peak_rss_bytes()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="mobilenetv2,resnet18")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    if options.case:
        model_file, data_file, method = options.case
        print(run_case(model_file, data_file, method, options.samples))
    else:
        main(options)
