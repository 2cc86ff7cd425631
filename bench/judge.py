"""What every bench measures of a file: latency beside others in one race, noise of its outputs, time by operator."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from gossamer.measuring import latency
from gossamer.measuring.latency import pinned, race
from gossamer.measuring.machine import describe
from gossamer.runtimes.contract import find

FLOAT_PRODUCTS = frozenset(
    ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention", "MultiHeadAttention")
)
INTEGER_PRODUCTS = frozenset(
    [
        "QLinearConv",
        "ConvInteger",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    ]
)


@dataclass(frozen=True)
class Timing:
    """One file in a race.

    Attributes:
        median_ms: over rounds.
        share: its latency as a share of the first file's, median over rounds; low and high are the 10th and 90th
            percentile.
    """

    median_ms: float
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        """As it stands in a table: latency, share of float and its spread, times faster."""
        spread = f"{self.share:.3f} ({self.low:.3f}-{self.high:.3f})"
        return f"{self.median_ms:.2f} | {spread} | {1 / self.share:.2f}x"


def timings(
    files: Mapping[str, Path], feeds: Mapping[str, np.ndarray], seconds: float, runtime: str = "onnxruntime"
) -> dict[str, Timing]:
    """All files in one interleaved race on one thread; the first is what the others are held against."""
    sessions = {name: find(runtime).open_session(path) for name, path in files.items()}
    times = race(sessions, feeds, timing=latency.Timing(1000, seconds))
    first = times[next(iter(times))]
    shares = {name: np.divide(times[name], first) for name in times}
    return {
        name: Timing(median(times[name]), *(float(np.percentile(shares[name], at)) for at in (50, 10, 90)))
        for name in times
    }


def outputs(path: Path, arrays: Mapping[str, np.ndarray], runtime: str = "onnxruntime") -> np.ndarray:
    """The first output for every sample, given one at a time, as it will be used."""
    session = find(runtime).open_session(path)
    count = len(next(iter(arrays.values())))
    rows = [session.run({name: array[row : row + 1] for name, array in arrays.items()})[0] for row in range(count)]
    return np.concatenate(rows)


def snr_db(got: np.ndarray, expected: np.ndarray) -> float:
    """Signal-to-noise ratio over all outputs of all samples."""
    noise = float(np.square(got.astype(np.float64) - expected).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    return 10 * float(np.log10(signal / noise)) if noise else float("inf")


def agreement(got: np.ndarray, expected: np.ndarray) -> float:
    """Share of samples with the same arg-max."""
    return float((got.argmax(-1) == expected.argmax(-1)).mean())


def operators_ms(files: Mapping[str, Path], feeds: Mapping[str, np.ndarray], calls: int = 40) -> list[dict[str, float]]:
    """For each file, milliseconds a call by operator, most first, from the runtime's own profile on one thread.

    The files take turns, and medians over the calls are summed, as a neighbour's slice falls on some calls only.
    """
    with TemporaryDirectory() as folder, pinned(1):
        sessions = [_profiled(path, f"{folder}/{index}") for index, path in enumerate(files.values())]
        for _ in range(calls):
            for session in sessions:
                session.run(None, dict(feeds))
        return [_by_operator(Path(session.end_profiling()), calls) for session in sessions]


def _profiled(path: Path, prefix: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = prefix
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _by_operator(profile: Path, calls: int) -> dict[str, float]:
    spent: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]].append(event["dur"] / 1000)
    total = {op: float(np.median(np.reshape(ms, (calls, -1)), axis=0).sum()) for op, ms in spent.items()}
    return dict(sorted(total.items(), key=lambda pair: -pair[1]))


def spent_ms(by_operator: Mapping[str, float], operators: Collection[str]) -> float:
    """The part spent in some operators."""
    return sum(ms for op, ms in by_operator.items() if op in operators)


def header(command: str, others: Mapping[str, str] | None = None) -> str:
    """Command, machine, versions (and those of `others`) and date, for RESULTS.md."""
    machine = describe()
    versions = ", ".join(f"{name} {version}" for name, version in {**machine.versions, **(others or {})}.items())
    sets = " ".join(machine.instruction_sets)
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "unknown"
    return (
        f"`{command}`\n{machine.processor}, {machine.cores} cores ({sets}), 1 thread, {machine.system}, "
        f"python {machine.python}, {versions}; {datetime.now():%Y-%m-%d %H:%M}, load {load} at the start\n"
    )
