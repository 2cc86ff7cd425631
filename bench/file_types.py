"""Magika's inputs: bytes of files that lie on this machine, labelled by their extension.

Google's Magika (Fratantonio et al. 2024) looks at the first and last 1,024 bytes of a file, white space at the ends
left out, places that a short file does not fill holding 256. Which files lie here differs by machine, so figures do not
repeat elsewhere; within one run all are judged on the same.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fetch

ROOTS = (sysconfig.get_paths()["purelib"], "/usr/include", "/usr/lib", "/usr/share", "/etc")
PART, BLOCK, EMPTY = 1024, 4096, 256
MOST_OF_A_KIND = 60
MOST_SEEN = 200_000


def model() -> Path:
    """The published ONNX file."""
    (path,) = fetch.magika().glob("models/*/model.onnx")
    return path


def build() -> dict[str, np.ndarray]:
    """`bytes` (N, 2048) int32 and `labels`, at most 60 files of a kind, in an order of no meaning."""
    kinds = _kinds()
    rows: list[np.ndarray] = []
    labels: list[int] = []
    taken: dict[int, int] = {}
    for path in _files():
        kind = kinds.get(path.suffix[1:].lower())
        if kind is None or taken.get(kind, 0) >= MOST_OF_A_KIND:
            continue
        row = _window(path)
        if row is not None:
            rows.append(row)
            labels.append(kind)
            taken[kind] = taken.get(kind, 0) + 1
    order = np.random.default_rng(0).permutation(len(rows))
    arrays = {"bytes": np.stack(rows)[order], "labels": np.array(labels, np.int64)[order]}
    _, first = np.unique(arrays["bytes"], axis=0, return_index=True)  # a file copied elsewhere counts once
    return {name: array[np.sort(first)] for name, array in arrays.items()}


def _files() -> Iterator[Path]:
    seen = 0
    for root in ROOTS:
        for path in sorted(Path(root).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path
                seen += 1
                if seen >= MOST_SEEN:
                    return


def _kinds() -> dict[str, int]:
    """Extension -> position of the one label that uses it."""
    (config,) = fetch.magika().glob("models/*/config.min.json")
    positions = {name: at for at, name in enumerate(json.loads(config.read_text())["target_labels_space"])}
    known = json.loads((fetch.magika() / "config" / "content_types_kb.min.json").read_text())
    uses: dict[str, list[str]] = {}
    for name, entry in known.items():
        for extension in entry["extensions"]:
            uses.setdefault(extension, []).append(name)
    return {
        extension: positions[names[0]] for extension, names in uses.items() if len(names) == 1 and names[0] in positions
    }


def _window(path: Path) -> np.ndarray | None:
    """First and last bytes, or None if there are hardly any or they cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(BLOCK)
            file.seek(max(0, path.stat().st_size - BLOCK))
            tail = file.read(BLOCK)
    except OSError:
        return None
    head, tail = head.lstrip()[:PART], tail.rstrip()[-PART:]
    if len(head) < 64:
        return None
    row = np.full(2 * PART, EMPTY, np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    row[2 * PART - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row
