"""Moving the range of an activation's channels into the weights that read it.

Xiao et al. 2022, "SmoothQuant: accurate and efficient post-training quantization for large language models", whose
exponent is searched for here by the noise of the product itself, as Lin et al. 2023, "AWQ: activation-aware weight
quantization for LLM compression and acceleration", do for weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LARGEST = 1e6  # a channel whose factor is above this, or below its inverse, stays as it is
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def scales(x_peak_C: np.ndarray, w_peak_C: np.ndarray, alpha: float) -> np.ndarray:
    """What each channel is divided by, max|x|^alpha / max|w|^(1 - alpha), float64 (C,).

    1 where one side is dead or the factor would be extreme.
    """
    alive = (x_peak_C > 0) & (w_peak_C > 0) & np.isfinite(w_peak_C)
    logs = np.log([np.where(alive, peak_C, 1.0) for peak_C in (x_peak_C, w_peak_C)])
    s_C = np.exp(alpha * logs[0] - (1 - alpha) * logs[1])
    return np.where((s_C > LARGEST) | (s_C < 1 / LARGEST), 1.0, s_C)


def soft_peaks(parts_RC: Sequence[np.ndarray]) -> np.ndarray:
    """The fourth root of the mean fourth power of every channel, float64 (C,).

    It grows with outliers as the peak does, but does not hang on a single value: with peaks, more samples made the
    scales of a real encoder worse by 3 dB.
    """
    powers_PC = [np.mean(np.square(np.square(x_RC, dtype=np.float64)), axis=0) for x_RC in parts_RC if len(x_RC)]
    return np.asarray(np.mean(powers_PC, axis=0) ** 0.25)


def product_noise(
    parts_RC: Sequence[np.ndarray],
    exact_RO: np.ndarray,
    w_CO: np.ndarray,
    s_C: np.ndarray,
    x_peak_C: np.ndarray | None = None,
) -> float:
    """Noise power of x @ w with both in 8 bits, x divided by s and w multiplied.

    Args:
        parts_RC: activations, float32; without `x_peak_C` each array has a range of its own, as one call of a dynamic
            quantizer has.
        exact_RO: the exact products of all of them together.
        w_CO: weights; each output channel has its own scale.
        x_peak_C: of a static quantizer, whose one range reaches to the largest of them, divided by s.
    """
    limit = None if x_peak_C is None else float((x_peak_C / s_C).max(initial=0))
    scaled_CO = np.asarray(w_CO, np.float32) * s_C[:, None].astype(np.float32)
    step_O = np.maximum(np.abs(scaled_CO).max(axis=0, initial=0) / 127, np.finfo(np.float32).tiny)
    rounded_CO = np.rint(scaled_CO / step_O) * step_O
    rounded_RC = np.concatenate([_rounded(x_RC / s_C.astype(np.float32), limit) for x_RC in parts_RC])
    error_O = np.square(rounded_RC @ rounded_CO - exact_RO).sum(axis=0)
    return float(error_O.sum(dtype=np.float64))


def best_scales(
    parts_RC: Sequence[np.ndarray], w_CO: np.ndarray, least_gain_db: float, static_peak_C: np.ndarray | None = None
) -> np.ndarray:
    """The scales of the exponent with the least noise; all 1 if none gains `least_gain_db` over leaving it alone.

    Args:
        static_peak_C: max|x| over all samples, if a static quantizer follows: what it must reach decides then. Without,
            a dynamic one does, and soft peaks of the parts stand for the channels.
    """
    w_peak_C = np.abs(w_CO).max(axis=1, initial=0).astype(np.float64)
    alone = np.ones(len(w_CO))
    x_peak_C = soft_peaks(parts_RC) if static_peak_C is None else static_peak_C
    exact_RO = np.concatenate(parts_RC) @ np.asarray(w_CO, np.float32)
    tried = [scales(x_peak_C, w_peak_C, alpha) for alpha in ALPHAS]
    noises = [product_noise(parts_RC, exact_RO, w_CO, s_C, static_peak_C) for s_C in tried]
    best = int(np.argmin(noises))
    before = product_noise(parts_RC, exact_RO, w_CO, alone, static_peak_C)
    worth = noises[best] < before * 10 ** (-least_gain_db / 10)
    return tried[best] if worth else alone


def _rounded(x: np.ndarray, limit: float | None = None) -> np.ndarray:
    """x in 256 steps between its extremes and zero, or to either side of zero up to a limit."""
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    if limit is not None:  # a range of one sign, as behind a Gelu, keeps to its side
        low, high = (-limit if -low > high / 16 else low), (limit if high > -low / 16 else high)
    step = (high - low) / 255
    if step <= 0:
        return x
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(x / np.float32(step)) + zero, 0, 255) - zero) * np.float32(step))
