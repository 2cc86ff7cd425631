"""A plan from disk and the samples it was made with, so that it can be carried out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gossamer.errors import DataError, OptionError
from gossamer.intake.binding import bind
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.intake.splits import split
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, plan_from_yaml
from gossamer.runtimes.onnxruntime import open_session


def read_plan(path: Path) -> Plan:
    """A plan.yaml from disk.

    Raises:
        OptionError: it is absent or no plan.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise OptionError(f"cannot read plan {path}: {error.strerror or error}") from error
    return plan_from_yaml(text, str(path))


def recorded_evidence(plan: Plan, source: Model, base: Path) -> Evidence:
    """Evidence over the very samples that the plan names.

    Args:
        base: the folder that the plan's path to the data starts from.

    Raises:
        DataError: they cannot be read.
        OptionError: they are not what they were.
    """
    calibration = plan.calibration
    try:
        evidence = evidence_from(recorded_path(calibration.data, base), recorded_options(plan), plan, source)
    except DataError as error:
        raise DataError(f"the plan names its calibration samples, and {error}; give --data") from error
    if calibration.digest and evidence.samples.digest() != calibration.digest:
        raise OptionError(
            f"the calibration samples in {calibration.data} are not those the plan was made with; "
            "restore them, or give --data to calibrate anew"
        )
    return evidence


def recorded_path(name: str, base: Path) -> str | Path:
    """Samples that a plan names: a file or folder seen from the plan's own, or what the name says by itself."""
    return base / name if name and (base / name).exists() else name


def recorded_options(plan: Plan) -> DataOptions | None:
    """How the plan's pictures became arrays."""
    options = plan.calibration.options
    return msgspec.convert(options, DataOptions) if options else None


def evidence_from(data: Any, options: DataOptions | None, plan: Plan, source: Model) -> Evidence:
    """Evidence over the calibration split of any samples, made with the plan's seed."""
    threads = plan.calibration.threads
    session = open_session(source.path or source, threads)
    samples = bind(read_samples(data, options), session.inputs)
    return Evidence(split(samples, plan.calibration.seed)[0], threads)
