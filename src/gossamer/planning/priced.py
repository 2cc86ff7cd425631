"""Every layer and how it could be computed: predicted noise of the network's outputs, and milliseconds.

The noise of integers is that of the weight on its grid and of the input on its own: a twelfth of the squared step for
every number of the input, as if rounding errors were independent, times the weight's energy. Low rank in integers
rounds twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from gossamer.arith.affine import affine_parameters
from gossamer.arith.moments import Moments
from gossamer.arith.tensor_decomposition import directions
from gossamer.arith.weight_grid import Bits
from gossamer.constraints.contract import Constraint
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.graph.layers import Layer, layer_of
from gossamer.graph.weight_matrix import WeightMatrix
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.prices import price_list
from gossamer.measuring.shapes import static_shapes
from gossamer.nouns.model import Model
from gossamer.planning.ledger import Entry, each, ledger, uses_of
from gossamer.planning.ways import FLOAT, Part, Prices, Shaped, Way, cost_ms, parts, shaped, ways
from gossamer.runtimes.contract import Feeds, Runtime
from gossamer.solvers import nearest
from gossamer.solvers.options import options
from gossamer.solving import matrix_of

REFERENCES = (Grid(4),)  # what gains are measured with
WORTH = 0.005  # of all layers' time: those that take less stay as they are
CLEARLY = 0.95  # of float's time: what is hardly faster is not offered


class Priced(NamedTuple):
    """A weight.

    Attributes:
        weight: its initializer.
        nodes: its readers, in graph order.
        ways: float first, then those that were priced faster.
        noise_W: of each, predicted noise over signal of the network's outputs.
        ms_W: of each, for all readers, in milliseconds.
    """

    weight: str
    nodes: tuple[str, ...]
    ways: tuple[Way, ...]
    noise_W: np.ndarray
    ms_W: np.ndarray


class Offers(NamedTuple):
    """The table, and what was not offered.

    Attributes:
        priced: weights with their ways.
        notes: weights that low rank would not make faster, in plain words.
    """

    priced: tuple[Priced, ...]
    notes: tuple[str, ...]


class Integer(NamedTuple):
    """What running in integers does to a layer: its weights' grid, and the noise of its rounded inputs."""

    grid: Grid
    input_noise: float


class Place(NamedTuple):
    """Where latency counts: the runtime, its threads, and the batch that is timed."""

    runtime: Runtime
    threads: int
    feeds: Feeds


def price(model: Model, evidence: Evidence, place: Place, budget_s: float = 120.0, weight_bits: Bits = 8) -> Offers:
    """Time every layer in every way, and solve for those that are faster.

    Args:
        model: with constants and norms folded, as the plan's first steps leave it.
        budget_s: of which up to a half goes into prices that this machine does not know yet.
        weight_bits: of layers in integers.

    Raises:
        ModelError, DataError, CandidateError: see `ledger.ledger`.
    """
    begin = perf_counter()
    uses = uses_of(model)
    layers = _layers(model, uses, place.feeds)
    wanted, prices = _prices(layers, place, budget_s / 2)
    faster = {weight: _faster(found, wanted[weight], prices) for weight, found in layers.items()}
    offered = {weight: found for weight, found in faster.items() if len(found) > 1}
    others = [node.name or "" for node in model.ir.graph if not _reads(node, offered)]
    left_s = max(budget_s - (perf_counter() - begin), 1.0)
    entries = ledger(model, evidence, each(REFERENCES), others, left_s) if offered else ()
    moments = evidence.moments(model, list(offered))
    rounding = _input_noise(layers, model, evidence)
    priced = []
    for entry in entries:
        use = uses[entry.weight][0]
        found, integer = offered[entry.weight], Integer(Grid(weight_bits), rounding[entry.weight])
        noise = _noises(entry, use, list(found), moments[entry.weight], integer)
        priced.append(Priced(entry.weight, entry.nodes, tuple(found), noise, np.array(list(found.values()))))
    return Offers(tuple(priced), _notes(layers, wanted, faster))


