"""How long an archive takes to its first prediction, and how packing grows with the number of weights.

    python bench/opening.py [--parts opening,growth] [--rounds 15] [--numbers 10000,...,100000000]

- opening: EfficientNet-Lite0 as an archive (float, int8, and integers chosen for few bits), beside its float ONNX file.
  Every row is a fresh process; rows take turns, and medians count. Files are dropped from the page cache before each.
  Milliseconds run from just before the process starts to just after its first prediction, on one thread; processor
  milliseconds beside them are what a quiet machine needs but for waiting on the disk. `load` is what `gossamer.load`
  does: it unpacks, checks and tidies the graph, and is held against `gossamer.load` of the float file; `unpack` hands
  the runtime the bytes as they are, and is held against the runtime's own reading of that file.
- growth: int8 weights drawn from Laplace's distribution, with a scale for each row, in one product of an ONNX file.
  Processor seconds, and the peak memory of a fresh process beyond what it holds once all is imported.
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
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import gallery

CHILD = "--child"
PARTS = ("imports", "read", "session", "run")
RATE = "grid:8:tensor:rate=2e-7"
ALLOWED_MS = 200.0
NUMBERS = "10000,100000,1000000,10000000,100000000"
WIDTH = 1000
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}  # compiled, as installed


def main(arguments: argparse.Namespace) -> None:
    """The tables."""
    import judge

    print(judge.header(f"python bench/opening.py --parts {arguments.parts} --rounds {arguments.rounds}"), flush=True)
    if "opening" in arguments.parts:
        opening(arguments.rounds)
    if "growth" in arguments.parts:
        growth([int(number) for number in arguments.numbers.split(",")])


# --- opening


def opening(rounds: int) -> None:
    """Rows in turns, forth and back."""
    import gallery

    net = gallery.work("lite0")
    with tempfile.TemporaryDirectory(dir=Path.home()) as scratch:  # a disk: some keep /tmp in memory
        cases = prepared(net, Path(scratch))
        sample = Path(scratch) / "sample.npz"
        inputs, _ = net.judged_on()
        np.savez(sample, **{name: array[:1] for name, array in inputs.items()})
        spent: dict[str, list[list[float]]] = {name: [] for name in cases}
        for turn in range(rounds + 1):
            for name, (way, path) in list(cases.items())[:: 1 if turn % 2 else -1]:
                drop(path)
                milliseconds = child(way, str(path), str(sample))
                if turn:  # the first reads the libraries from the disk
                    spent[name].append(milliseconds)
    print("## EfficientNet-Lite0, from the start of a process to its first prediction, cold file\n")
    print(f"| | ms | beyond float | CPU ms | beyond float | {' | '.join(PARTS)} |\n" + (5 + len(PARTS)) * "|---" + "|")
    middle = {name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in spent.items()}
    float_of = {way: middle[name] for name, (way, path) in cases.items() if path.suffix == ".onnx"}
    for name, (wall, cpu, *parts) in middle.items():
        first = float_of["load" if cases[name][0] == "load" else "onnx"]
        cells = [f"{wall:.0f}", f"{wall - first[0]:+.0f}", f"{cpu:.0f}", f"{cpu - first[1]:+.0f}"]
        print(f"| {name} | {' | '.join([*cells, *(f'{part:.0f}' for part in parts)])} |")
    print(
        f"\nAllowed beyond float: {ALLOWED_MS:.0f} ms. Parts are processor milliseconds, imports from the start.\n",
        flush=True,
    )


def prepared(net: gallery.Work, scratch: Path) -> dict[str, tuple[str, Path]]:
    """Name -> what the child does, and the file; the float file first."""
    from gossamer.archive.pack import pack

    original = scratch / "model.onnx"
    original.write_bytes(net.model.read_bytes())
    name = f"float ONNX, {original.stat().st_size / 1e6:.1f} MB"
    cases = {name: ("onnx", original), f"{name}, load": ("load", original)}
    for form, data in forms(original.read_bytes()).items():
        path = scratch / f"{form}.goss"
        path.write_bytes(pack(data).data)
        size = f"{path.stat().st_size / 1e6:.2f} MB"
        cases |= {f"{form}.goss, {size}, {way}": (way, path) for way in ("unpack", "load")}
    return cases


def forms(original: bytes) -> dict[str, bytes]:
    """Lite0 in float, in 8 bits, and with a rate, each solved at once, without correction: only bytes matter here."""
    import archive
    import fetch
    from gossamer.nouns.model import save
    from gossamer.nouns.plan import Plan, Step
    from gossamer.passes.contract import run_plan
    from second_order_cases import Net

    def make(folder: Path) -> None:
        net = Net("lite0")
        step = Step("constrain_weights", {"constraint": RATE, "solver": "second_order", "form": "cast"})
        save(run_plan(Plan("rate", (step,)), net.clean, net.evidence).model, folder / "model.onnx")

    rate = fetch.once("archive/lite0-rate", make) / "model.onnx"
    return {"float": original, "int8": archive.model_bytes("lite0", "grid:8"), "rate": rate.read_bytes()}


def drop(path: Path) -> None:
    """A file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(*words: str) -> list[float]:
    """What a fresh process prints."""
    begin = time.monotonic()
    command = [sys.executable, __file__, CHILD, repr(begin), *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **QUIET})
    return [float(number) for number in json.loads(done.stdout)]


