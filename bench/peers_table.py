"""Gossamer beside its peers on every work of the gallery and in both runtimes: the tables of RESULTS.md.

    python bench/peers_table.py [--works minilm,magika,demo,lite0,mobilenetv2,resnet18]
                                [--runtimes onnxruntime,openvino] [--seconds 15] [--without ort-entropy]

Gossamer's row is `gossamer compress MODEL --data D --max-drop 1%` without a further option (`--runtime openvino` for
the second runtime; a generous floor for the networks from seeds). Peers calibrate on the samples that Gossamer
calibrated on and, where they take a floor too, validate on those that it chose on. All are judged on samples that no
tool saw, and timed in one interleaved race a table. Signal-to-noise ratio is always against the original in float32,
latency against the original as the runtime computes it by default, which in OpenVINO may be bfloat16.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gallery
import judge
import peer_runs
from gallery import Arrays, Work
from gossamer.errors import GossamerError
from gossamer.measuring.intervals import matched_pairs
from peer_runs import Run

RUNTIMES = {
    "onnxruntime": [
        *(f"ort-dynamic-{granularity}" for granularity in ("channel", "tensor")),
        *(f"ort-{how}-{part}" for how in ("minmax", "percentile", "entropy") for part in ("channel", "tensor")),
        *(f"nncf-onnx-{form}" for form in ("default", "mixed", "control")),
    ],
    "openvino": ["ort-minmax-channel", *(f"nncf-openvino-{form}" for form in ("default", "mixed", "control"))],
}
HEAD = (
    "| | SNR dB | agreement | accuracy, change (95 %) | ms | share of float (10-90 %) | faster | MB | tool s "
    "| tool MB |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """One file as the judge saw it."""

    run: Run
    got: np.ndarray
    snr_db: float
    timing: judge.Timing


def main() -> None:
    """One table for each work and runtime, then one of Gossamer alone."""
    arguments = parsed()
    command = f"python bench/peers_table.py --seconds {arguments.seconds:g}"
    left = tuple(filter(None, arguments.without.split(",")))
    command += f" --without {arguments.without}" if left else ""
    print(judge.header(command, peer_runs.versions()), flush=True)
    summary = []
    for name in arguments.works.split(","):
        work = gallery.work(name)
        for runtime in arguments.runtimes.split(","):
            rivals = [peer for peer in RUNTIMES[runtime] if not (left and peer.startswith(left))]
            found, failed = compare(work, runtime, rivals, arguments.seconds)
            _, labels = work.judged_on()
            print_table(work, runtime, found, failed, labels)
            summary += summarised(work, runtime, found, labels)
    print("## `gossamer compress` everywhere\n")
    print("| work | runtime | chosen | SNR dB | change of accuracy (95 %) | share of float | MB | beside its peers |")
    print("|---|---|---|---|---|---|---|---|\n" + "\n".join(summary))


def compare(work: Work, runtime: str, rivals: list[str], seconds: float) -> tuple[dict[str, Row], list[Run]]:
    """Every file judged, the original first; and the runs that gave no file, or one that the runtime refuses."""
    runs = {"float": Run("float", work.model, 0, 0), "gossamer": peer_runs.ours(work, runtime, work.max_drop)}
    if work.loose_drop:
        runs["gossamer, loose"] = peer_runs.ours(work, runtime, work.loose_drop)
    runs |= peer_runs.peers(work, rivals)
    inputs, _ = work.judged_on()
    expected = outputs(work, work.model, inputs, "onnxruntime")
    got: dict[str, np.ndarray] = {}
    failed = []
    for key, run in runs.items():
        try:
            if run.path is None:
                raise ValueError(run.note)
            got[key] = outputs(work, run.path, inputs, runtime)
        except (GossamerError, ValueError) as error:
            failed.append(Run(run.name, None, run.seconds, run.peak_rss_bytes, str(error)))
    if "float" not in got:
        sys.exit(f"{runtime}: {failed[0].note}")
    files = {key: path for key in got if (path := runs[key].path) is not None}
    timings = judge.timings(files, {name: array[:1] for name, array in inputs.items()}, seconds, runtime)
    rows = {key: Row(runs[key], got[key], judge.snr_db(got[key], expected), timings[key]) for key in got}
    return rows, failed


def outputs(work: Work, path: Path, inputs: Arrays, runtime: str) -> np.ndarray:
    """Of all samples, kept in the cache under the file's digest."""
    weights = path.with_suffix(".bin")
    sha = hashlib.sha256(path.read_bytes() + (weights.read_bytes() if weights.exists() else b""))
    for array in inputs.values():
        sha.update(array.tobytes())
    kept = peer_runs.prepared(work)[0] / f"outputs-{runtime}-{sha.hexdigest()[:16]}.npy"
    if not kept.exists():
        np.save(kept, judge.outputs(path, inputs, runtime))
    return np.asarray(np.load(kept))


