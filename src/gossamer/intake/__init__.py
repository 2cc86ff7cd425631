"""A model and data come in: ONNX files and torch modules, arrays, image folders and iterables."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.intake.binding import bind, cast_notes
    from gossamer.intake.normalise import normalise
    from gossamer.intake.onnx_file import load, read
    from gossamer.intake.samples import DataOptions, read_samples
    from gossamer.intake.splits import split
    from gossamer.intake.torch_module import load_torch

# where each name lives; imported at first use, so that reading options does not load onnx
_HOME = {
    "DataOptions": "samples",
    "bind": "binding",
    "cast_notes": "binding",
    "load": "onnx_file",
    "load_torch": "torch_module",
    "normalise": "normalise",
    "read": "onnx_file",
    "read_samples": "samples",
    "split": "splits",
}

__all__ = ["DataOptions", "bind", "cast_notes", "load", "load_torch", "normalise", "read", "read_samples", "split"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
