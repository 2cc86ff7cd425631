"""Gossamer makes trained neural networks smaller, faster and cheaper to run, and proves that they still work.

>>> import gossamer
>>> gossamer.Budget(max_drop=0.01).minimize
'latency'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.archive.files import inspect_archive, pack_file, unpack_file
    from gossamer.archive.unpacking import read_archive
    from gossamer.comparison import compare, measure, verify
    from gossamer.compression import apply, carry_out, compress, constraining, plan
    from gossamer.errors import GossamerError
    from gossamer.intake.onnx_file import load
    from gossamer.intake.samples import DataOptions
    from gossamer.intake.torch_module import load_torch
    from gossamer.measuring.inspection import inspect
    from gossamer.nouns.budget import Budget
    from gossamer.nouns.facts import Facts
    from gossamer.nouns.model import Model, save
    from gossamer.nouns.plan import Plan, Scope, Step
    from gossamer.nouns.record import Record
    from gossamer.nouns.samples import Samples
    from gossamer.nouns.target import Target
    from gossamer.training.command import train_model
    from gossamer.training.own_loop import from_torch, to_torch

__version__ = "0.1.0"

# where each public name lives; imported at first use, so that `import gossamer` stays light
_HOME = {
    "Budget": "nouns.budget",
    "DataOptions": "intake.samples",
    "Facts": "nouns.facts",
    "GossamerError": "errors",
    "Model": "nouns.model",
    "Plan": "nouns.plan",
    "Record": "nouns.record",
    "Samples": "nouns.samples",
    "Scope": "nouns.plan",
    "Step": "nouns.plan",
    "Target": "nouns.target",
    "apply": "compression",
    "carry_out": "compression",
    "compare": "comparison",
    "compress": "compression",
    "constraining": "compression",
    "from_torch": "training.own_loop",
    "inspect": "measuring.inspection",
    "inspect_archive": "archive.files",
    "load": "intake.onnx_file",
    "load_torch": "intake.torch_module",
    "measure": "comparison",
    "pack_file": "archive.files",
    "plan": "compression",
    "read_archive": "archive.unpacking",
    "save": "nouns.model",
    "to_torch": "training.own_loop",
    "train_model": "training.command",
    "unpack_file": "archive.files",
    "verify": "comparison",
}

__all__ = [
    "Budget",
    "DataOptions",
    "Facts",
    "GossamerError",
    "Model",
    "Plan",
    "Record",
    "Samples",
    "Scope",
    "Step",
    "Target",
    "apply",
    "carry_out",
    "compare",
    "compress",
    "constraining",
    "from_torch",
    "inspect",
    "inspect_archive",
    "load",
    "load_torch",
    "measure",
    "pack_file",
    "plan",
    "read_archive",
    "save",
    "to_torch",
    "train_model",
    "unpack_file",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        home = importlib.import_module(f"gossamer.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "lightning_fabric", "safetensors"):
            raise
        from gossamer.errors import MissingExtraError

        raise MissingExtraError(f"gossamer.{name} needs {error.name}: pip install 'gossamer[train]'") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