def print_table(work: Work, runtime: str, rows: dict[str, Row], failed: list[Run], labels: np.ndarray | None) -> None:
    """Rows in the order they were asked for, then the failures, then what deserves to be known."""
    original = rows["float"].got
    print(f"## {work.name} in {runtime}, judged on {len(original)} samples\n\n{HEAD}")
    for row in rows.values():
        agree = judge.agreement(row.got, original)
        right = accuracy(row.got, original, labels)
        print(
            f"| {row.run.name} | {row.snr_db:.1f} | {agree:.3f} | {right} | {row.timing} | "
            f"{megabytes(row.run)} | {row.run.seconds:.0f} | {row.run.peak_rss_bytes / 1e6:.0f} |"
        )
    for run in failed:
        print(f"| {run.name} | failed: {run.note} | | | | | | | {run.seconds:.0f} | |")
    notes = [
        f"- {row.run.name}: {row.run.note}"
        for key, row in rows.items()
        if row.run.note and not key.startswith("gossamer")
    ]
    print("\n" + "".join(f"{note}\n" for note in notes), flush=True)


def accuracy(got: np.ndarray, original: np.ndarray, labels: np.ndarray | None) -> str:
    """Share of right answers, and its change against float with the interval of paired samples."""
    if labels is None or len(original) < 100:
        return "-"
    share, change, low, high = paired(got, original, labels)
    return f"{share:.3f}, {change:+.3f} ({low:+.3f} to {high:+.3f})"


def paired(got: np.ndarray, original: np.ndarray, labels: np.ndarray) -> tuple[float, float, float, float]:
    """Share right, change, and the change's 95 % interval (Agresti and Min 2005)."""
    right, before = hits(got, labels), hits(original, labels)
    low, high = matched_pairs(int((right & ~before).sum()), int((before & ~right).sum()), len(right))
    return float(right.mean()), float(right.mean() - before.mean()), low, high


def hits(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the best class is the label, or one of them."""
    best = outputs.argmax(-1)
    return np.asarray((best[:, None] == labels.reshape(len(labels), -1)).any(1))


def megabytes(run: Run) -> str:
    """Everything needed to run."""
    if run.path is None:
        return "-"
    weights = run.path.with_suffix(".bin")
    size = run.path.stat().st_size + (weights.stat().st_size if run.path.suffix == ".xml" and weights.exists() else 0)
    return f"{size / 1e6:.2f}"


def summarised(work: Work, runtime: str, rows: dict[str, Row], labels: np.ndarray | None) -> list[str]:
    """Gossamer's line, with the truest peer that is no slower (3 % is noise) and the fastest that is no less true."""
    if "gossamer" not in rows:
        return [f"| {work.name} | {runtime} | failed | | | | | |"]
    us, original = rows["gossamer"], rows["float"].got
    change = "-"
    if labels is not None and len(original) >= 100:
        _, moved, low, high = paired(us.got, original, labels)
        change = f"{moved:+.3f} ({low:+.3f} to {high:+.3f})"
    peers = [row for key, row in rows.items() if key != "float" and not key.startswith("gossamer")]
    quick = [row for row in peers if row.timing.share <= 1.03 * us.timing.share]
    true = [row for row in peers if row.snr_db >= us.snr_db]
    said = [
        _said("truest no slower", max(quick, key=lambda row: row.snr_db, default=None)),
        _said("fastest no less true", min(true, key=lambda row: row.timing.share, default=None)),
    ]
    said += [
        f"accuracy control {row.snr_db:.1f} dB at {row.timing.share:.3f}, "
        f"{row.run.seconds:.0f} s (ours {us.run.seconds:.0f} s)"
        for key, row in rows.items()
        if key.endswith("control")
    ]
    chosen = us.run.name.partition(": ")[2]
    return [
        f"| {work.name} | {runtime} | {chosen} | {us.snr_db:.1f} | {change} | {us.timing.share:.3f} | "
        f"{megabytes(us.run)} | {'; '.join(said)} |"
    ]


def _said(what: str, row: Row | None) -> str:
    if row is None:
        return f"{what}: none"
    return f"{what}: {row.run.name}, {row.snr_db:.1f} dB at {row.timing.share:.3f}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default=",".join(gallery.MAKERS))
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--seconds", type=float, default=15.0, help="of racing, for each table")
    parser.add_argument("--without", default="", help="peers to leave out, by the beginnings of their names")
    arguments = parser.parse_args()
    if unknown := set(arguments.works.split(",")) - set(gallery.MAKERS):
        sys.exit(f"--works {', '.join(unknown)}: there are {', '.join(gallery.MAKERS)}")
    return arguments


if __name__ == "__main__":
    main()
