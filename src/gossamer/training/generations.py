"""Born again: a network taught by an earlier copy of itself, generation after generation (Furlanello et al. 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from gossamer.errors import OptionError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.nouns.model import Model
from gossamer.training.command import Summary, train_model
from gossamer.training.lower import lower
from gossamer.training.options import Options
from gossamer.training.teaching import Distillation
from gossamer.training.write_back import write_back


def born_again(
    model: Any,
    train_data: Any,
    out: str | Path = "out",
    generations: int = 1,
    distillation: Distillation = Distillation(),  # noqa: B008  # frozen, so it can be shared
    options: Options = Options(),  # noqa: B008
    data: Any = None,
) -> tuple[Summary, ...]:
    """Train the same graph anew from random weights, taught by the one before it; the first by the model as it is.

    Generation k is `out/generation-k/model.onnx`. Which one is the best, their accuracies say; the mean of several
    (`teacher=[...]` of `train_model`) is better still in the paper.

    Args:
        generations: from 1; each takes as long as a training.
        options: the seed of generation k is `options.seed + k`.

    Raises:
        OptionError: generations below 1.
        GossamerError: as `train_model`.
    """
    if generations < 1:
        raise OptionError(f"generations is {generations}; allowed is a whole number from 1 up")
    first = normalise(read(model))
    teacher, summaries = first, list[Summary]()
    for generation in range(1, generations + 1):
        seed = options.seed + generation
        folder = Path(out) / f"generation-{generation}"
        seeded = msgspec.structs.replace(options, seed=seed)
        summary = train_model(afresh(first, seed), train_data, folder, teacher, distillation, seeded, data)
        summaries.append(summary)
        teacher = read(summary.artifact)
    return tuple(summaries)


def afresh(model: Model, seed: int) -> Model:
    """A clone with random weights: each trained tensor of two axes or more is drawn anew, normal, as wide as it was.

    The spread that a tensor came to in training is a good one to begin with, whatever its node; vectors (biases,
    scales and statistics of norms) and constants stay.

    Raises:
        ModelError: the graph cannot be trained.
    """
    module = lower(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad and weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.square().mean().sqrt())
    return write_back(module, model)
