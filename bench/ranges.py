"""Calibration of a MobileNetV2 over 256 samples of 3x224x224: seconds and peak memory, ours beside onnxruntime's.

    python bench/ranges.py [--cores 1] [--rounds 3] [--samples 256] [--heavy]

Every case runs in a fresh process without torch, pinned to the same processors; cases take turns; the table shows the
median time and the largest peak memory (VmHWM), which include the 154 MB of input held by the process. `--heavy` adds
onnxruntime's entropy calibration, which keeps every activation (about 16 GB at 256 samples).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np

from gossamer.arith.clipping import Estimator, clip_range, needs_histogram

NET = "mobilenetv2"
OURS = get_args(Estimator)
PEERS = ("onnxruntime minmax", "onnxruntime entropy")
BARE = "bare forward passes"


def prepare(folder: Path, count: int) -> None:
    """Export the network (this alone needs torch) and write the samples."""
    import nets

    nets.write(NET, folder, count)


def main() -> None:
    """Run every case in its own process and print the table."""
    arguments = parsed()
    heavy = arguments.heavy
    cases = [BARE, PEERS[0], *OURS, *PEERS[1 : 1 + heavy]]
    with tempfile.TemporaryDirectory() as folder:
        child([folder, "prepare"], arguments)
        results = [{case: child([folder, case], arguments) for case in cases} for _ in range(arguments.rounds)]
    reference = statistics.median(result[PEERS[0]]["seconds"] for result in results)
    print(f"{arguments.samples} samples, {arguments.cores} processor(s), medians of {arguments.rounds} rounds")
    print(f"{'':24}{'seconds':>9}{'of ort minmax':>15}{'lowest':>9}{'peak MB':>9}{'tensors':>9}")
    for case in cases:
        seconds = [result[case]["seconds"] for result in results]
        peak = max(result[case]["peak_rss_bytes"] for result in results) / 1e6
        middle = statistics.median(seconds)
        tensors = results[0][case]["tensors"]
        print(f"{case:24}{middle:9.2f}{middle / reference:15.2f}{min(seconds):9.2f}{peak:9.0f}{tensors:9}")


def child(words: Sequence[str], arguments: argparse.Namespace) -> dict[str, float]:
    """What one case measured of itself."""
    options = ["--cores", str(arguments.cores), "--samples", str(arguments.samples)]
    command = [sys.executable, __file__, "--case", *words, *options]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return dict(json.loads(out.splitlines()[-1]))


def run_case(folder: Path, case: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One case in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if case == "prepare":
        prepare(folder, arguments.samples)
        return {}
    images = np.load(folder / f"{NET}.npz")["image"]
    path = folder / f"{NET}.onnx"
    if case == BARE:
        work = bare(path, images, arguments.cores)
    elif case in PEERS:
        work = onnxruntime(path, images, case.split()[1])
    else:
        work = gossamer(path, images, cast(Estimator, case))
    start = time.perf_counter()
    tensors = work()
    seconds = time.perf_counter() - start
    assert "torch" not in sys.modules
    return {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), "tensors": tensors}


def bare(path: Path, images: np.ndarray, threads: int) -> Callable[[], int]:
    """Forward passes that look at nothing."""
    from gossamer.runtimes.onnxruntime import open_session

    def work() -> int:
        session = open_session(path, threads)
        for image in images:
            session.run({"image": image[None]})
        return 0

    return work


def onnxruntime(path: Path, images: np.ndarray, method: str) -> Callable[[], int]:
    """What `quantize_static` does before it quantizes, on convolutions and additions only."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the peer's interface
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"image": image[None]}

    def work() -> int:
        kind = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy}[method]
        augmented = path.with_name("augmented.onnx").as_posix()
        calibrator = create_calibrator(path, ["Conv", "Add"], augmented, kind)
        calibrator.collect_data(Reader())
        return len(calibrator.compute_data().data)

    return work


def gossamer(path: Path, images: np.ndarray, method: Estimator) -> Callable[[], int]:
    """Ours: the tensors that int8 needs, i.e. input, convolutions behind their activation, residual additions."""
    import onnx_ir as ir

    from gossamer.measuring.ranges import observe
    from gossamer.nouns.model import Model
    from gossamer.nouns.samples import samples_from_arrays

    def work() -> int:
        model = Model(ir.load(path), NET)
        names = [str(value.name) for value in observed_values(model.ir)]
        seen = observe(model, names, samples_from_arrays({"image": images}), needs_histogram(method))
        return len([clip_range(observed, method, 256, False) for observed in seen.values()])

    def observed_values(graph_model: ir.Model) -> list[ir.Value]:
        values = list(graph_model.graph.inputs)
        for node in graph_model.graph:
            if node.op_type in ("Conv", "Add"):
                after = node.outputs[0].consumers()
                clipped = len(after) == 1 and after[0].op_type in ("Clip", "Relu")
                values.append(after[0].outputs[0] if clipped else node.outputs[0])
        return values

    return work


def peak_rss_bytes() -> int:
    """The most memory this program held; unlike ru_maxrss it starts afresh with the program."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1, help="processors every case is pinned to")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--heavy", action="store_true", help="add onnxruntime's entropy: about 62 MB a sample")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    if options.case:
        print(json.dumps(run_case(Path(options.case[0]), options.case[1], options)))
    else:
        main()
