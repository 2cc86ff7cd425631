"""Noise of a result's outputs against the original's: powers, ratios, decibels."""

from __future__ import annotations

import math

import numpy as np

from gossamer.errors import CandidateError, DataError
from gossamer.measuring.batches import Outputs

LIMIT_DB = 200.0  # equal outputs have no noise, and JSON has no infinity


def powers(outputs: Outputs, expected: Outputs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise and signal of `count` samples, each (outputs, B): sums of squares over a sample, in float64.

    Floating-point outputs count; all numeric ones if none is floating-point.

    Raises:
        CandidateError: the result misses an output.
        DataError: an output has no batch axis.
    """
    names = [name for name, array in expected.items() if array.dtype.kind == "f"]
    names = names or [name for name, array in expected.items() if array.dtype.kind in "iub"]
    missing = [name for name in names if name not in outputs]
    if missing:
        raise CandidateError(f"the result has no output {missing[0]!r}; it must keep the original's output names")
    pairs = [_power(name, outputs[name], expected[name], count) for name in names]
    noise_OB = np.array([noise_B for noise_B, _ in pairs]).reshape(len(pairs), count)
    signal_OB = np.array([signal_B for _, signal_B in pairs]).reshape(len(pairs), count)
    return noise_OB, signal_OB


def ratio(noise: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Noise over signal; where there is no signal, 0 without noise and 1 with."""
    silent = np.where(noise > 0, 1.0, 0.0)
    return np.asarray(np.divide(noise, signal, out=silent, where=signal > 0))


def to_db(noise_ratio: float) -> float:
    """Signal-to-noise ratio in dB, within -200 to 200."""
    if noise_ratio <= 0:
        return LIMIT_DB
    return (
        float(np.clip(-10 * math.log10(noise_ratio), -LIMIT_DB, LIMIT_DB)) if math.isfinite(noise_ratio) else -LIMIT_DB
    )


def _power(name: str, got: np.ndarray, expected: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if count == 1:  # whatever its axes mean, all of it belongs to the one sample
        got, expected = got.reshape(1, -1), expected.reshape(1, -1)
    if expected.ndim == 0 or len(expected) != count:
        raise DataError(
            f"output {name!r} has shape {expected.shape} for {count} samples; its first axis must count them; "
            "export the model with a batch of 1 or a free batch axis"
        )
    wide = np.asarray(expected, np.float64).reshape(count, -1)
    signal_B = _sum_of_squares(wide)
    if got.shape != expected.shape:  # another number of detections, say: nothing of it can be compared
        return np.maximum(signal_B, 1.0), np.maximum(signal_B, 1.0)
    other = np.asarray(got, np.float64).reshape(count, -1)
    if np.isfinite(signal_B).all():
        return _sum_of_squares(np.subtract(other, wide)), signal_B
    # infinities, masks for instance, count neither as signal nor, where both have them, as noise
    noise = np.subtract(other, wide, where=other != wide, out=np.zeros_like(wide))
    return _sum_of_squares(noise), _sum_of_squares(np.where(np.isfinite(wide), wide, 0.0))


def _sum_of_squares(values_BX: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("bx,bx->b", values_BX, values_BX))
