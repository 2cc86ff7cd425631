"""The sums of several weights of one graph, taken in batch by batch, and what becomes of them at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gossamer.arith.moments import Moments
from gossamer.errors import DataError, ModelError
from gossamer.graph.recurrent import RECURRENT
from gossamer.graph.weight_matrix import WeightMatrix, matrices_by_weight, weight_matrices
from gossamer.measuring.layer_moments import Arrays, Pair, Room, Source, Tally, source_of, tally_of
from gossamer.measuring.paired_moments import can_pair
from gossamer.nouns.model import Model
from gossamer.runtimes.contract import Session

MEMORY_BYTES = 1_000_000_000
MASK = "attention_mask"  # the input of this name, as transformers' exports have it, says which positions are padding
NO_SKIPS: Mapping[str, str] = {}
WAITING_BYTES = 128_000_000  # of tensors that come in small batches, until they are counted together; all in all


class Counted(NamedTuple):
    """A batch's tensors, how many of its samples count, and what to call it."""

    arrays: dict[str, np.ndarray]
    rows: int
    where: str


class Batching(NamedTuple):
    """How samples go to the runtime.

    Attributes:
        session: gives what is fetched.
        size: samples in a call.
        fixed: the model insists on the size; the last batch is filled up, and what fills it does not count.
        shared: tensors that do not depend on the batch, such as positions: each sample counts them once.
    """

    session: Session
    size: int
    fixed: bool
    shared: frozenset[str] = frozenset()


class Gathering:
    """The sums of several weights of one graph.

    Args:
        model: is cloned; states of recurrent layers that nothing reads get a name.
        paired: the moments of stacks, see `paired_moments`, of all weights that have one; `paired` names them.
        skips: of these, weight -> the tensor that is added to what its one layer gives, see `skips`.

    Attributes:
        besides: how the change of that goes with the layer's input, by weight (G, O, K), a sample.

    Raises:
        ModelError: see `moments`.
    """

    def __init__(
        self,
        model: Model,
        weights: Collection[str],
        memory_bytes: int = MEMORY_BYTES,
        paired: bool = False,
        skips: Mapping[str, str] = NO_SKIPS,
    ) -> None:
        self.model = with_named_states(model)
        self.uses = _uses(self.model, weights)
        self.room, self.skips = Room(memory_bytes), skips
        self.besides: dict[str, np.ndarray] = {}
        self.tallies: dict[Source, Tally] = {}
        self.waiting: dict[Source, list[Arrays]] = {}
        self.waiting_bytes: dict[Source, int] = {}
        self.readers: dict[Source, WeightMatrix] = {}
        pairs = {name: paired and all(map(can_pair, uses)) for name, uses in self.uses.items()}
        self.paired = frozenset(name for name, is_pair in pairs.items() if is_pair)
        for name, use in ((name, use) for name, uses in self.uses.items() for use in uses):
            source = self._key(use, name)
            if source not in self.tallies:
                is_pair, skip = name in self.paired, skips.get(name, "")
                self.tallies[source] = Pair(use, self.room, skip) if is_pair else tally_of(use, self.room)
                self.readers[source] = use
        self.needed = tuple(dict.fromkeys(name for tally in self.tallies.values() for name in tally.batch_axes))
        inputs = {value.name for value in self.model.ir.graph.inputs}
        self.fetched = tuple(name for name in self.needed if name not in inputs)
        self.mask = MASK if MASK in inputs else None

    def add(self, batch: Counted, batching: Batching) -> None:
        """Take in a batch; small ones are put together first, as BLAS does many rows better than few.

        Raises:
            DataError: a number is not finite, or too large to square.
        """
        self._check(batch)
        arrays, rows, _ = batch
        for source, tally in self.tallies.items():
            own = {name: arrays[name] for name in tally.batch_axes}
            if _is_shared(own, tally, batching):
                tally.add(own, rows)
                continue
            if batching.fixed and rows < batching.size:
                own = {name: _first(array, tally.batch_axes[name], rows, batching.size) for name, array in own.items()}
            if self.mask and tally.by_position and next(iter(own)) not in batching.shared:
                own = {name: _unmasked(array, arrays[self.mask][:rows]) for name, array in own.items()}
            self.waiting.setdefault(source, []).append(own)
            own_bytes = sum(array.nbytes for array in own.values())
            self.waiting_bytes[source] = self.waiting_bytes.get(source, 0) + own_bytes
            while sum(self.waiting_bytes.values()) > WAITING_BYTES:
                self._flush(max(self.waiting_bytes, key=self.waiting_bytes.__getitem__))

    def _flush(self, source: Source) -> None:
        """Count what waits, arrays that differ in nothing but their number of samples together."""
        tally = self.tallies[source]
        del self.waiting_bytes[source]
        alike: dict[tuple[tuple[int, ...], ...], list[Arrays]] = {}
        for own in self.waiting.pop(source, []):
            rests = (np.delete(array.shape, tally.batch_axes[name]) for name, array in own.items() if array.ndim)
            alike.setdefault(tuple(tuple(rest) for rest in rests), []).append(own)
        for group in alike.values():
            axes = tally.batch_axes.items()
            tally.add({name: _stacked([own[name] for own in group], axis) for name, axis in axes}, 1)

    def _check(self, batch: Counted) -> None:
        for name in self.needed:
            array = batch.arrays[name]
            with np.errstate(all="ignore"):
                if array.dtype.kind != "f" or np.isfinite(np.vdot(array, array)):
                    continue
            source = next(source for source, tally in self.tallies.items() if name in tally.batch_axes)
            node = self.readers[source].node
            raise DataError(
                f"the input {name!r} of {node.op_type} {node.name!r} is NaN, infinite or too large to square on "
                f"{batch.where}; check that sample, the preprocessing and the model's weights"
            )

    def _key(self, use: WeightMatrix, name: str) -> Source:
        """What a use's sum is kept under."""
        key = source_of(use).key
        if name not in self.paired:
            return Source(key)
        return Source(("pair", key, (name, self.skips[name])) if name in self.skips else ("pair", key))

    def result(self, samples: int, source: str = "samples") -> dict[str, Moments]:
        """The sums divided by the number of samples; can be asked once. `besides` is known then."""
        totals: dict[Source, np.ndarray] = {}
        for waiting in tuple(self.waiting):
            self._flush(waiting)
        for key, tally in self.tallies.items():
            totals[key] = tally.total()
            totals[key] /= max(samples, 1)
        rows = {key: tally.rows for key, tally in self.tallies.items()}
        for name in self.skips.keys() & self.paired:
            tally = self.tallies[self._key(self.uses[name][0], name)]
            if isinstance(tally, Pair) and tally.beside_GOK is not None:
                self.besides[name] = tally.beside_GOK / max(samples, 1)
        self.tallies = {}
        result: dict[str, Moments] = {}
        for name, uses in self.uses.items():
            keys = [self._key(use, name) for use in uses]
            joined = _joined(uses, [totals[key] for key in keys], samples, source)
            result[name] = joined._replace(rows=0 if joined.h_GKK is None else sum(rows[key] for key in keys))
        return result