def open_and_run(begin: float, way: str, path: str, sample: str) -> list[float]:
    """Milliseconds from the start to the first prediction; of the processor: all, and each part."""
    import onnxruntime as ort

    feeds = dict(np.load(sample))
    session: Callable[[], ort.InferenceSession]
    if way == "onnx":
        imported = clocks()

        def session() -> ort.InferenceSession:
            return ort.InferenceSession(path, options)
    elif way == "unpack":
        from gossamer.archive.unpacking import read_archive

        imported = clocks()
        data = read_archive(Path(path))

        def session() -> ort.InferenceSession:
            return ort.InferenceSession(data, options)
    else:
        import gossamer
        from gossamer.runtimes.onnxruntime import open_session

        load = gossamer.load
        imported = clocks()
        model = load(path)

        def session() -> ort.InferenceSession:
            return open_session(model, 1)

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    read = clocks()
    opened = session()
    created = clocks()
    opened.run(None, feeds) if way != "load" else opened.run(feeds)
    done = clocks()
    cpu = [0.0, *(processor for _, processor in (imported, read, created, done))]
    return [1000 * (done[0] - begin), 1000 * cpu[-1], *(1000 * (after - before) for before, after in pairwise(cpu))]


def clocks() -> tuple[float, float]:
    """On the wall, and of the processor since the process began; seconds."""
    return time.monotonic(), time.process_time()


# --- growth


def growth(numbers: Sequence[int]) -> None:
    """One row a size, and the exponents."""
    print("## int8 weights, a scale for each row\n")
    print(
        "| weights | bits a weight | pack CPU s | unpack CPU s | pack peak MB | unpack peak MB |\n" + 6 * "|---" + "|"
    )
    spent: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory(dir=Path.home()) as scratch:
        for number in numbers:
            model, archive = Path(scratch) / "model.onnx", Path(scratch) / "model.goss"
            model.write_bytes(drawn(number))
            pack_s, pack_peak = child("pack", str(model), str(archive))
            unpack_s, unpack_peak = child("unpack-file", str(archive), str(model.with_suffix(".back")))
            if model.read_bytes() != model.with_suffix(".back").read_bytes():
                raise SystemExit(f"{number} weights do not come back as they were")
            bits = 8 * archive.stat().st_size / number
            spent.append((pack_s, unpack_s, pack_peak, unpack_peak))
            cells = f"{pack_s:.3g} | {unpack_s:.3g} | {pack_peak / 1e6:.0f} | {unpack_peak / 1e6:.0f}"
            print(f"| {number:,} | {bits:.3f} | {cells} |", flush=True)
    for first in range(len(numbers) - 1):
        ratio = np.log(numbers[first + 1] / numbers[first])
        slopes = [
            np.log(max(b, 1e-9) / max(a, 1e-9)) / ratio for a, b in zip(spent[first], spent[first + 1], strict=True)
        ]
        name = f"exponent, {numbers[first]:,} to {numbers[first + 1]:,}"
        print(f"| {name} | | {' | '.join(f'{slope:.2f}' for slope in slopes)} |")
    print(flush=True)


def drawn(number: int) -> bytes:
    """An ONNX file: x @ (integers * scales)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(number)
    rows = max(number // WIDTH, 1)
    integers = np.empty((rows, number // rows), np.int8)
    for row in range(rows):  # one at a time: floats of all would take eight times as much
        steps = 8 * np.exp(0.5 * rng.standard_normal())
        integers[row] = np.clip(np.rint(rng.laplace(0, steps, integers.shape[1])), -127, 127)
    scales = (0.01 * np.exp(rng.standard_normal(rows))).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["integers", "scales"], ["w"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", integers.shape[1]])],
        [numpy_helper.from_array(integers, "integers"), numpy_helper.from_array(scales, "scales")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    content: bytes = model.SerializeToString()
    return content


def cost_of(way: str, source: str, target: str) -> list[float]:
    """Processor seconds, and bytes at the peak beyond those held before."""
    from gossamer.archive.files import pack_file, unpack_file
    from gossamer.measuring.machine import peak_rss_bytes

    before, begin = peak_rss_bytes(), time.process_time()
    if way == "pack":
        pack_file(source, target)
    else:
        unpack_file(source, target)
    return [time.process_time() - begin, peak_rss_bytes() - before]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="opening,growth")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--numbers", default=NUMBERS)
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        started, what, *paths = sys.argv[2:]
        found = cost_of(what, *paths) if what in ("pack", "unpack-file") else open_and_run(float(started), what, *paths)
        print(json.dumps(found))
    else:
        main(parsed())
