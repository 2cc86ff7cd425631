"""The packaged network and its images, as files for a test."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np


def demo_in(folder: Path, images: int) -> Path:
    """The folder, with the network and so many of its labelled images in it."""
    (folder / "original.onnx").write_bytes(files("gossamer.demo").joinpath("original.onnx").read_bytes())
    with files("gossamer.demo").joinpath("data.npz").open("rb") as file:
        data = np.load(file)
        np.savez(folder / "data.npz", image=data["image"][:images], labels=data["labels"][:images])
    return folder
