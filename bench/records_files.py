"""The records bench's cache: a folder for each thing made, under `records/`, by all that determines it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fetch


@dataclass(frozen=True)
class Made:
    """A folder, with `model.onnx` in it unless the paper's pipeline made it, and what is known of it."""

    folder: Path
    facts: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "model.onnx"


def made_once(kind: str, key: Sequence[object], fill: Callable[[Path], None]) -> Made:
    """A folder that is filled at first use, with `facts.json` in it; work cut short leaves none behind."""
    name = f"{kind}-{hashlib.sha256(repr(list(key)).encode()).hexdigest()[:12]}"
    folder = fetch.once(f"records/{name}", fill)
    return Made(folder, json.loads((folder / "facts.json").read_text()))


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "facts.json").write_text(json.dumps(facts))
