"""Every loss that learns from a teacher and brings no layers of its own, with what it is called with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from gossamer.training.losses.attention import Attention
from gossamer.training.losses.contract import Seen
from gossamer.training.losses.correlation import Correlation
from gossamer.training.losses.decoupled import Decoupled
from gossamer.training.losses.relations import Relations
from gossamer.training.losses.similarities import Similarities

FEATURE, ROWS = (4, 3, 2, 2), (5, 4)
CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "attention": (Attention(), FEATURE),
    "similarities": (Similarities(), FEATURE),
    "relations": (Relations(), ROWS),
    "correlation": (Correlation(2.0), ROWS),
    "decoupled": (Decoupled(2.0), ROWS),
}


def numbers(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=st.floats(-4, 4))


def seen(student: Any, teacher: Any, labels: Any = None) -> Seen:
    """A piece of a batch, in float64."""
    own, taught = (torch.as_tensor(np.asarray(values, np.float64)) for values in (student, teacher))
    return Seen((own,), (taught,), None if labels is None else torch.as_tensor(labels))


def gradient(loss: nn.Module, student: Any, teacher: Any) -> torch.Tensor:
    """Of the student's outputs, in float32 as in training."""
    own = torch.tensor(np.asarray(student, np.float32), requires_grad=True)
    torch.autograd.backward(loss(Seen((own,), (torch.tensor(np.asarray(teacher, np.float32)),), None)))
    assert own.grad is not None
    return own.grad
