"""Nothing leaves without it: the exported file is opened, run, its types and bytes checked, timed and scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from gossamer.archive.pack import pack
from gossamer.errors import CandidateError, ModelError, OptionError
from gossamer.measuring.batches import QUICK_S, at_once, call_s
from gossamer.measuring.latency import TRIAL, Timing, compare_latency
from gossamer.measuring.machine import available_cores
from gossamer.measuring.quality import Metric, Scores, compare, score
from gossamer.nouns.budget import Budget
from gossamer.nouns.facts import Bytes, Facts
from gossamer.nouns.model import files_of, size_bytes
from gossamer.nouns.samples import Samples
from gossamer.nouns.target import Target
from gossamer.runtimes import onnxruntime
from gossamer.runtimes.contract import Runtime, Session, find

ROUNDING = 1e-9  # a drop of exactly the floor must not fail by the last bit of a mean
KEPT_BYTES = 64_000_000  # of small files that stay open, as they are timed again in the end


class OpenFile(NamedTuple):
    """An opened file, and how long that took and a call takes."""

    session: Session
    open_s: float
    call_s: float
    size_bytes: int


@dataclass(frozen=True)
class Opened:
    """The original, ready to run.

    Attributes:
        runtime: that the result is meant for.
        session: opened there, as fast as it goes: the runtime may round floats. It is timed.
        scorer: the same with all processors, as outputs do not depend on their number.
        reference: in float32, by onnxruntime; `scorer` itself where that is the runtime.
        kept: results that stay open, by file and when it was written.
    """

    runtime: Runtime
    session: Session
    scorer: Session
    reference: Session
    kept: dict[tuple[Path, int], OpenFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """The original, opened and scored once on one split.

    Attributes:
        opened: the original.
        size_bytes: of everything needed to run it.
        packed: whether results count as archives.
        samples: the split.
        scores: of the original on them.
        truth: of the reference, what noise is measured against; `scores` themselves where that is the session.
        feeds: the batch that is timed: one sample, or as many as the model insists on.
    """

    opened: Opened
    size_bytes: int
    packed: bool
    samples: Samples
    scores: Scores
    truth: Scores
    feeds: dict[str, np.ndarray]

    @property
    def session(self) -> Session:
        """On the target's runtime."""
        return self.opened.session

    @property
    def runtime(self) -> Runtime:
        """That the result is meant for."""
        return self.opened.runtime


def open_original(path: Path, target: Target) -> Opened:
    """Open the original on its target's runtime, and where that is another than onnxruntime there as well.

    Raises:
        OptionError: the runtime is unknown or not installed, or this process does not have that many processors.
        ModelError: the runtime cannot run it.
    """
    runtime, threads = find(target.runtime), target.threads
    if not 1 <= threads <= available_cores():
        raise OptionError(f"threads is {threads}; allowed is 1 to {available_cores()}, the processors of this machine")
    try:
        session = runtime.open_session(path, threads)
        scorer = runtime.open_session(path, available_cores())
        reference = scorer if runtime is onnxruntime else onnxruntime.open_session(path, available_cores())
        return Opened(runtime, session, scorer, reference)
    except CandidateError as error:
        raise ModelError(f"{path.name}: {error}; only a model that runs can be compressed") from error


def baseline(opened: Opened, path: Path, samples: Samples, metric: Metric, packed: bool = False) -> Baseline:
    """Score the original on a split.

    Args:
        packed: whether results count as archives.

    Raises:
        ModelError, DataError: it fails on the samples, or they do not fit; or it cannot be packed.
    """
    if packed and len(files_of(path)) > 1:
        raise ModelError(f"{path.name} keeps weights in other files, an archive holds one file: save it as one first")
    first = next(samples.take(np.arange(1)).batches(1)).feeds
    repeats = opened.session.static_batch or 1
    feeds = {name: np.repeat(array, repeats, axis=0) for name, array in first.items()}
    together = 1
    if opened.scorer is opened.reference:
        together = at_once(opened.session, call_s(opened.session, feeds), available_cores())
    truth = scores = score(opened.reference if together < 2 else opened.session, samples, metric, workers=together)
    if opened.scorer is not opened.reference:
        scores = score(opened.scorer, samples, metric, truth)
    return Baseline(opened, size_bytes(path), packed, samples, scores, truth, feeds)


