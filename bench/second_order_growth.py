"""What the second-order solver costs: ResNet-18 with all layers in 4 bits, and growth with the width of a layer.

    python bench/second_order_growth.py [--parts whole,growth] [--widths 256,512,1024,2304,4608] [--svg growth.svg]

- whole: model file and 256 samples of 3x224x224 in, file out, in a fresh process with all cores. Seconds and peak
  memory (VmHWM) are those of the whole process; processor seconds, which neighbours disturb less, stand beside them.
- growth: one product of K inputs and 512 outputs, over 16,384 rows with neighbours correlated; processor seconds of
  one thread, the moments and each kind of constraint apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gossamer.nouns.model import Model

TARGET_S, TARGET_BYTES = 180, 2_000_000_000
OUTPUTS, ROWS, POSITIONS = 512, 16_384, 64
CONSTRAINTS = ("grid:4", "sparse:2:4", "codebook:16")


def main(arguments: argparse.Namespace) -> None:
    """The tables."""
    import judge

    print(judge.header(f"python bench/second_order_growth.py --parts {arguments.parts}"), flush=True)
    if "whole" in arguments.parts:
        whole(arguments.net)
    if "growth" in arguments.parts:
        growth([int(width) for width in arguments.widths.split(",")], arguments.svg)


def whole(name: str) -> None:
    """Nearest for what reading, writing and starting cost; second-order in both manners."""
    from gallery import work

    net = work(name)
    print(f"### {name}, 256 samples, all layers grid:4\n\n| | seconds | CPU seconds | peak MB |\n|---|---|---|---|")
    for solver in ("nearest", "second_order", "sequential"):
        words = [sys.executable, __file__, "--case", str(net.model), str(net.data), solver]
        begin = time.perf_counter()
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - begin
        cpu_s, peak_bytes = map(float, done.stdout.split()[-2:])
        print(f"| {solver} | {seconds:.0f} | {cpu_s:.0f} | {peak_bytes / 1e6:.0f} |", flush=True)
    print(f"\nTarget: under {TARGET_S} s on 2 cores and {TARGET_BYTES / 1e6:.0f} MB.\n")


def run_case(model_path: str, data_path: str, solver: str) -> None:
    """One whole run."""
    from gossamer.intake.normalise import normalise
    from gossamer.intake.onnx_file import read
    from gossamer.measuring.evidence import Evidence
    from gossamer.measuring.machine import peak_rss_bytes
    from gossamer.nouns.model import save
    from gossamer.nouns.plan import Plan, Step
    from gossamer.nouns.samples import samples_from_arrays
    from gossamer.passes.contract import run_plan
    from gossamer.planning.candidates import CLEAN

    arrays = dict(np.load(data_path, mmap_mode="r"))
    given = Evidence(samples_from_arrays(arrays).first(256), os.cpu_count() or 1)
    config = {"constraint": "grid:4", "solver": "nearest" if solver == "nearest" else "second_order"}
    step = Step("constrain_weights", {**config, "sequential": solver == "sequential"})
    applied = run_plan(Plan("grid:4", (*CLEAN.steps, step)), normalise(read(model_path)), given)
    with tempfile.TemporaryDirectory() as folder:
        save(applied.model, Path(folder) / "model.onnx")
    print(time.process_time(), peak_rss_bytes())


def growth(widths: Sequence[int], svg: Path | None) -> None:
    """Seconds by width, and the exponent of the last doubling or so."""
    names = ("moments", *CONSTRAINTS)
    print(f"### One product, K inputs, {OUTPUTS} outputs, {ROWS} rows: CPU seconds\n")
    print("| K | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    table: list[list[float]] = []
    for width in widths:
        table.append(_timed(width))
        print(f"| {width} | " + " | ".join(f"{seconds:.2f}" for seconds in table[-1]) + " |", flush=True)
    if len(widths) > 1:
        steps = np.diff(np.log(table), axis=0) / np.diff(np.log(widths))[:, None]
        print("| exponent, last step | " + " | ".join(f"{power:.1f}" for power in steps[-1]) + " |\n")
    if svg is not None:
        svg.write_text(_drawn(widths, np.array(table).T, names))


def _timed(width: int) -> list[float]:
    from gossamer.arith.moments import Moments
    from gossamer.constraints.contract import constraint_from_text
    from gossamer.measuring.evidence import Evidence
    from gossamer.nouns.samples import samples_from_arrays
    from gossamer.solvers import second_order

    rng = np.random.default_rng(0)
    x_NK = rng.standard_normal((ROWS, width), np.float32)
    x_NK[:, 1:] += x_NK[:, :-1]
    w_OK = rng.standard_normal((OUTPUTS, width), np.float32) / np.float32(width**0.5)
    model = _product(w_OK.T)
    evidence = Evidence(samples_from_arrays({"x": x_NK.reshape(-1, POSITIONS, width)}))
    found: dict[str, Moments] = {}
    seconds = [_cpu_seconds(lambda: found.update(evidence.moments(model, ["w"])))]
    for text in CONSTRAINTS:
        seconds.append(_cpu_seconds(partial(second_order.solve, w_OK[None], constraint_from_text(text), found["w"])))
    return seconds


def _cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _product(w_KO: np.ndarray) -> Model:
    from onnx import TensorProto, helper, numpy_helper

    from gossamer.intake.normalise import normalise
    from gossamer.intake.onnx_file import read

    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", POSITIONS, size])
        for name, size in zip("xy", w_KO.shape, strict=True)
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "one", [x], [y], [numpy_helper.from_array(np.ascontiguousarray(w_KO), "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        path.write_bytes(proto.SerializeToString())
        return normalise(read(path))


def _drawn(widths: Sequence[int], seconds_CW: np.ndarray, names: Sequence[str]) -> str:
    """Seconds over width, both logarithmic, as a plain picture."""
    across = np.interp(np.log(widths), np.log([widths[0], widths[-1]]), [60, 420])
    low, high = np.log10(seconds_CW.min()), np.log10(seconds_CW.max())
    colours = ("#333333", "#1f77b4", "#d62728", "#2ca02c")
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 300" font-family="sans-serif" font-size="12">']
    for value in np.arange(np.floor(low), np.ceil(high) + 1):
        y = float(np.interp(value, [low, high], [260, 20]))
        parts.append(f'<text x="5" y="{y:.0f}">{10.0**value:g} s</text>')
    parts += [f'<text x="{x - 12:.0f}" y="290">{width}</text>' for x, width in zip(across, widths, strict=True)]
    for name, seconds_W, colour in zip(names, seconds_CW, colours, strict=False):
        down = np.interp(np.log10(seconds_W), [low, high], [260, 20])
        points = " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(across, down, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="430" y="{down[-1] + 4:.0f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="whole,growth")
    parser.add_argument("--net", default="resnet18")
    parser.add_argument("--widths", default="256,512,1024,2304,4608")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    if options.case:
        run_case(*options.case)
    else:
        main(options)
