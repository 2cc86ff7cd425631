"""Moments where there are no samples: noise is fed through the model, and batch norms say how large channels are.

Noise keeps what the weights in front of a layer make of any input: which channels move together, and which are silent.
How large a channel is on real data, a batch norm in front of the layer remembers: its outputs have mean beta and
deviation gamma (as in Nagel et al. 2019, "Data-free quantization"). Both are a stand-in for samples, and labelled so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import NormalDist

import numpy as np
import onnx_ir as ir

from gossamer.arith.moments import Moments
from gossamer.errors import CandidateError
from gossamer.graph.edit import attribute_float, constant
from gossamer.graph.weight_matrix import CONVOLUTIONS, WeightMatrix, matrices_by_weight
from gossamer.measuring.fetching import with_outputs
from gossamer.measuring.gathering import MEMORY_BYTES
from gossamer.measuring.moments import fetch, moments
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples, samples_from_arrays
from gossamer.runtimes.onnxruntime import open_session

COUNT = 32  # of noisy samples
SIDE, LENGTH = 64, 32  # of free axes: of pictures, and of all else
QUANTILES = np.array([NormalDist().inv_cdf((step + 0.5) / 512) for step in range(512)])


def moments_without_data(
    model: Model, weights: Collection[str], seed: int = 0, threads: int = 1, memory_bytes: int = MEMORY_BYTES
) -> dict[str, Moments]:
    """H of these weights from noise; its `source` is "batch norm" where one told the channels' sizes, else "noise".

    Tables are not weighted by look-ups, which noise knows nothing of.

    Raises:
        ModelError: see `moments`.
        DataError: noise makes NaN or infinity of a tensor.
        CandidateError: the runtime refuses the model, or noise as its input.
    """
    samples = noise(model, seed)
    try:
        found = moments(model, weights, samples, threads, memory_bytes)
    except CandidateError as error:
        raise CandidateError(f"{model.name} does not run on noise, so its moments need samples: {error}") from error
    known = {name: uses[0] for name, uses in matrices_by_weight(model.ir.graph, set(weights)).items() if len(uses) == 1}
    expected = {name: energy for name, use in known.items() if (energy := _energy_behind_norm(use)) is not None}
    seen = _channel_energies(model, {name: known[name].node.inputs[0] for name in expected}, samples, threads)
    result = {}
    for name, of_noise in found.items():
        if of_noise.h_GKK is None:
            result[name] = Moments(None, None, len(samples), "noise")
        elif name in seen and seen[name].shape == expected[name].shape:
            h_GKK = _resized(of_noise.h_GKK, known[name], seen[name], expected[name])
            result[name] = Moments(h_GKK, None, len(samples), "batch norm")
        else:
            result[name] = of_noise._replace(source="noise")
    return result


def noise(model: Model, seed: int) -> Samples:
    """Inputs that a model may take: normal floats, on several scales if they are pictures; indices of the tables that
    they are looked up in; ones for other integers.

    Raises:
        CandidateError: the runtime refuses the model.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    limits = {value.name or "": _table_rows(value) for value in model.ir.graph.inputs}
    for name, (dtype, shape) in open_session(model).inputs.items():
        free = SIDE if len(shape) > 3 else LENGTH
        sizes = [size if isinstance(size, int) and size > 0 else free for size in shape[1:]]
        if dtype.kind == "f":
            columns[name] = _many_scales(rng, (COUNT, *sizes)).astype(dtype)
        elif limits.get(name):
            columns[name] = rng.integers(0, limits[name], (COUNT, *sizes)).astype(dtype)
        else:
            columns[name] = np.ones((COUNT, *sizes), dtype)
    return samples_from_arrays(columns, source="noise")


def _table_rows(value: ir.Value) -> int:
    """The rows of the smallest table that an input is looked up in, or 0."""
    tables = [
        constant(node.inputs[0])
        for node in value.consumers()
        if node.op_type == "Gather" and len(node.inputs) > 1 and node.inputs[1] is value
    ]
    return min((len(table) for table in tables if table is not None and table.ndim), default=0)


