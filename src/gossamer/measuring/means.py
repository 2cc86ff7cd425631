"""Mean outputs over two halves of the samples: one half to estimate with, the other to check on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.onnxruntime import open_session


def half_means(
    model: Model, names: Sequence[str], samples: Samples, threads: int = 1
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mean over the first axis of some outputs, for the even and for the odd samples, streaming.

    Args:
        names: outputs of the model, each (B, O).

    Returns:
        name -> (mean over even samples, mean over odd samples), float64 (O,). A single sample serves as both.
    """
    session = open_session(model, threads)
    sums: list[dict[str, np.ndarray]] = [{}, {}]
    counts = [0, 0]
    for index, batch in enumerate(samples.batches(session.static_batch or 1)):
        half = index % 2
        arrays = session.run(batch.feeds, names)
        counts[half] += 1
        for name, array in zip(names, arrays, strict=True):
            sums[half][name] = sums[half].get(name, 0.0) + array.astype(np.float64).mean(axis=0)
    if counts[1] == 0:
        sums[1], counts[1] = sums[0], counts[0]
    return {name: (sums[0][name] / counts[0], sums[1][name] / counts[1]) for name in names}
