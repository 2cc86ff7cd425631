"""How many of each layer's weights become zero, when a ratio of all weights together is asked for.

Layers differ in how much of them can go: of a large dense layer nearly all, of the first convolution little. One score
over all layers finds it out: LAMP's (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning"), a
weight's energy over that of all in its layer that are not less; here with the energy that the weight's input brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from gossamer.arith.removal import removed_count
from gossamer.constraints.contract import as_text
from gossamer.constraints.sparse import Sparse
from gossamer.errors import CandidateError, OptionError
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.graph.weight_uses import read_alike, weight_uses
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.model import Model
from gossamer.solving import matrix_of

Spread = Literal["score", "equal"]
SPREADS: tuple[Spread, ...] = ("score", "equal")
LEAST_KEPT = 0.001  # of a layer: an empty one would cut the network in two
SMALLEST = 1e-30  # of energies


def is_spread(spread: Spread, aim: Sparse) -> bool:
    """Whether a score says where zeros lie; N:M and blocks are the same in every layer."""
    return spread == "score" and aim.ratio is not None and aim.block == (1, 1)


def aims_by_score(energies: Sequence[np.ndarray], aim: Sparse) -> tuple[Sparse, ...]:
    """What each layer is to be, so that the ratio is that of all of them together, as near as whole weights come.

    Args:
        energies: of each layer's weights, in any shape: how much the layer's output would lose without it.
        aim: a ratio of zeros without blocks.

    Raises:
        OptionError: fewer weights would be left than there are layers.
    """
    sizes = [energy.size for energy in energies]
    total = sum(sizes)
    removed = removed_count(aim.ratio or 0.0, total)
    if total - removed < len(sizes):
        raise OptionError(
            f"{as_text(aim)} leaves {total - removed} of {total:,} weights for {len(sizes)} layers, and one each is "
            "the least; give a lower ratio"
        )
    floor = LEAST_KEPT if sum(_least(size, LEAST_KEPT) for size in sizes) <= total - removed else 0.0
    scores = np.concatenate([_scores(energy, _least(energy.size, floor)) for energy in energies])
    gone = np.zeros(total, bool)
    gone[np.argsort(scores, kind="stable")[:removed]] = True
    counts = [int(part.sum()) for part in np.split(gone, np.cumsum(sizes)[:-1])]
    return tuple(Sparse(ratio=count / size) for count, size in zip(counts, sizes, strict=True))


def energy_of(w_GOK: np.ndarray, input_GK: np.ndarray | None) -> np.ndarray:
    """Float64 (G, O, K): a weight's square, times that of its input where it is known."""
    energy = np.square(np.asarray(w_GOK, np.float64))
    return np.asarray(energy if input_GK is None else energy * input_GK[:, None, :])


def input_energies(model: Model, evidence: Evidence) -> dict[str, np.ndarray]:
    """Weight -> squares of what each of its columns is multiplied with, summed over positions, the mean over samples.

    Float64 (G, K). There is none for tables, nor for weights that layers read in different ways.

    Raises:
        ModelError, DataError, CandidateError: see `measuring.moments`.
    """
    uses = weight_uses(list(model.ir.graph), True).uses
    names = [value.name or "" for value, readers in uses.items() if read_alike(readers)]
    found = evidence.moments(model, names)
    diagonals = {name: found[name].h_GKK for name in names}
    return {name: np.diagonal(h, axis1=1, axis2=2).astype(np.float64) for name, h in diagonals.items() if h is not None}


def aims_by_layer(model: Model, aim: Sparse, evidence: Evidence) -> dict[str, Sparse]:
    """What the nodes of a model are to be, by name; both weights of a recurrent one the same. See `aims_by_score`.

    Raises:
        OptionError, ModelError, DataError, CandidateError: see there, and `input_energies`.
    """
    inputs = input_energies(model, evidence)
    layers = {
        nodes: [energy_of(matrix_of(first), inputs.get(first.name)).reshape(-1) for first in weights]
        for nodes, weights in _layers(model).items()
    }
    aims = aims_by_score([np.concatenate(energies) for energies in layers.values()], aim) if layers else ()
    return {node: one for nodes, one in zip(layers, aims, strict=True) for node in nodes}


def check_spread(model: Model, aim: Sparse) -> None:
    """See that all float weights of a model together are as sparse as they were to be.

    Raises:
        CandidateError: they are not.
    """
    layers = _layers(model).values()
    zeros = [matrix_of(first) == 0 for weights in layers for first in weights]
    check_share(zeros, aim, rounding=len(zeros) - len(layers))


def check_share(zeros: Sequence[np.ndarray], aim: Sparse, rounding: int = 0) -> None:
    """See that so many weights are zero.

    Args:
        zeros: which weights of each layer are.
        rounding: how many fewer are right, too.

    Raises:
        CandidateError: too few are.
    """
    total, found = sum(zero.size for zero in zeros), sum(int(zero.sum()) for zero in zeros)
    if found + rounding < removed_count(aim.ratio or 0.0, total):
        raise CandidateError(f"{found:,} of {total:,} weights are zero after training, which is not {as_text(aim)}")


def described(aims: Mapping[str, Sparse], aim: Sparse) -> str:
    """Where zeros are fewest and where most."""
    ratios = {layer: one.ratio or 0.0 for layer, one in aims.items()}
    least, most = (choose(ratios, key=lambda layer: ratios[layer]) for choose in (min, max))
    return f"{as_text(aim)} of all layers together: {ratios[least]:.1%} of {least} to {ratios[most]:.1%} of {most}"


def _layers(model: Model) -> dict[tuple[str, ...], list[WeightMatrix]]:
    """The nodes that share a weight, or several -> the first use of each of those."""
    found: dict[tuple[str, ...], list[WeightMatrix]] = {}
    for uses in weight_uses(list(model.ir.graph), True).uses.values():
        found.setdefault(tuple(dict.fromkeys(use.node.name or "" for use in uses)), []).append(uses[0])
    return found


def _least(size: int, share: float) -> int:
    return max(1, int(np.ceil(share * size)))


def _scores(energy: np.ndarray, least: int) -> np.ndarray:
    """LAMP's score of each weight of a layer, in order of the energy; the greatest `least` come behind all others."""
    ordered = np.sort(energy, axis=None)
    scores = ordered / np.maximum(np.cumsum(ordered[::-1])[::-1], SMALLEST)
    scores[len(scores) - least :] += 1
    return np.asarray(scores)
