"""Bytes of models as archives, beside general compressors and nncodec; every byte is counted, all are lossless.

    python bench/archive.py [--nets lite0,minilm,demo,digits] [--forms float,grid:8,...] [--no-nncodec]

Each network is stored in float, in 8 and in 4 bits, and 90 % sparse with 16 values, all to the nearest point, and its
ONNX file is packed. zip, zstd and xz get the whole file. nncodec knows integers alone; a column of ours beside it has
only these, with all tables. Order-0 is what all symbols would take if each plane of each tensor were coded by its own
frequencies, and these, the graph and all else cost nothing. Seconds are processor seconds of one core.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import zstandard

import fetch
import gossamer
import judge
import second_order_nets
from gossamer.archive.pack import Packed, pack
from gossamer.archive.reader import INTEGERS, PLANES, unpack
from gossamer.archive.spans import spans
from gossamer.archive.symbols import taken
from gossamer.archive.tables import Decoder
from gossamer.intake.normalise import normalise
from gossamer.nouns.plan import Plan, Step
from gossamer.passes.contract import run_plan
from gossamer.planning.candidates import CLEAN

NETS = "lite0,minilm,demo,digits"
FORMS = "grid:8,grid:4,sparse:0.9+codebook:16,float"
NAMES = {"grid:8": "int8", "grid:4": "int4", "sparse:0.9+codebook:16": "90 % sparse, 16 values", "float": "float"}
NNCODEC, NUMPY = "nncodec==2.1.3", "numpy<2"
REPEATS_BYTES, REPEATS = 10_000_000, 7  # of a model below which the best of so many is taken


class Peer(NamedTuple):
    """What nncodec made of a model's integers; rates in million weights a second."""

    size_bytes: int
    encode: float
    decode: float


class Row(NamedTuple):
    """One model; rates in million weights a second, of the whole file and of a file of its integers alone."""

    net: str
    form: str
    model_bytes: int
    general: dict[str, int]
    packed: Packed
    encode: float
    decode: float
    alone: tuple[float, float]
    integers: int
    integer_bytes: float
    peer: Peer | None


def main() -> None:
    """All models, then the tables."""
    arguments = parsed()
    rows = []
    for net in arguments.nets.split(","):
        for form in arguments.forms.split(","):
            print(f"{net} {form}", file=sys.stderr, flush=True)
            rows.append(measured(net, form, not arguments.no_nncodec))
    print(judge.header(f"python bench/archive.py --nets {arguments.nets} --forms {arguments.forms}"))
    print_bytes(rows)
    print_parts(rows)
    print_rates(rows)


def measured(net: str, form: str, with_peer: bool) -> Row:
    """Pack a model, see that it comes back, and let the others have it."""
    data = model_bytes(net, form)
    repeats = REPEATS if len(data) < REPEATS_BYTES else 1
    packed, encode_s = best(lambda: pack(data), repeats)
    back, decode_s = best(lambda: unpack(packed.data, decoder=Decoder), repeats)
    if back != data:
        raise SystemExit(f"{net} {form} does not come back as it was")
    general = {
        "zip": len(zlib.compress(data, 9)),
        "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(data)),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    weights = packed.numbers / 1e6
    integers = integers_of(data)
    coded = sum(tensor.coded_bytes for tensor in packed.tensors if tensor.name in integers) + packed.table_bytes
    return Row(
        net,
        form,
        len(data),
        general,
        packed,
        weights / encode_s,
        weights / decode_s,
        rates_alone(data, integers, repeats),
        sum(array.size for array in integers.values()),
        coded,
        nncodec(integers, repeats) if with_peer and integers else None,
    )


def rates_alone(data: bytes, names: Collection[str], repeats: int) -> tuple[float, float]:
    """Of the integers that nncodec gets, in a file of nothing else: encoded and decoded, million a second."""
    if not names:
        return float("nan"), float("nan")
    model = onnx.load_from_string(data)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in names]
    alone = onnx.helper.make_model(onnx.helper.make_graph([], "integers", [], [], kept)).SerializeToString()
    packed, encode_s = best(lambda: pack(alone), repeats)
    back, decode_s = best(lambda: unpack(packed.data, decoder=Decoder), repeats)
    if back != alone:
        raise SystemExit("integers alone do not come back as they were")
    return packed.numbers / 1e6 / encode_s, packed.numbers / 1e6 / decode_s


def model_bytes(net: str, form: str) -> bytes:
    """The ONNX file, made at first use."""
    original = second_order_nets.work(net).model
    if form == "float":
        return original.read_bytes()

    def make(folder: Path) -> None:
        stored = "cast" if form.startswith("grid") else "fastest"
        step = Step("constrain_weights", {"constraint": form, "solver": "nearest", "form": stored})
        result = run_plan(Plan(form, (*CLEAN.steps, step)), normalise(gossamer.load(original)))
        gossamer.save(result.model, folder / "model.onnx")

    name = form.replace(":", "-").replace("+", "-")
    return (fetch.once(f"archive/{net}-{name}", make) / "model.onnx").read_bytes()


