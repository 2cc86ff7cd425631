"""Products in 4 bits by second order beside the weight quantizers of onnxruntime and nncf: same weights, same samples.

    python bench/second_order_peers.py [--nets minilm,deep] [--only gossamer]

All put the same matrix products (MatMul with a constant) into 4 bits with a scale for so many weights along a row, and
leave tables and the head in float. Every tool runs in a process of its own; `deep` is MiniLM with every layer twice in
a row, its own copies of the published weights, and a head fitted on that. Samples are cut to their own length for
peers, which know no mask; ours come padded, as users have them. Seconds are those of the whole process.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 300
Arrays = dict[str, np.ndarray]
Rows = list[Arrays]


def main(arguments: argparse.Namespace) -> None:
    """One table for each network."""
    import judge
    import peer_runs
    from second_order_cases import HEAD, Net, row

    print(judge.header(f"python bench/second_order_peers.py --nets {arguments.nets}", peer_runs.versions()), flush=True)
    for name in arguments.nets.split(","):
        net = Net(name)
        print(f"### {name}, products in 4 bits, judged on {len(net.original)} samples\n")
        print(HEAD.replace("CPU s", "tool CPU s") + "\n" + 8 * "|---" + "|")
        for case in CASES:
            if any(fnmatch(case, f"*{part}*") for part in arguments.only.split(",")):
                print(row(net, case, run(net, case)), flush=True)
        print()


def run(net: Any, case: str) -> Any:
    """A tool in its own process and environment; kept in the cache, ours under the digest of its code."""
    import peer_runs
    from second_order_cases import Made, code_digest

    ours = case.startswith("gossamer")
    kept = net.folder / f"peer-{case.replace(' ', '-')}{'-' + code_digest() if ours else ''}.npz"
    if not kept.exists():
        print(f"{net.name}: {case}", file=sys.stderr, flush=True)
        python = str(peer_runs.python()) if case.startswith("nncf") else sys.executable  # the other peer needs onnx_ir
        outputs, facts = _in_process(net, case, python)
        if ours and not outputs.size:  # not kept: the code may be mended without its digest changing
            return Made(None, facts)
        np.savez(kept, outputs=outputs, facts=json.dumps(facts))
    with np.load(kept) as file:
        outputs, facts = np.asarray(file["outputs"]), json.loads(str(file["facts"]))
    return Made(outputs if outputs.size else None, facts)


def _in_process(net: Any, case: str, python: str) -> tuple[np.ndarray, dict[str, Any]]:
    import os
    import subprocess

    from gossamer.errors import GossamerError
    from second_order_cases import outputs_of

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "made"
        words = [python, __file__, "--case", case, str(net.work.model), str(net.work.data), str(target)]
        words += ["--judge", str(net.work.folder / "judge.npz")]
        environment = {**os.environ, "NNCF_CI": "1"}  # its word for: no telemetry
        if case.startswith("nncf"):
            environment.pop("PYTHONPATH", None)
        begin = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        wall_s = time.perf_counter() - begin
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
            return np.zeros(0), {"notes": [lines[-1][:200]]}
        facts = json.loads(done.stdout.splitlines()[-1])
        stored = target.with_suffix(".onnx")
        try:
            outputs = outputs_of(stored, net.inputs) if stored.exists() else np.load(target.with_suffix(".npy"))
        except GossamerError as error:
            return np.zeros(0), {"notes": [str(error)[:200]]}
        return outputs, {**facts, "wall_s": wall_s}


# --- one tool in one process


def gossamer(constraint: str, sequential: bool, model: Path, data: Path, target: Path) -> None:
    """As `gossamer constrain` does it, for the products alone."""
    from gossamer.graph.edit import constant
    from gossamer.intake.normalise import normalise
    from gossamer.intake.onnx_file import read
    from gossamer.measuring.evidence import Evidence
    from gossamer.nouns.model import save
    from gossamer.nouns.plan import Plan, Scope, Step
    from gossamer.nouns.samples import samples_from_arrays
    from gossamer.passes.contract import run_plan
    from gossamer.planning.candidates import CLEAN

    arrays = dict(np.load(data))
    arrays.pop("labels", None)
    original = normalise(read(model))
    products = (n for n in original.ir.graph if n.op_type == "MatMul" and constant(n.inputs[1]) is not None)
    config = {"constraint": constraint, "sequential": sequential}
    step = Step("constrain_weights", config, Scope(only=tuple(node.name or "" for node in products)))
    plan = Plan("products", (*CLEAN.steps, step))
    save(
        run_plan(plan, original, Evidence(samples_from_arrays(arrays).first(SAMPLES))).model,
        target.with_suffix(".onnx"),
    )


def onnxruntime(method: str, block: int, symmetric: bool, model: Path, data: Path, target: Path) -> None:
    """MatMulNBitsQuantizer, as its documentation shows."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as peer

    config = None
    if method == "hqq":
        config = peer.HQQWeightOnlyQuantConfig(block_size=block, bits=4)
    elif method == "gptq":
        config = peer.GPTQWeightOnlyQuantConfig(_Reader(_rows(data)))
    elif method == "gptq-actorder":
        config = peer.GPTQWeightOnlyQuantConfig(_Reader(_rows(data)), actorder=True, mse=True)
    quantizer = peer.MatMulNBitsQuantizer(
        onnx.load(model), block_size=block, is_symmetric=symmetric, algo_config=config, accuracy_level=1
    )
    quantizer.process()
    onnx.save(quantizer.model.model, target.with_suffix(".onnx"))


