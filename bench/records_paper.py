"""Deep Compression (Han, Mao and Dally 2016), written from the paper, for the records bench. No gossamer in its way.

- Pruning: in each layer weights below quality x standard deviation go, and what is left is trained on, gradients of
  what is gone masked; in rounds of growing quality (Han et al. 2015). The qualities of layers are to each other as the
  paper's published densities ask of normal weights: a factor of 1 gives these densities.
- Sharing: k-means in each layer with centroids that begin evenly spaced between the least and the largest weight; 256
  values for a convolution, 32 for a dense layer. Centroids are then trained with the sum of their weights' gradients.
- Coding: positions as differences in 5 bits, a filler zero wherever a gap is wider; values and differences each by a
  Huffman code of their layer.

Counted are the two bit streams, a code length a symbol for each Huffman table (a byte each), centroids and biases as
float32. The network's graph, of which the paper says nothing, is not counted.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from records_files import Made, made_once, write_facts
from records_nets import Case, build, data, dense, dense_key, fit, hits_of

DENSITIES = {  # the paper's, layer by layer; of VGG-16's first and deepest convolutions and its three dense layers
    "lenet300": (0.08, 0.09, 0.26),
    "lenet5": (0.66, 0.12, 0.08, 0.19),
    "vgg": (0.58, 0.22, 0.34, 0.36, 0.04, 0.04, 0.23),
}
FINE = 0.1  # of the dense rate: "retrained with 1/10 of the original learning rate"
SHARE_RATE = 1e-3  # of centroids, whose gradients are sums over many weights
VALUES = {True: 256, False: 32}  # of a convolution, of a dense layer
INDEX_BITS = 5


class Factors(NamedTuple):
    """Of the qualities, round by round, and rounds before the curve's first point."""

    each: tuple[float, ...]
    first: int


def points(case: Case, factors: Factors) -> list[Made]:
    """The curve, from dense to sparse; each pruned further from the one before."""
    upto = [factors.each[: rung + 1] for rung in range(len(factors.each))]
    return [_shared(case, _pruned(case, some), some) for some in upto[factors.first :]]


def _pruned(case: Case, factors: tuple[float, ...]) -> Made:
    source = _pruned(case, factors[:-1]) if len(factors) > 1 else dense(case)

    def fill(folder: Path) -> None:
        begin, net = time.process_time(), _loaded(case, source)
        thresholds = _thresholds(_loaded(case, dense(case)), case.net, factors[-1])
        masks = [w.detach().abs() > limit for w, limit in zip(_weights(net), thresholds, strict=True)]
        generator = torch.Generator().manual_seed(1000 * len(factors) + case.seed)
        fit(net, case, case.effort.prune, FINE * case.effort.rate, generator, _masking(net, masks))
        _masking(net, masks)()
        torch.save(net.state_dict(), folder / "state.pt")
        spent = time.process_time() - begin + (source.facts["cpu_s"] if len(factors) > 1 else 0)
        write_facts(folder, {"cpu_s": spent})

    return made_once("paper-pruned", [*_key(case), factors], fill)


def _shared(case: Case, source: Made, factors: tuple[float, ...]) -> Made:
    def fill(folder: Path) -> None:
        begin, net = time.process_time(), _loaded(case, source)
        codes = [_clustered(w.detach().numpy(), VALUES[w.ndim == 4]) for w in _weights(net)]
        indices = [torch.from_numpy(index) for index, _ in codes]
        tables = [torch.from_numpy(table) for _, table in codes]
        generator = torch.Generator().manual_seed(1000 * len(factors) + 500 + case.seed)
        before, after = _sharing(net, indices, tables)
        after()
        right = fit(net, case, case.effort.share, SHARE_RATE, generator, after, before, decay=0.0)
        torch.save(net.state_dict(), folder / "state.pt")
        np.save(folder / "test-hits.npy", hits_of(net, data(case.data).test))
        streams = [stored_bytes(i.numpy(), len(t)) for i, t in zip(indices, tables, strict=True)]
        biases = 4 * sum(p.numel() for p in net.parameters() if p.ndim == 1)
        kept = sum(int((i >= 0).sum()) for i in indices)
        facts = {"bytes": sum(streams) + biases, "density": kept / sum(i.numel() for i in indices)}
        spent = time.process_time() - begin + source.facts["cpu_s"]
        write_facts(folder, {**facts, "validation": right, "cpu_s": spent})

    return made_once("paper-shared", [*_key(case), factors, case.effort.share], fill)