def best(call: Callable[[], object], repeats: int) -> tuple[object, float]:
    """The result, and the least processor seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        result = call()
        seconds.append(time.process_time() - begin)
    return result, min(seconds)


# --- nncodec


def integers_of(data: bytes) -> dict[str, np.ndarray]:
    """Large tensors of integers by name, in rows, zero where it is most."""
    every = spans(data)
    shapes = {
        span.name: tuple(np.frombuffer(data[span.offset : span.offset + span.length], "<i8").tolist())
        for span in every
        if span.name.endswith("_shape") and span.data_type == 7
    }
    found = {}
    for span in every:
        got = taken(data[span.offset : span.offset + span.length], span, shapes)
        if span.length >= 2048 and got is not None and got.kind in (INTEGERS, PLANES):
            plane = got.planes[0]
            found[span.name] = (plane.values.astype(np.int16) - len(plane.level) // 2).reshape(-1, plane.width)
    return found


def nncodec(integers: dict[str, np.ndarray], repeats: int) -> Peer:
    """In a process of its environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, facts = Path(folder) / "integers.npz", Path(folder) / "facts.json"
        np.savez(source, **{str(place): array for place, array in enumerate(integers.values())})
        script = Path(__file__).with_name("archive_peer.py")
        command = [python(), script, source, facts, str(repeats)]
        subprocess.run(command, check=True, stdout=sys.stderr, env={"OMP_NUM_THREADS": "1"})
        found = json.loads(facts.read_text())
    if not found["same"]:
        raise SystemExit("nncodec did not give the integers back")
    weights = sum(array.size for array in integers.values()) / 1e6
    return Peer(found["bytes"], *(weights / seconds for seconds in found["seconds"]))


@cache
def python() -> Path:
    """The interpreter of nncodec's environment, made at first use; the stamp is the last thing written."""
    home = fetch.cache() / "nncodec-venv"
    stamp, wanted = home / "installed", f"{NNCODEC} {NUMPY}"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {wanted} into {home}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", NNCODEC], check=True)
        subprocess.run([*pip, NUMPY], check=True)
        stamp.write_text(wanted)
    return home / "bin" / "python"


# --- tables


def print_bytes(rows: list[Row]) -> None:
    """What everything takes."""
    print("\n## Bytes of the file\n")
    print("| | model | zip | zstd -19 | xz -9e | order-0 | **.goss** | bits a weight | to order-0 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        size, bound = len(row.packed.data), row.packed.order0_bits / 8
        cells = [row.model_bytes, *row.general.values(), round(bound)]
        print(
            f"| {title(row)} | {' | '.join(f'{cell:,}' for cell in cells)} | **{size:,}** "
            f"| {8 * size / row.packed.numbers:.3f} | {size / bound - 1:+.2%} |"
        )


def print_parts(rows: list[Row]) -> None:
    """What the archive's bytes are, and the integers beside nncodec's."""
    print("\n## Where the bytes are\n")
    print(
        "| | header | graph | tables | tensors | tensors and tables to order-0 | integers | nncodec | ours to nncodec |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        packed = row.packed
        tensors = len(packed.data) - packed.header_bytes - packed.graph_bytes - packed.table_bytes
        cells = [packed.header_bytes, packed.graph_bytes, packed.table_bytes, tensors]
        bound = (tensors + packed.table_bytes) / (packed.order0_bits / 8) - 1
        peer = " | | "
        if row.peer is not None:
            ratio = row.integer_bytes / row.peer.size_bytes - 1
            peer = f"{row.integer_bytes:,.0f} | {row.peer.size_bytes:,} | {ratio:+.2%}"
        print(f"| {title(row)} | {' | '.join(f'{cell:,}' for cell in cells)} | {bound:+.2%} | {peer} |")


def print_rates(rows: list[Row]) -> None:
    """Million weights a second, of the whole file and of the same integers alone."""
    print("\n## Million weights a second, one core\n")
    print("| | encode: file | integers | nncodec | | decode: file | integers | nncodec | |")
    print(9 * "|---" + "|")
    for row in rows:
        peer = (row.peer.encode, row.peer.decode) if row.peer is not None else (float("nan"),) * 2
        sides = zip((row.encode, row.decode), row.alone, peer, strict=True)
        cells = [f"{whole:.1f} | {alone:.1f} | {other:.1f} | {alone / other:.1f}x" for whole, alone, other in sides]
        print(f"| {title(row)} | {' | '.join(cells)} |".replace("nanx", "").replace("nan", ""))


def title(row: Row) -> str:
    """Of a row."""
    return f"{row.net}, {NAMES.get(row.form, row.form)}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=NETS)
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--no-nncodec", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
