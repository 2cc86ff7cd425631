"""Relations: how far apart samples are, and at which angles (relational distillation, Park et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from gossamer.training.losses.contract import Seen, check_taught
from gossamer.training.losses.embeddings import SHORTEST, Embedding, unit

DISTANCE, ANGLE = 25.0, 50.0  # the paper's, for classifiers
MOST_VALUES = 2**22  # of one tensor, where angles are computed


class Relations(nn.Module):
    """distance * Huber(distances of pairs) + angle * Huber(cosines of triples), student against teacher.

    Distances are divided by their mean over the batch's pairs; the cosine of a triple is that of its corner. Neither
    depends on a scale, a turn or a shift of the embedding, nor on its width. A batch of one has neither, and gives 0.

    Args:
        embedding: the rows (B, D) that are compared.
        distance, angle: the factors that the paper recommends beside a cross-entropy.
    """

    def __init__(
        self,
        embedding: Embedding = Embedding(),  # noqa: B008  # frozen, so it can be shared
        distance: float = DISTANCE,
        angle: float = ANGLE,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.distance = distance
        self.angle = angle

    def forward(self, seen: Seen) -> Tensor:
        check_taught(seen, "relations")
        student_BD = self.embedding.of(seen.outputs)
        teacher_BE = self.embedding.of(seen.taught).to(student_BD.dtype)
        with torch.autocast(student_BD.device.type, enabled=False):
            near = smooth_l1_loss(distances(student_BD), distances(teacher_BE))
            return self.distance * near + self.angle * angles_apart(student_BD, teacher_BE)


def distances(embedding_BD: Tensor) -> Tensor:
    """Euclidean distances of all pairs (B, B) over their mean; all 0 where all samples are the same."""
    far_BB = torch.cdist(embedding_BD, embedding_BD, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = max(len(far_BB) * (len(far_BB) - 1), 1)
    mean = far_BB.sum() / pairs
    return torch.where(mean > SHORTEST, far_BB / mean.clamp(min=SHORTEST), 0.0)


def angles_apart(student_BD: Tensor, teacher_BE: Tensor, most_values: int = MOST_VALUES) -> Tensor:
    """The mean over triples of the Huber loss of their cosines.

    Of B^3 cosines only so many are in memory at once as make up `most_values`, in the backward pass too, where they
    are computed again.
    """
    count = len(student_BD)
    size = max(1, most_values // (count * (count + student_BD.shape[1] + teacher_BE.shape[1])))
    if size >= count:
        return _corners_apart(student_BD, teacher_BE, 0, count) / count**3
    sums = [
        checkpoint(
            _corners_apart,
            student_BD,
            teacher_BE,
            start,
            start + size,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, count, size)
    ]
    return torch.stack(sums).sum() / count**3


def _corners_apart(student_BD: Tensor, teacher_BE: Tensor, start: int, stop: int) -> Tensor:
    """The sum over triples whose corner is one of these samples."""
    return smooth_l1_loss(_cosines(student_BD, start, stop), _cosines(teacher_BE, start, stop), reduction="sum")


def _cosines(embedding_BD: Tensor, start: int, stop: int) -> Tensor:
    """Of the angle at each corner between all pairs of samples: (corners, B, B); 0 where two samples are one."""
    arms_KBD = unit(embedding_BD[None] - embedding_BD[start:stop, None], 2)
    return arms_KBD @ arms_KBD.transpose(1, 2)
