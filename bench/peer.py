"""One peer on one model, in a process of its own: it writes the file that it makes and what that cost.

    python bench/peer.py PEER MODEL.onnx CALIBRATE.npz VALIDATE.npz RESULT [--transformer]

Runs in the peers' own environment, so it imports nothing of gossamer. RESULT is written without its ending, .onnx or
.xml, and RESULT.json beside it: seconds of the tool alone, peak memory of the process, what it said of itself.
PEERS below says what each name stands for. All are called as their documentation shows.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MAX_DROP = 0.01
MOST_MEMORY = (
    0.8  # of what is free: a peer that keeps every activation ends in an error of its own, and nothing else does
)
Arrays = dict[str, np.ndarray]

PEERS: dict[str, str] = {
    "ort-dynamic-channel": "onnxruntime quantize_dynamic, per channel",
    "ort-dynamic-tensor": "onnxruntime quantize_dynamic, per tensor",
    "ort-minmax-channel": "onnxruntime quantize_static, min-max, per channel",
    "ort-minmax-tensor": "onnxruntime quantize_static, min-max, per tensor",
    "ort-percentile-channel": "onnxruntime quantize_static, percentile, per channel",
    "ort-percentile-tensor": "onnxruntime quantize_static, percentile, per tensor",
    "ort-entropy-channel": "onnxruntime quantize_static, entropy, per channel",
    "ort-entropy-tensor": "onnxruntime quantize_static, entropy, per tensor",
    "nncf-onnx-default": "nncf.quantize, ONNX backend",
    "nncf-onnx-mixed": "nncf.quantize, ONNX backend, MIXED",
    "nncf-onnx-control": "nncf.quantize_with_accuracy_control, ONNX backend",
    "nncf-openvino-default": "nncf.quantize, OpenVINO backend",
    "nncf-openvino-mixed": "nncf.quantize, OpenVINO backend, MIXED",
    "nncf-openvino-control": "nncf.quantize_with_accuracy_control, OpenVINO backend",
}


def main() -> None:
    """Run the one that is named."""
    arguments = parsed()
    limit_bytes = int(MOST_MEMORY * _free_bytes())
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    logging.disable(logging.WARNING)
    calibrate, validate = dict(np.load(arguments.calibrate)), dict(np.load(arguments.validate))
    tool, first, second = arguments.peer.split("-")
    begin = time.perf_counter()
    if tool == "ort":
        note = onnxruntime(arguments, calibrate, first, second)
    else:
        note = nncf(arguments, calibrate, validate, first, second)
    seconds = time.perf_counter() - begin
    facts = {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), "note": note}
    arguments.result.with_name(arguments.result.name + ".json").write_text(json.dumps(facts))


def onnxruntime(arguments: argparse.Namespace, calibrate: Arrays, method: str, granularity: str) -> str:
    """`quantize_dynamic` or `quantize_static` on what `quant_pre_process` made of the model, or else on the model."""
    import peers

    calibrate.pop("labels", None)
    target = arguments.result.with_name(arguments.result.name + ".onnx")
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, note = peers.prepared(arguments.model, Path(folder)), ""
            _quantized(model, target, calibrate, method, granularity)
        except Exception as error:
            note = f"refused what its own quant_pre_process made ({_line(error)}); run on the model as it came"
            _quantized(arguments.model, target, calibrate, method, granularity)
    return note


def _quantized(model: Path, target: Path, calibrate: Arrays, method: str, granularity: Any) -> None:
    import peers

    if method == "dynamic":
        peers.dynamic(model, target, granularity)
    else:
        peers.static(model, target, calibrate, granularity, method)


def nncf(arguments: argparse.Namespace, calibrate: Arrays, validate: Arrays, backend: str, form: str) -> str:
    """`nncf.quantize` or `quantize_with_accuracy_control`, for ONNX (opens in onnxruntime) or OpenVINO."""
    import nncf as peer

    model, run, save = (onnx_backend if backend == "onnx" else openvino_backend)(arguments.model)
    options: dict[str, Any] = {"subset_size": _count(calibrate)}
    if arguments.transformer:
        options["model_type"] = peer.ModelType.TRANSFORMER
    if form == "mixed":
        options["preset"] = peer.QuantizationPreset.MIXED
    samples = peer.Dataset(_rows(calibrate), _inputs)
    if form != "control":
        quantized, note = peer.quantize(model, samples, **options), ""
    else:
        expected = run(model)
        floor = np.concatenate([expected(_inputs(row)) for row in _rows(validate)]).argmax(-1)
        seen: list[float] = []
        quantized = peer.quantize_with_accuracy_control(
            model,
            samples,
            peer.Dataset(_rows(validate)),
            partial(_score, run=run, floor=floor, seen=seen),
            max_drop=MAX_DROP,
            **options,
        )
        note = f"called its validation {len(seen)} times"
    save(quantized, arguments.result)
    return note


def onnx_backend(path: Path) -> tuple[Any, Any, Any]:
    """The model, what runs one, what saves one."""
    import onnx
    import onnxruntime as ort

    def run(model: Any) -> Any:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)[0]

    def save(model: Any, result: Path) -> None:
        onnx.save(model, result.with_name(result.name + ".onnx"))

    return onnx.load(path), run, save


def openvino_backend(path: Path) -> tuple[Any, Any, Any]:
    """The same for OpenVINO's own format."""
    import openvino as ov

    def run(model: Any) -> Any:
        compiled = model if isinstance(model, ov.CompiledModel) else ov.compile_model(model, "CPU")
        return lambda feeds: compiled(feeds)[0]

    def save(model: Any, result: Path) -> None:
        ov.save_model(model, result.with_name(result.name + ".xml"), compress_to_fp16=False)

    return ov.Core().read_model(path), run, save


def _score(model: Any, rows: Iterable[Arrays], *, run: Any, floor: np.ndarray, seen: list[float]) -> tuple[float, Any]:
    """Top-1 of the labels, or agreement with the float model where there are none; and the hits one by one."""
    call = run(model)
    hits: list[float] = []
    for at, row in enumerate(rows):
        right = row["labels"] if "labels" in row else floor[at]
        hits.append(float(np.any(call(_inputs(row)).argmax(-1) == right)))
    seen.append(float(np.mean(hits)))
    return seen[-1], hits


def _rows(arrays: Arrays) -> list[Arrays]:
    return [{name: array[row : row + 1] for name, array in arrays.items()} for row in range(_count(arrays))]


def _inputs(row: Arrays) -> Arrays:
    return {name: array for name, array in row.items() if name != "labels"}


def _count(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]


def peak_rss_bytes() -> int:
    """The most memory this program held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _free_bytes() -> int:
    """Memory that this machine could still give."""
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    for name in ("model", "calibrate", "validate", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--transformer", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (Exception, MemoryError) as error:  # the parent puts this line into the table
        sys.exit(f"{type(error).__name__}: {_line(error)}")
