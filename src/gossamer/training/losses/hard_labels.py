"""Hard labels: what a person says is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.errors import DataError
from gossamer.training.losses.contract import Seen

TINIEST = 1e-7  # of a probability, before its logarithm


class HardLabels(nn.Module):
    """Cross-entropy with classes 0, 1, 2, ...; for numbers, the mean squared error.

    Args:
        output: which of the outputs has the scores (B, C, ...), or the numbers, that the labels speak of.
        smoothing: share of each label that is spread over all classes (Szegedy et al. 2016).
        probabilities: the graph ends in a softmax: outputs are probabilities, whose logarithms are the scores.
    """

    def __init__(self, output: int = 0, smoothing: float = 0.0, probabilities: bool = False) -> None:
        super().__init__()
        self.output = output
        self.smoothing = smoothing
        self.probabilities = probabilities

    def forward(self, seen: Seen) -> Tensor:
        scores, labels = seen.outputs[self.output], seen.labels
        if labels is None:
            raise DataError("hard_labels needs labels; name an array 'labels', or learn from a teacher: soft_labels")
        if labels.is_floating_point():
            return functional.mse_loss(scores.reshape(labels.shape), labels.to(scores.dtype))
        return functional.cross_entropy(
            as_scores(scores, self.probabilities), labels.long(), label_smoothing=self.smoothing
        )


def as_scores(output: Tensor, probabilities: bool) -> Tensor:
    """What a softmax takes: the output itself, or the logarithms of probabilities."""
    return output.clamp(min=TINIEST).log() if probabilities else output


def check_labels(scores: Tensor, labels: Tensor, source: str, rows: Sequence[int] | None = None) -> None:
    """See that labels (N, ...) fit scores (B, C, ...).

    Args:
        rows: which sample of the data each label is of; None: in order.

    Raises:
        DataError: shapes that do not fit, or a label that is no class.
    """
    if labels.is_floating_point():
        if labels[0].numel() != scores[0].numel():
            raise DataError(
                f"{source}: labels are {labels[0].numel()} numbers a sample, the model gives {scores[0].numel()}; "
                "they must be as many, or whole numbers that name classes"
            )
        return
    if scores.ndim < 2 or tuple(labels.shape[1:]) != tuple(scores.shape[2:]):
        raise DataError(
            f"{source}: labels have shape {_free(labels)} and the model's scores {_free(scores)}; "
            "a class is needed for every row of scores"
        )
    classes = scores.shape[1]
    wrong = torch.nonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        sample = int(wrong[0][0]) if rows is None else int(rows[int(wrong[0][0])])
        value = int(labels[tuple(wrong[0])])
        raise DataError(
            f"{source}: the label of sample {sample} is {value}; the model gives {classes} scores, "
            f"so labels go from 0 to {classes - 1}"
        )


def _free(tensor: Tensor) -> str:
    """A shape whose first axis is the number of samples."""
    return f"({', '.join(['N', *map(str, tensor.shape[1:])])})"