def _joined(uses: Sequence[WeightMatrix], totals: Sequence[np.ndarray], samples: int, source: str) -> Moments:
    """One weight's moments from those of its uses."""
    rows_GO: np.ndarray | None = None
    parts: list[tuple[float, np.ndarray]] = []
    for use, total in zip(uses, totals, strict=True):
        if use.is_table:
            rows_GO = total if rows_GO is None else rows_GO + total
        else:
            parts.append((source_of(use).factor, total))
    if not parts:
        return Moments(None, rows_GO, samples, source)
    groups, _, k = uses[0].shape_GOK
    factor, h_GKK = parts[0]
    h_GKK = h_GKK if factor == 1.0 else factor * h_GKK
    for factor, part in parts[1:]:
        h_GKK = h_GKK + factor * part
    if len(h_GKK) != groups:  # both directions of a recurrent layer read the same
        h_GKK = np.repeat(h_GKK, groups, axis=0)
    if rows_GO is not None:
        h_GKK = h_GKK + np.eye(k, dtype=h_GKK.dtype) * h_GKK.dtype.type(rows_GO.mean())
    return Moments(h_GKK, None, samples, source)


def _uses(model: Model, weights: Collection[str]) -> dict[str, tuple[WeightMatrix, ...]]:
    found = matrices_by_weight(model.ir.graph, set(weights))
    for name in weights:
        if name not in found:
            raise ModelError(f"{model.name}: {name!r} is no weight that moments are of: {_obstacle(model, name)}")
        first, *others = found[name]
        other = next((use for use in others if not first.same_layout(use)), None)
        if other is not None:
            raise ModelError(
                f"{model.name}: nodes {first.node.name!r} and {other.node.name!r} sum over different axes of "
                f"the weight {name!r}; it has no moments, leave it out of the scope"
            )
    return {name: found[name] for name in dict.fromkeys(weights)}


def _obstacle(model: Model, name: str) -> str:
    value = model.ir.graph.initializers.get(name)
    if value is None:
        return "the main graph has no such initializer"
    reasons = [found for node in value.consumers() if isinstance(found := weight_matrices(node), str)]
    return next(iter(reasons), "no node reads it as one")


def with_named_states(model: Model) -> Model:
    """A copy in which the states of every recurrent layer can be fetched."""
    clone = model.clone()
    for node in clone.ir.graph:
        if node.op_type in RECURRENT and node.domain == "" and node.outputs and not node.outputs[0].name:
            node.outputs[0].name = f"{node.name}/states"
    return clone


def _unmasked(array: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
    """The positions that a mask leaves, if it is of this tensor's positions."""
    heard_BS = mask_BS.astype(bool)
    if heard_BS.ndim == 2 and array.shape[:2] == heard_BS.shape:
        return np.asarray(array[heard_BS])
    flat = heard_BS.ndim == 2 and array.ndim == 2 and heard_BS.shape[1] > 1 and len(array) == heard_BS.size
    return np.asarray(array[heard_BS.reshape(-1)]) if flat else array


def _stacked(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 or not arrays[0].ndim else np.concatenate(arrays, axis)


def _is_shared(own: Arrays, tally: Tally, batching: Batching) -> bool:
    """Whether a layer's input is the same for all samples, and comes once for a batch."""
    name = next(iter(own))
    if not batching.fixed:
        return name in batching.shared and batching.size > 1
    axis = tally.batch_axes[name]
    return own[name].ndim <= axis or own[name].shape[axis] % batching.size != 0


def _first(array: np.ndarray, axis: int, rows: int, size: int) -> np.ndarray:
    """Along its batch axis, what belongs to the first samples."""
    return array.take(np.arange(array.shape[axis] // size * rows), axis)
