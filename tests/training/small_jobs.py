"""A little network and data that it can learn, for tests of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.training.lessons import Lessons
from gossamer.training.losses.hard_labels import HardLabels
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil, WeightedLoss
from gossamer.training.run import Job
from gossamer.training.watching import Watch

CLASSES = 3


def samples(count: int = 240, seed: int = 0) -> Samples:
    """Points (N, 8) whose class a linear map says."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 8)).astype(np.float32)
    return samples_from_arrays({"x": x}, (x @ np.random.default_rng(7).standard_normal((8, CLASSES))).argmax(1))


def network(dropout: float = 0.0) -> nn.Sequential:
    """Eight numbers to three scores; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))


def job(
    module: nn.Module | None = None,
    data: Samples | None = None,
    losses: tuple[WeightedLoss, ...] | None = None,
    checkpoint: Path | None = None,
    watch: Watch = Watch(),  # noqa: B008
    save_s: float = 60.0,
    options: Mapping[str, Any] | None = None,
) -> Job:
    """Training of the little network on four fifths of the points; the rest validate."""
    data = samples() if data is None else data
    cut = len(data) * 4 // 5
    settings = {"epochs": 2, "batch": 32, "rate": 0.01, "device": "cpu", **(options or {})}
    return Job(
        Pupil(network() if module is None else module, losses or (WeightedLoss(HardLabels()),)),
        Lessons(data.take(np.arange(cut))),
        Lessons(data.take(np.arange(cut, len(data)))),
        Options(**settings),
        checkpoint,
        watch,
        save_s,
        name="little",
    )


def values(module: nn.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers, copied."""
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same bytes."""
    ours, theirs = values(a), values(b)
    return all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