def _many_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal noise; of four axes and more, the mean of ever coarser noise too, as near pixels are alike."""
    total, step, count = rng.normal(size=shape), 2, 1
    while len(shape) > 3 and step <= min(shape[2:]):
        coarse = rng.normal(size=(*shape[:2], *(-(-size // step) for size in shape[2:])))
        for axis, size in enumerate(shape[2:], 2):
            coarse = coarse.repeat(step, axis).take(np.arange(size), axis)
        total, step, count = total + coarse, 2 * step, count + 1
    return np.asarray(total / np.sqrt(count))


def _energy_behind_norm(use: WeightMatrix) -> np.ndarray | None:
    """E[x^2] of every input channel as a batch norm in front of the layer has it, (C,); None without one."""
    if use.node.op_type not in (*CONVOLUTIONS, "Gemm") or use.node.inputs[0] is None:
        return None
    chain: list[ir.Node] = []
    node = use.node.inputs[0].producer()
    while node is not None and node.op_type in ("Relu", "Clip", "LeakyRelu") and node.inputs[0] is not None:
        chain.insert(0, node)
        node = node.inputs[0].producer()
    if node is None or node.op_type != "BatchNormalization":
        return None
    gamma, beta = constant(node.inputs[1]), constant(node.inputs[2])
    if gamma is None or beta is None:
        return None
    x_CQ = beta[:, None] + np.abs(gamma[:, None]) * QUANTILES
    for step in chain:
        x_CQ = _applied(step, x_CQ)
    return np.asarray(np.square(x_CQ).mean(axis=1))


def _applied(node: ir.Node, x: np.ndarray) -> np.ndarray:
    if node.op_type == "LeakyRelu":
        return np.asarray(np.where(x < 0, attribute_float(node, "alpha", 0.01) * x, x))
    if node.op_type == "Relu":
        return np.asarray(np.maximum(x, 0))
    low, high = (constant(node.inputs[slot]) if len(node.inputs) > slot else None for slot in (1, 2))
    return np.asarray(np.clip(x, -np.inf if low is None else low, np.inf if high is None else high))


def _channel_energies(
    model: Model, tensors: Mapping[str, ir.Value | None], samples: Samples, threads: int
) -> dict[str, np.ndarray]:
    """Weight name -> E[x^2] on noise of every channel of its layer's input, (C,)."""
    fetched = {name: value.name or "" for name, value in tensors.items() if value is not None}
    if not fetched:
        return {}
    names = list(dict.fromkeys(fetched.values()))
    session = open_session(with_outputs(model, names, "moments"), threads)
    sums: dict[str, np.ndarray] = {}
    batches = list(samples.batches(session.static_batch or 1))
    for batch in batches:
        for name, array in fetch(session, names, batch.feeds).items():
            power_C = np.square(array, dtype=np.float64).mean(axis=(0, *range(2, array.ndim)))
            sums[name] = sums.get(name, 0.0) + power_C / len(batches)
    return {name: sums[tensor] for name, tensor in fetched.items()}


def _resized(h_GKK: np.ndarray, use: WeightMatrix, seen_C: np.ndarray, expected_C: np.ndarray) -> np.ndarray:
    """H with every channel as large as expected; a channel that noise does not reach is given a diagonal."""
    groups, _, k = use.shape_GOK
    taps = int(np.prod(use.k_shape[1:]))
    alive_C = seen_C > 1e-12
    factor_C = np.sqrt(np.where(alive_C, expected_C / np.where(alive_C, seen_C, 1.0), 0.0))
    factor_GK = np.repeat(factor_C, taps).reshape(groups, k)
    resized = factor_GK[:, :, None] * h_GKK * factor_GK[:, None]
    if alive_C.all():
        return np.asarray(resized, np.float32)
    diagonal_CT = np.einsum("gkk->gk", h_GKK).reshape(-1, taps)
    places_T = (diagonal_CT[alive_C] / seen_C[alive_C, None]).mean(axis=0) if alive_C.any() else np.ones(taps)
    missing_CT = np.where(alive_C, 0.0, expected_C)[:, None] * places_T
    index = np.arange(k)
    resized[:, index, index] += missing_CT.reshape(groups, k)
    return np.asarray(resized, np.float32)
