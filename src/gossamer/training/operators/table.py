"""All operators, by domain and name."""

from __future__ import annotations

from gossamer.training.operators import (
    activations,
    attention,
    convolution,
    elementwise,
    fake_quantize,
    indexing,
    linear,
    losses,
    microsoft,
    norms,
    pooling,
    quantization,
    recurrent,
    reductions,
    resizing,
    sampling,
    sequences,
    shapes,
    signal,
)
from gossamer.training.operators.contract import Operator, Table

_THEMES: tuple[Table, ...] = (
    activations.TABLE,
    attention.TABLE,
    convolution.TABLE,
    elementwise.TABLE,
    indexing.TABLE,
    linear.TABLE,
    losses.TABLE,
    norms.TABLE,
    pooling.TABLE,
    quantization.TABLE,
    recurrent.TABLE,
    reductions.TABLE,
    resizing.TABLE,
    sampling.TABLE,
    sequences.TABLE,
    shapes.TABLE,
    signal.TABLE,
)
DOMAINS: dict[str, Table] = {
    "": {name: operator for theme in _THEMES for name, operator in theme.items()},
    "com.microsoft": microsoft.TABLE,
    fake_quantize.DOMAIN: fake_quantize.TABLE,
}


def find(domain: str, op_type: str, version: int) -> Operator | None:
    """The operator as a version of its domain means it, or None if it is not known."""
    known = DOMAINS.get(domain, {}).get(op_type, ())
    versions = (known,) if isinstance(known, Operator) else known
    return max((entry for entry in versions if entry.since <= version), key=lambda entry: entry.since, default=None)
