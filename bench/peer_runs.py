"""Peers and Gossamer run on a work of the gallery, each in a process of its own; what they made is kept in the cache.

A run is kept under the digest of what went into it: the model, the samples, and for Gossamer its own code. So a second
bench runs only what has changed. Peers live in an environment of their own, which is made here at first use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

import fetch
import gossamer
from gallery import Work
from gossamer.intake.splits import split
from gossamer.nouns.samples import samples_from_arrays
from peer import PEERS

PACKAGES = ("torch==2.13.0", "nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2", "onnxruntime==1.31.1")
PATIENCE_S = 900


@dataclass(frozen=True)
class Run:
    """What one tool made of one model.

    Attributes:
        path: the file, None where the tool failed.
        seconds: wall time of the whole process, its imports included.
        peak_rss_bytes: the most memory that the process held.
        note: its last words where it failed; what should be known where it did not.
    """

    name: str
    path: Path | None
    seconds: float
    peak_rss_bytes: int
    note: str = ""


def peers(work: Work, names: Sequence[str]) -> dict[str, Run]:
    """Every peer on the samples that Gossamer calibrates and chooses on."""
    folder, calibrate, validate = prepared(work)
    return {name: _peer(work, name, folder, calibrate, validate) for name in names}


def costs(work: Work, names: Sequence[str], samples: int) -> list[Run]:
    """Peers on the first so many samples that are given, for the cost alone."""
    folder, _, _ = prepared(work)
    folder = folder / f"cost-{samples}"
    data = folder / "calibrate.npz"
    if not data.exists():
        folder.mkdir(exist_ok=True)
        np.savez(data, **{name: array[:samples] for name, array in np.load(work.data).items()})
    return [_peer(work, name, folder, data, data) for name in names]


def ours(work: Work, runtime: str, max_drop: str) -> Run:
    """`gossamer compress MODEL --data D --max-drop 1%`; only the second runtime adds an option."""
    folder, _, _ = prepared(work)
    out = folder / f"gossamer-{runtime}-{max_drop.strip('%')}-{_code_digest()}"
    facts = out.with_name(out.name + ".json")
    if not facts.exists():
        words = ["compress", work.model, "--data", work.data, "--max-drop", max_drop, "-o", out, "--json"]
        words += [] if runtime == "onnxruntime" else ["--runtime", runtime]
        _tell(f"{work.name}: gossamer --max-drop {max_drop}, {runtime}")
        shutil.rmtree(out, ignore_errors=True)  # a run cut short would go on where it was, and look quick
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "gossamer.cli", *map(str, words)],
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - begin
        if done.returncode not in (0, 3):  # not kept: the code may be mended without its digest changing
            return Run(f"**gossamer --max-drop {max_drop}**", None, seconds, 0, _last_line(done.stderr))
        record = json.loads(done.stdout)
        kept = {"seconds": seconds, "peak_rss_bytes": record["peak_rss_bytes"], "note": _told(record)}
        facts.write_text(json.dumps(kept))
    kept = json.loads(facts.read_text())
    return Run(
        f"**gossamer --max-drop {max_drop}**: {kept['note']}",
        out / "model.onnx",
        kept["seconds"],
        kept["peak_rss_bytes"],
    )


@cache
def versions() -> dict[str, str]:
    """Of the peers' packages."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {_names()!r}}}))"
    return dict(json.loads(subprocess.run([str(python()), "-c", code], stdout=subprocess.PIPE, check=True).stdout))


@cache
def python() -> Path:
    """The interpreter of the peers' environment, which is made at first use; the stamp is the last thing written."""
    home = fetch.cache() / "peers-venv"
    stamp, wanted = home / "installed", "\n".join(PACKAGES)
    if not stamp.exists() or stamp.read_text() != wanted:
        _tell(f"installing {', '.join(PACKAGES)} into {home}; this takes some minutes")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES], check=True)
        stamp.write_text(wanted)
    return home / "bin" / "python"


@cache
def prepared(work: Work) -> tuple[Path, Path, Path]:
    """Where results of this model and these samples are kept, and the two parts that peers may see."""
    arrays = dict(np.load(work.data))
    inputs = {name: array for name, array in arrays.items() if name != "labels"}
    parts = split(samples_from_arrays(inputs, arrays.get("labels")))[:2]
    sha = hashlib.sha256(work.model.read_bytes())
    for part in parts:
        sha.update(part.digest().encode())
    folder = fetch.cache() / "runs" / f"{work.name}-{sha.hexdigest()[:8]}"
    files = [folder / "calibrate.npz", folder / "validate.npz"]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        for file, part in zip(files, parts, strict=True):
            np.savez(file, **{name: array[part.rows] for name, array in arrays.items()})
    return folder, files[0], files[1]


def _peer(work: Work, name: str, folder: Path, calibrate: Path, validate: Path) -> Run:
    result = folder / name
    facts = folder / f"{name}.run.json"
    if not facts.exists():
        words: list[str | Path] = [name, work.model, calibrate, validate, result]
        words += ["--transformer"] if work.transformer else []
        _tell(f"{work.name}: {PEERS[name]}")
        facts.write_text(json.dumps(_timed([python(), Path(__file__).with_name("peer.py"), *words], result)))
    kept = json.loads(facts.read_text())
    files = [path for path in (result.with_name(f"{name}.onnx"), result.with_name(f"{name}.xml")) if path.exists()]
    path = files[0] if files and not kept["failed"] else None
    return Run(PEERS[name], path, kept["seconds"], kept["peak_rss_bytes"], kept["note"])


def _timed(command: Sequence[str | Path], result: Path) -> dict[str, object]:
    """Run a peer to its end, however it ends."""
    begin = time.perf_counter()
    environment = {**os.environ, "NNCF_CI": "1"}  # its word for: no telemetry
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment,
        )
        code, words = done.returncode, _last_line(done.stderr)
    except subprocess.TimeoutExpired:
        code, words = 124, f"stopped after {PATIENCE_S} s"
    seconds = time.perf_counter() - begin
    told = result.with_name(result.name + ".json")
    if code == 0 and told.exists():
        own = json.loads(told.read_text())
        return {"seconds": seconds, "peak_rss_bytes": own["peak_rss_bytes"], "note": own["note"], "failed": False}
    return {"seconds": seconds, "peak_rss_bytes": 0, "note": words or f"ended with {code}", "failed": True}


@cache
def _code_digest() -> str:
    """Of all that a run of Gossamer depends on."""
    home = Path(gossamer.__file__).parent
    sha = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        sha.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:8]


def _told(record: dict[str, object]) -> str:
    return f"{record['chosen']}{'' if record['met'] else ' (floor not met)'}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def _names() -> list[str]:
    return [package.partition("==")[0] for package in PACKAGES if not package.startswith("onnx")]


def _tell(line: str) -> None:
    """Progress, away from the tables."""
    print(line, file=sys.stderr, flush=True)