def _key(case: Case) -> list[object]:
    return [*dense_key(case), case.effort.prune, Path(__file__).read_text()]


def _loaded(case: Case, made: Made) -> nn.Module:
    net = build(case.net, case.seed)
    net.load_state_dict(torch.load(made.folder / "state.pt"))
    return net.eval()


def _weights(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.ndim > 1]


# --- pruning


def _thresholds(net: nn.Module, name: str, factor: float) -> list[float]:
    """Quality x standard deviation of the dense layer's weights."""
    qualities = [NormalDist().inv_cdf(1 - density / 2) for density in DENSITIES[name]]
    return [factor * q * float(w.detach().std()) for q, w in zip(qualities, _weights(net), strict=True)]


def _masking(net: nn.Module, masks: list[Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def mask() -> None:
        for w, kept in zip(_weights(net), masks, strict=True):
            w.mul_(kept)

    return mask


# --- sharing


def _clustered(w: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The index of each weight, -1 where it is zero, and the centroids: k-means from evenly spaced ones."""
    left = w[w != 0].astype(np.float64)
    if not len(left):
        return np.full(w.shape, -1), np.zeros(1, np.float32)
    centroids = np.linspace(left.min(), left.max(), k)
    for _ in range(100):
        nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, left)
        count, total = np.bincount(nearest, minlength=k), np.bincount(nearest, left, minlength=k)
        moved = np.sort(np.where(count > 0, total / np.maximum(count, 1), centroids))
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    index = np.full(w.shape, -1)
    index[w != 0] = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, left)
    return index, centroids.astype(np.float32)


def _sharing(
    net: nn.Module, indices: list[Tensor], tables: list[Tensor]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Before a step each weight's gradient becomes the sum over its cluster, as the shared value's is; after it what
    moved is taken over into the tables. Weights of a cluster so take the same steps, momentum included."""

    @torch.no_grad()
    def before() -> None:
        for w, index, table in zip(_weights(net), indices, tables, strict=True):
            if w.grad is None:
                continue
            summed = torch.zeros(len(table) + 1).index_add_(0, (index + 1).flatten(), w.grad.flatten())
            summed[0] = 0  # what was pruned
            w.grad.copy_(summed[index + 1])

    @torch.no_grad()
    def after() -> None:
        for w, index, table in zip(_weights(net), indices, tables, strict=True):
            if w.grad is not None:  # all weights of a cluster are equal: any of them is the new centroid
                table[index[index >= 0]] = w[index >= 0]
            w.copy_(torch.where(index >= 0, table[index.clamp(min=0)], torch.zeros(())))

    return before, after


# --- coding


def stored_bytes(index: np.ndarray, k: int) -> int:
    """A layer's two streams, its Huffman tables and its centroids."""
    flat = index.reshape(-1)
    places = np.flatnonzero(flat >= 0)
    gaps = np.diff(places, prepend=-1) - 1  # zeros in front of each weight
    span = 1 << INDEX_BITS
    fillers = gaps // span  # each stands for span - 1 zeros and the zero that it is itself
    differences = np.concatenate([gaps % span, np.full(int(fillers.sum()), span - 1)])
    values = np.concatenate([flat[places], np.full(int(fillers.sum()), k)])  # a filler's value is zero
    bits = huffman_bits(np.bincount(values, minlength=k + 1)) + huffman_bits(np.bincount(differences, minlength=span))
    return -(-bits // 8) + (k + 1) + span + 4 * k


def huffman_bits(counts: np.ndarray) -> int:
    """Of a stream with these counts: the sum of all inner nodes of the code's tree."""
    heap = [int(count) for count in counts if count]
    if len(heap) < 2:
        return sum(heap)  # a bit each: one symbol needs a code as well
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total