def judge(path: Path, original: Baseline, metric: Metric, stores: Collection[str], timing: Timing) -> Facts:
    """Measure an exported file against the original.

    Args:
        path: the file as it would be handed over.
        stores: tensor types (ONNX names) that it promises to hold.
        timing: for how long it is timed.

    Raises:
        CandidateError: it does not open or run, gives NaN, or lacks a promised type.
    """
    opened = open_timed(path, original)
    session = opened.session
    if session.inputs.keys() != original.session.inputs.keys() or list(session.outputs) != list(
        original.session.outputs
    ):
        raise CandidateError(f"{path.name}: inputs or outputs have other names than the original's")
    check_types(path, stores)
    scores = _scored(path, original, metric, opened)
    latency = compare_latency(original.session, session, original.feeds, original.session.threads, timing)
    taken_bytes = len(pack(path.read_bytes()).data) if original.packed else size_bytes(path)
    return Facts(compare(original.scores, scores), Bytes(original.size_bytes, taken_bytes), latency)


def open_timed(path: Path, original: Baseline) -> OpenFile:
    """A file as it is timed; a small and quick one stays open, as opening it again takes longer than timing it.

    Raises:
        CandidateError: it does not open.
    """
    place, size, known = (path, path.stat().st_mtime_ns), size_bytes(path), original.opened.kept
    if place not in known:
        begin = perf_counter()
        session = original.runtime.open_session(path, original.session.threads)
        open_s = perf_counter() - begin
        opened = OpenFile(session, open_s, call_s(session, original.feeds), size)
        if opened.call_s > QUICK_S or size + sum(other.size_bytes for other in known.values()) > KEPT_BYTES:
            return opened
        known[place] = opened
    return known[place]


def _scored(path: Path, original: Baseline, metric: Metric, opened: OpenFile) -> Scores:
    """The file's scores: by quick calls side by side, or by all processors where they save what opening it takes."""
    session, cores = opened.session, available_cores()
    together = at_once(session, opened.call_s, cores)
    saved_s = opened.call_s * len(original.samples) * (1 - session.threads / cores)
    if together < 2 and saved_s > opened.open_s:
        session = original.runtime.open_session(path, cores)
    return score(session, original.samples, metric, original.truth, together)


def unchanged(original: Baseline) -> Facts:
    """The original against itself: timed in earnest, so that the record shows its latency, but not scored again."""
    session = original.session
    latency = compare_latency(session, session, original.feeds, session.threads, TRIAL)
    accuracy = compare(original.scores, original.scores)
    return Facts(accuracy, Bytes(original.size_bytes, original.size_bytes), latency)


def check_types(path: Path, stores: Collection[str]) -> None:
    """Read the file back and see that every promised type is there.

    Raises:
        CandidateError: names the type that is missing, and what is there instead.
    """
    stored = stored_bytes(path)
    for name in stores:
        if not stored[name]:
            held = ", ".join(f"{count} bytes of {dtype}" for dtype, count in stored.most_common())
            raise CandidateError(f"{path.name}: promised {name} weights, but holds {held or 'no weights'}")


def stored_bytes(path: Path) -> Counter[str]:
    """ONNX type name -> bytes of initializers of that type in a file's main graph."""
    counts: Counter[str] = Counter()
    for value in ir.load(path).graph.initializers.values():
        if value.const_value is not None:
            counts[value.const_value.dtype.name] += value.const_value.nbytes
    return counts


def meets(facts: Facts, budget: Budget) -> bool:
    """Whether the limits are kept and the floor holds: on the point estimate, or with `confident` on the interval."""
    drop = facts.accuracy.high if budget.confident else facts.accuracy.drop
    return drop <= budget.max_drop + ROUNDING and budget.excess_ratio(facts) == 1.0
