"""What 8 bit weights lose on an x86 processor without VNNI, and 7 bit ones do not: the demo network under emulation.

    apt-get install qemu-user
    python bench/no_vnni.py [--samples 300] [--qemu qemu-x86_64]

Without VNNI products of unsigned and signed bytes are added in pairs in int16 (vpmaddubsw), which saturates. The same
files run natively and under `qemu-x86_64 -cpu Haswell`, which has AVX2 and nothing later; signal-to-noise is that of
the logits against the float network's. Emulation is far slower: 300 pictures take about a minute a file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CALIBRATION = 200
BITS = (8, 7)
DEMO = Path(__file__).resolve().parent.parent / "src" / "gossamer" / "demo"


def main() -> None:
    given = parsed()
    if given.run:
        run(Path(given.run), Path(given.samples_file), Path(given.out))
        return
    qemu = shutil.which(given.qemu)
    if qemu is None:
        raise SystemExit(f"no {given.qemu}; apt-get install qemu-user, or give --qemu PATH")
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), given.samples, [qemu, "-cpu", given.cpu])


def compare(folder: Path, count: int, emulator: list[str]) -> None:
    data = np.load(DEMO / "data.npz")
    images, labels = data["image"][CALIBRATION:][:count], data["labels"][CALIBRATION:][:count]
    np.save(folder / "images.npy", images)
    wanted = logits(DEMO / "original.onnx", folder, [])
    print(f"{len(images)} pictures; float native: {np.mean(wanted.argmax(1) == labels):.1%}")
    print("| weights | natively | emulated | logits against float, natively | emulated |\n|---|---|---|---|---|")
    for bits in BITS:
        path = quantized(folder, data["image"][:CALIBRATION], bits)
        native, emulated = logits(path, folder, []), logits(path, folder, emulator)
        right = [f"{np.mean(y.argmax(1) == labels):.1%}" for y in (native, emulated)]
        noise = [f"{snr_db(wanted, y):.1f} dB" for y in (native, emulated)]
        print(f"| {bits} bits | {' | '.join(right + noise)} |", flush=True)


def quantized(folder: Path, images: np.ndarray, bits: int) -> Path:
    from gossamer.intake.normalise import normalise
    from gossamer.intake.onnx_file import read
    from gossamer.measuring.evidence import Evidence
    from gossamer.nouns.model import save
    from gossamer.nouns.plan import Plan, Step
    from gossamer.nouns.samples import samples_from_arrays
    from gossamer.passes.contract import run_plan

    static = Step("quantize_static", {"weight_bits": bits, "rounding": "sums"})
    steps = (Step("fold_constants"), Step("fold_batchnorm"), static, Step("correct_bias"))
    model = normalise(read(DEMO / "original.onnx"))
    evidence = Evidence(samples_from_arrays({"image": list(images)}), 1)
    save(run_plan(Plan("static", steps), model, evidence).model, folder / f"{bits}.onnx")
    return folder / f"{bits}.onnx"


def logits(path: Path, folder: Path, emulator: list[str]) -> np.ndarray:
    """All outputs, from a process of its own."""
    command = [*emulator, sys.executable, __file__, "--run", str(path), "--samples-file", str(folder / "images.npy")]
    ran = subprocess.run([*command, "--out", str(folder / "out.npy")], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{path.name}: {ran.stderr.strip()[-500:]}")
    return np.asarray(np.load(folder / "out.npy"))


def run(path: Path, samples: Path, out: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    np.save(out, np.concatenate([session.run(None, {name: image[None]})[0] for image in np.load(samples)]))


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--qemu", default="qemu-x86_64")
    parser.add_argument("--cpu", default="Haswell")
    for name in ("--run", "--samples-file", "--out"):  # for the process under emulation
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
