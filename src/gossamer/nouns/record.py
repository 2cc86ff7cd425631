"""Record: what was done, in numbers. It is `record.json` and what `compress` returns."""

from __future__ import annotations

import builtins

import msgspec

from gossamer.nouns.diagnosis import Diagnosis
from gossamer.nouns.facts import Accuracy, Bytes, Energy, Facts, Latency, LayerError
from gossamer.nouns.plan import Plan
from gossamer.nouns.prediction import Forecast


class Split(msgspec.Struct, frozen=True):
    """One of the three sets of samples: how many, and the SHA-256 of their content."""

    n: int
    digest: str


class Splits(msgspec.Struct, frozen=True):
    """`calibrate` set the ranges, `select` chose the candidate, `verify` gave the figures shown.

    `optimistic` names the figures that are flattered because sets had to share samples; empty when none is.
    """

    calibrate: Split
    select: Split
    verify: Split
    seed: int
    optimistic: tuple[str, ...] = ()


class Candidate(msgspec.Struct, frozen=True):
    """One plan that was tried: its facts on the `select` split, or the error that ended it."""

    plan: Plan
    facts: Facts | None = None
    met: bool = False
    error: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    processor: str
    cores: int
    instruction_sets: tuple[str, ...]
    system: str
    python: str
    versions: dict[str, str]


class Record(msgspec.Struct, frozen=True):
    """Everything measured in one `compress`.

    The first block keeps the words that every command's `--json` uses. `max_bytes` and `max_latency_ratio`, a share of
    the original's, are limits that were asked for. `energy` is None where a shape is unknown,
    `diagnosis` where time was up, `forecast` where the chosen plan constrains no weight.
    """

    met: bool
    artifact: str
    accuracy: Accuracy
    bytes: Bytes
    latency_ms: Latency
    seconds: float
    peak_rss_bytes: int

    max_drop: float
    minimize: str
    confident: bool
    chosen: str
    model: str
    data: str
    original_sha256: str
    artifact_sha256: str
    labelled: bool
    splits: Splits
    candidates: tuple[Candidate, ...]
    machine: Machine
    energy: Energy | None = None
    diagnosis: Diagnosis | None = None
    forecast: Forecast | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    gossamer: str = ""
    max_bytes: int | None = None
    max_latency_ratio: float | None = None

    def to_json(self) -> builtins.bytes:
        """The record as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class Comparison(msgspec.Struct, frozen=True):
    """Two files held against each other; `layers` lists the noise of each tensor that both have, worst first."""

    met: bool
    artifact: str
    accuracy: Accuracy
    bytes: Bytes
    latency_ms: Latency
    seconds: float
    peak_rss_bytes: int
    max_drop: float
    layers: tuple[LayerError, ...]


def record_from_json(text: builtins.bytes) -> Record:
    """Read a record that `to_json` wrote."""
    return msgspec.json.decode(text, type=Record)
