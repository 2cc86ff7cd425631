"""A plan from disk and the samples it was made with, so that it can be carried out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gossamer.errors import DataError, OptionError
from gossamer.intake.binding import bind
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.intake.splits import split
from gossamer.nouns.model import Model
from gossamer.nouns.plan import Plan, plan_from_yaml
from gossamer.nouns.samples import Samples
from gossamer.runtimes.onnxruntime import open_session


class Splits(NamedTuple):
    """Samples as `compress` splits them."""

    calibrate: Samples
    select: Samples
    verify: Samples


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


def recorded_splits(plan: Plan, source: Model, base: Path) -> Splits:
    """The very samples that the plan names, split as they were.

    Args:
        base: the folder that the plan's path to the data starts from.

    Raises:
        DataError: they cannot be read.
        OptionError: they are not what they were.
    """
    calibration = plan.calibration
    try:
        splits = splits_of(recorded_path(calibration.data, base), recorded_options(plan), plan, source)
    except DataError as error:
        raise DataError(f"the plan names its calibration samples, and {error}; give --data") from error
    if calibration.digest and splits.calibrate.digest() != calibration.digest:
        raise OptionError(
            f"the calibration samples in {calibration.data} are not those the plan was made with; "
            "restore them, or give --data to calibrate anew"
        )
    return splits


def recorded_path(name: str, base: Path) -> str | Path:
    """Samples that a plan names: a file or folder seen from the plan's own, or what the name says by itself."""
    return base / name if name and (base / name).exists() else name


def recorded_options(plan: Plan) -> DataOptions | None:
    """How the plan's pictures became arrays."""
    options = plan.calibration.options
    return msgspec.convert(options, DataOptions) if options else None


def splits_of(data: Any, options: DataOptions | None, plan: Plan, source: Model) -> Splits:
    """Any samples, split with the plan's seed."""
    session = open_session(source.path or source, plan.calibration.threads)
    samples = bind(read_samples(data, options), session.inputs)
    return Splits(*split(samples, plan.calibration.seed)[:3])
