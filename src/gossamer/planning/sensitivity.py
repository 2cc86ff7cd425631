"""How loudly the network's outputs hear the noise of each layer, measured for some of them.

A layer's objective is in units of its own outputs. Divided by their energy it is a noise-to-signal ratio, and that
times the layer's gain, outputs' noise over layer's noise, is in units that layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np

FAINTEST = 1e-3  # of the median gain: a layer that no sample heard may still be heard by others


def gains(
    layers: Sequence[str],
    noise_ratios: Mapping[str, float],
    measure: Callable[[str], float],
    budget_s: float = 30.0,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, float]:
    """Noise-to-signal ratio of the network's outputs, over that of the layer which alone was disturbed.

    Layers are measured in an order that is spread over the network at any time; those that the budget leaves out get
    what their measured neighbours suggest.

    Args:
        layers: in graph order.
        noise_ratios: of each layer's outputs under a reference constraint: loss / zero_loss.
        measure: layer -> that of the network's outputs with this layer alone under its reference constraint.
        budget_s: no layer is begun after so many seconds; one is always measured.
        clock: seconds.
    """
    begin = clock()
    known: dict[int, float] = {}
    for place in _spread(len(layers)):
        if known and clock() - begin > budget_s:
            break
        layer_noise = noise_ratios[layers[place]]
        if layer_noise > 0:
            known[place] = measure(layers[place]) / layer_noise
    finite = {place: gain for place, gain in known.items() if np.isfinite(gain)}
    heard = [gain for gain in finite.values() if gain > 0]
    if not heard:
        return dict.fromkeys(layers, 1.0)
    faintest = FAINTEST * float(np.median(heard))
    places = sorted(finite)
    logs = np.log([max(finite[place], faintest) for place in places])
    every = np.exp(np.interp(np.arange(len(layers)), places, logs))
    return dict(zip(layers, every.tolist(), strict=True))


def _spread(count: int) -> list[int]:
    """0 to count - 1: first the two ends, then the middle of what lies between, and so on."""
    order = dict.fromkeys([0, count - 1] if count else [])
    step = count
    while step > 1:
        step = (step + 1) // 2
        order.update(dict.fromkeys(range(0, count, step)))
    return [place for place in order if 0 <= place < count]