class _Reader:
    """Samples one by one, once for each time it is asked."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.rows)


def nncf(backend: str, mode: str, group: int, data_aware: str, model: Path, data: Path, target: Path) -> None:
    """`nncf.compress_weights`; OpenVINO's result is run here, in float32, as its file opens nowhere else."""
    import nncf as peer  # type: ignore[import-not-found]

    options: dict[str, Any] = {name: True for name in data_aware.split("+") if name}
    if options:
        options |= {"dataset": peer.Dataset(_rows(data)), "subset_size": SAMPLES}
    options |= {"ratio": 1.0, "group_size": group, "backup_mode": peer.BackupMode.NONE}
    which = peer.CompressWeightsMode.INT4_SYM if mode == "sym" else peer.CompressWeightsMode.INT4_ASYM
    if backend == "onnx":
        import onnx

        onnx.save(peer.compress_weights(onnx.load(model), mode=which, **options), target.with_suffix(".onnx"))
        return
    import openvino as ov

    compressed = peer.compress_weights(_turned(ov.Core().read_model(model)), mode=which, **options)
    ov.save_model(compressed, target.with_suffix(".xml"), compress_to_fp16=False)


def _turned(model: Any) -> Any:
    """Weights as models from PyTorch have them, (N, K): on ONNX's (K, N) the data-aware modes go astray or refuse."""
    from openvino import opset13 as ops

    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or product.get_attributes()["transpose_b"]:
            continue
        weight = product.input_value(1).get_node()
        if weight.get_type_name() == "Constant" and len(weight.shape) == 2:
            turned = ops.constant(np.ascontiguousarray(weight.data.T))
            other = ops.matmul(product.input_value(0), turned, False, True)
            other.set_friendly_name(product.get_friendly_name())
            product.output(0).replace(other.output(0))
    return model


def _run_openvino(path: Path, rows: Rows) -> np.ndarray:
    import openvino as ov

    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.compile_model(path, "CPU", exact)
    return np.concatenate([np.array(compiled(row)[0]) for row in rows])


def _rows(data: Path, most: int | None = SAMPLES) -> Rows:
    """Samples one by one, cut to their own length."""
    arrays = {name: array[:most] for name, array in np.load(data).items() if name != "labels"}
    lengths = arrays["attention_mask"].sum(1)
    return [
        {name: array[row : row + 1, :length] for name, array in arrays.items()} for row, length in enumerate(lengths)
    ]


Tool = Callable[[Path, Path, Path], None]
CASES: dict[str, Tool] = {
    **{
        f"onnxruntime {method} {kind} block {block}": partial(onnxruntime, method, block, kind == "sym")
        for block in (32, 128)
        for method, kind in (("default", "sym"), ("default", "asym"), ("hqq", "asym"), ("gptq", "asym"))
    },
    "onnxruntime gptq-actorder asym block 32": partial(onnxruntime, "gptq-actorder", 32, False),
    **{
        f"nncf {backend} int4_{mode} group {group} {data_aware or 'data-free'}": partial(
            nncf, backend, mode, group, data_aware
        )
        for group in (64, 128)
        for mode in ("sym", "asym")
        for backend, data_aware in (
            ("onnx", ""),
            ("onnx", "awq+scale_estimation"),
            ("openvino", ""),
            ("openvino", "awq+scale_estimation"),
            ("openvino", "scale_estimation+gptq"),
            ("openvino", "awq+scale_estimation+gptq"),
        )
    },
    **{
        f"gossamer {constraint}{' sequential' if sequential else ''}": partial(gossamer, constraint, sequential)
        for group in (32, 64, 128)
        for constraint in (f"grid:4:group={group}", f"grid:4:asymmetric:group={group}")
        for sequential in (False, True)
    },
}


def child(arguments: argparse.Namespace) -> None:
    """Run one tool; its facts go to standard output."""
    logging.disable(logging.WARNING)
    case, model, data, target = arguments.case[0], *map(Path, arguments.case[1:])
    begin, cpu = time.perf_counter(), time.process_time()
    CASES[case](model, data, target)
    facts: dict[str, Any] = {"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu, "notes": []}
    files = [path for path in target.parent.iterdir() if path.suffix in (".onnx", ".bin", ".xml", ".data")]
    facts["bytes"] = sum(path.stat().st_size for path in files)
    facts["peak_rss_bytes"] = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    if target.with_suffix(".xml").exists():
        np.save(target.with_suffix(".npy"), _run_openvino(target.with_suffix(".xml"), _rows(arguments.judge, None)))
    print("\n" + json.dumps(facts))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="minilm,deep")
    parser.add_argument("--only", default="", help="parts of rows' names, with commas; * any text between")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    if options.case:
        child(options)
    else:
        main(options)