def bindings_of(model: Model, feeds: Feeds) -> dict[str, int]:
    """The lengths of free axes, by their names, as a batch has them."""
    found: dict[str, int] = {}
    for value in model.ir.graph.inputs:
        if value.shape is None or value.name not in feeds:
            continue
        for dim, length in zip(value.shape, feeds[value.name].shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                found[dim.value] = length
    return found


def _reads(node: object, weights: Mapping[str, object]) -> bool:
    inputs = getattr(node, "inputs", ())
    return any(value is not None and value.name in weights for value in inputs)


def _layers(model: Model, uses: Mapping[str, Sequence[WeightMatrix]], feeds: Feeds) -> dict[str, list[Shaped]]:
    """Weight -> its readers, where all of them are layers of known shape."""
    dims = static_shapes(model, bindings_of(model, feeds)).dims
    found: dict[str, list[Shaped]] = {}
    for weight, readers in uses.items():
        layers = [layer_of(use.node) for use in readers if use.slot == 1]
        each = [shaped(layer, dims) for layer in layers if isinstance(layer, Layer)]
        known = [one for one in each if one is not None]
        if len(known) == len(readers):
            found[weight] = known
    return found


def _prices(
    layers: Mapping[str, Sequence[Shaped]], place: Place, budget_s: float
) -> tuple[dict[str, tuple[Way, ...]], Prices]:
    """Weight -> the ways to compute its readers, none where these take next to no time; and the prices of all parts."""
    begin = perf_counter()
    plain = [(one.signature, FLOAT) for found in layers.values() for one in found]
    prices = price_list(plain, place.runtime, place.threads, budget_s=budget_s)
    taken_ms = {weight: sum(cost_ms(parts(one, Way()), prices) for one in found) for weight, found in layers.items()}
    least_ms = WORTH * sum(ms for ms in taken_ms.values() if np.isfinite(ms))
    wanted = {
        weight: ways(found[0], place.runtime) if np.isfinite(taken_ms[weight]) and taken_ms[weight] >= least_ms else ()
        for weight, found in layers.items()
    }
    every: list[Part] = [
        part for weight, found in layers.items() for way in wanted[weight] for one in found for part in parts(one, way)
    ]
    left_s = max(budget_s - (perf_counter() - begin), 0.0)
    return wanted, price_list([*plain, *every], place.runtime, place.threads, budget_s=left_s)


def _faster(found: Sequence[Shaped], wanted: Sequence[Way], prices: Prices) -> dict[Way, float]:
    """Float and the ways priced clearly faster, with their milliseconds."""
    costs = {way: sum(cost_ms(parts(one, way), prices) for one in found) for way in wanted}
    limit_ms = CLEARLY * costs.get(Way(), 0.0)
    return {way: ms for way, ms in costs.items() if way == Way() or ms < limit_ms}


def _noises(entry: Entry, use: WeightMatrix, offered: Sequence[Way], moments: Moments, integer: Integer) -> np.ndarray:
    """Predicted noise over signal of the network's outputs, of every way."""
    w_GOK = matrix_of(use)
    thin = {way.constraint: way.constraint for way in offered if isinstance(way.constraint, LowRank)}
    grids = {way.constraint for way in offered if isinstance(way.constraint, Grid)} | {integer.grid}
    losses: dict[Constraint | None, float] = {None: 0.0}
    asked: list[Constraint] = [*grids, *(low_rank for low_rank in thin.values() if low_rank.split != "svd")]
    solved = options(w_GOK, asked, moments, nearest.solve, use.k_shape)
    signal = solved[0].zero_loss
    losses |= {option.constraint: option.loss for option in solved}
    losses |= _truncated(w_GOK, [one for one in thin.values() if one.split == "svd"], moments)
    noises = []
    for way in offered:
        rounds = 0 if not way.integer else 2 if isinstance(way.constraint, LowRank) else 1
        noises.append(losses.get(way.constraint, np.inf) + rounds * (losses[integer.grid] + integer.input_noise))
    return entry.gain * np.array(noises) / signal if signal > 0 else np.zeros(len(noises))


def _truncated(w_GOK: np.ndarray, asked: Sequence[LowRank], moments: Moments) -> dict[Constraint | None, float]:
    """The least losses of any rank, all at once: the energies of the directions that it leaves out."""
    if not asked:
        return {}
    h_GKK = None if moments.h_GKK is None else np.asarray(moments.h_GKK, np.float64)
    _, energy_GR = directions(np.asarray(w_GOK, np.float64), h_GKK)
    return {one: float(energy_GR[:, one.rank :].sum()) for one in asked}


def _input_noise(layers: Mapping[str, Sequence[Shaped]], model: Model, evidence: Evidence) -> dict[str, float]:
    """Weight -> the noise of its outputs, a sample, with its inputs rounded to bytes."""
    names = dict.fromkeys(one.layer.x.name or "" for found in layers.values() for one in found)
    ranges = evidence.ranges(model, list(names), False)
    noise: dict[str, float] = {}
    for weight, found in layers.items():
        noise[weight] = 0.0
        for one in found:
            seen = ranges[one.layer.x.name or ""]
            scale, _ = affine_parameters(seen.sample_low_N.min(), seen.sample_high_N.max(), "uint8", False)
            w = np.asarray(one.layer.weight.const_value)
            positions = np.prod(one.y_shape) / one.layer.channels
            noise[weight] += float(scale) ** 2 / 12 * float(np.square(w, dtype=np.float64).sum()) * positions
    return noise


def _notes(
    layers: Mapping[str, Sequence[Shaped]],
    wanted: Mapping[str, Sequence[Way]],
    faster: Mapping[str, Mapping[Way, float]],
) -> tuple[str, ...]:
    """Weights that low rank was asked of, and does not make faster at any rank."""
    slow = [
        layers[weight][0].layer.node.name or ""
        for weight, asked in wanted.items()
        if any(isinstance(way.constraint, LowRank) for way in asked)
        and not any(isinstance(way.constraint, LowRank) for way in faster[weight])
    ]
    if not slow:
        return ()
    names = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
    return (f"low rank was timed and is no faster for {names}: kept whole",)
