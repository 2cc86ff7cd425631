"""Quality: how good a result's answers are, on the same samples as the original's, streaming.

Three metrics are built in (`metrics.py`); a person's own is any function of a batch of outputs:
    top1        share of samples whose arg-max is the label
    agreement   share of samples whose arg-max is the original's; needs no labels
    snr         share of the outputs' power that is not noise; for models that do not classify
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gossamer.errors import CandidateError, DataError, GossamerError, ModelError
from gossamer.measuring.batches import Outputs, ahead, batch_size, reason, run_batch
from gossamer.measuring.intervals import matched_pairs, student_t, wilson
from gossamer.measuring.metrics import Metric, choose_metric, classifier_scores, score_batch
from gossamer.measuring.noise import powers, ratio, to_db
from gossamer.nouns.facts import Accuracy
from gossamer.nouns.samples import Batch, Samples
from gossamer.runtimes.contract import Session

__all__ = ["Metric", "Scores", "choose_metric", "compare", "evaluate", "preprocessing_warning", "score"]

CACHE_BYTES = 256_000_000  # of the original's outputs, kept so that it runs once and not once a candidate


@dataclass(frozen=True)
class Scores:
    """One model's scores on one set of samples.

    Attributes:
        metric: the metric's name.
        values_N: one score a sample.
        noise_ratio: noise power over signal power against the original, the mean over outputs; 0 for the original.
        classes: C where an output is (B, C) with C of 2 or more, else 0.
        confidence: mean probability given to the arg-max class; 0 without classes.
        session: the model scored.
        batch: samples a call.
        outputs: for the original, its outputs batch by batch, if they are small enough to keep.
    """

    metric: str
    values_N: np.ndarray
    noise_ratio: float
    classes: int
    confidence: float
    session: Session
    batch: int
    outputs: tuple[Outputs, ...] | None = None


def evaluate(original: Session, result: Session, samples: Samples, metric: Metric) -> Accuracy:
    """Compare two models on the same samples.

    To compare many results with one original, `score` the original once and pass its scores as `reference`.

    Raises:
        DataError: labels are missing or do not fit.
        ModelError: the original fails on a sample, or gives NaN.
        CandidateError: the result does.
    """
    reference = score(original, samples, metric)
    return compare(reference, score(result, samples, metric, reference))


def score(
    session: Session, samples: Samples, metric: Metric, reference: Scores | None = None, workers: int = 1
) -> Scores:
    """Score one model; `reference` are the original's scores on the same samples, None if this is the original.

    More than one worker, as many calls at once, is for a session that can be shared, and whose calls are quick.

    The original's outputs are kept up to 256 MB; if they are bigger it runs again beside each candidate, in the same
    pass over the samples. Memory is O(one batch a worker) plus those.

    Raises:
        DataError: there are no samples, or labels are missing or do not fit.
        ModelError: the original fails on a sample, or gives NaN.
        CandidateError: the result does.
    """
    if not len(samples):
        raise DataError(f"{samples.source}: no samples to score; give more data")
    size = batch_size(session, samples)
    tally = _Tally(metric)
    kept: list[Outputs] | None = [] if reference is None else None
    failure: type[GossamerError] = ModelError if reference is None else CandidateError

    def run(item: _Numbered) -> Outputs:
        return _run(session, item.batch, size, item.first, failure)

    for (_, batch, expected), got in ahead(run, _numbered(_beside(samples, reference or size)), workers):
        tally.add(batch, got, got if expected is None else expected)
        kept = _keep(kept, got)
    return tally.scores(session, size, None if kept is None else tuple(kept))


def compare(original: Scores, result: Scores) -> Accuracy:
    """The paired comparison of two models' scores on the same samples, with a 95 % interval of the drop.

    Scores of 0 and 1: adjusted Wald for matched pairs (Agresti and Min 2005); agreement, where the original is right
    by definition (but for one that its runtime rounds): Wilson's (1927); other scores: Student's t on the differences.
    """
    differences_N = original.values_N - result.values_N
    n = len(differences_N)
    binary = np.isin(original.values_N, (0, 1)).all() and np.isin(result.values_N, (0, 1)).all()
    lost, won = int((differences_N > 0).sum()), int((differences_N < 0).sum())
    if result.metric == "agreement" and original.values_N.all():
        low, high = wilson(lost, n)
    elif binary:
        low, high = matched_pairs(lost, won, n)
    else:
        low, high = student_t(differences_N)
    return Accuracy(
        metric=result.metric,
        original=float(np.mean(original.values_N)),
        result=float(np.mean(result.values_N)),
        drop=float(np.mean(differences_N)),
        low=low,
        high=high,
        n=n,
        snr_db=to_db(result.noise_ratio),
    )


def preprocessing_warning(original: Scores) -> str | None:
    """A line of advice if a labelled classifier is right far less often than a trained one, else None.

    Far less: surely (by the 95 % interval) under half of its own mean confidence, or under chance plus a fifth of the
    way to 1. A small loss from slightly wrong preprocessing cannot be told from a poor model.
    """
    if original.metric != "top1" or not original.classes:
        return None
    hits, n = int(original.values_N.sum()), len(original.values_N)
    chance = 1 / original.classes
    expected = max(chance + 0.2 * (1 - chance), original.confidence / 2)
    if wilson(hits, n)[1] >= expected:
        return None
    return (
        f"the original is right on only {hits} of {n} samples, with a mean confidence of {original.confidence:.0%}; "
        "the preprocessing or the labels are probably not those it was trained with: check the order of the classes "
        "and, for images, --mean, --std, --scale, --layout and --channels"
    )


class _Tally:
    """Sums over batches."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.seen = 0
        self._values: list[np.ndarray] = []
        self._noise_O = self._signal_O = np.zeros(())  # of no output yet
        self._confidence = 0.0
        self._classes = 0

    def add(self, batch: Batch, got: Outputs, expected: Outputs) -> None:
        count = len(next(iter(batch.feeds.values())))
        self._values.append(score_batch(self.metric, got, expected, batch.labels, count))
        noise_OB, signal_OB = powers(got, expected, count)
        self._noise_O = self._noise_O + noise_OB.sum(axis=1)
        self._signal_O = self._signal_O + signal_OB.sum(axis=1)
        scores_BC = classifier_scores(got)
        if scores_BC is not None:
            self._classes = scores_BC.shape[1]
            self._confidence += float(_probabilities(scores_BC).max(axis=1).sum())
        self.seen += count

    def scores(self, session: Session, batch: int, outputs: tuple[Outputs, ...] | None) -> Scores:
        ratio_O = ratio(self._noise_O, self._signal_O)
        return Scores(
            metric=self.metric.name,
            values_N=np.concatenate(self._values),
            noise_ratio=float(np.mean(ratio_O)) if ratio_O.size else 0.0,
            classes=self._classes,
            confidence=self._confidence / self.seen,
            session=session,
            batch=batch,
            outputs=outputs,
        )


def _beside(samples: Samples, reference: Scores | int) -> Iterator[tuple[Batch, Outputs | None]]:
    """Batches with the original's outputs; with None where the original itself is run, in batches of a given size."""
    if isinstance(reference, int):
        for batch in samples.batches(reference):
            yield batch, None
    elif reference.outputs is not None:
        yield from zip(samples.batches(reference.batch), reference.outputs, strict=True)
    else:
        for batch in samples.batches(reference.batch):
            yield batch, run_batch(reference.session, batch.feeds, reference.batch)


class _Numbered(NamedTuple):
    """A batch, the number of its first sample, and the original's outputs where they are known."""

    first: int
    batch: Batch
    expected: Outputs | None


def _numbered(batches: Iterator[tuple[Batch, Outputs | None]]) -> Iterator[_Numbered]:
    first = 0
    for batch, expected in batches:
        yield _Numbered(first, batch, expected)
        first += len(next(iter(batch.feeds.values())))


def _run(session: Session, batch: Batch, size: int, first: int, error_type: type[GossamerError]) -> Outputs:
    """One batch's outputs, none of them NaN; `first` is the number of its first sample, for the message."""
    whose = "the model" if error_type is ModelError else "the result"
    try:
        outputs = run_batch(session, batch.feeds, size)
    except Exception as error:  # onnxruntime's errors share no type
        raise error_type(f"{whose} fails on the samples from number {first}: {reason(error)}") from error
    for name, array in outputs.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            where = f"samples {first} to {first + len(next(iter(batch.feeds.values()))) - 1}"
            raise error_type(
                f"output {name!r} of {whose} holds NaN on {where}; look at their values and at the weights"
            )
    return outputs


def _keep(kept: list[Outputs] | None, outputs: Outputs) -> list[Outputs] | None:
    """The outputs so far and these, or None from the moment they are too many."""
    if kept is None:
        return None
    kept.append(outputs)
    total = sum(array.nbytes for batch in kept for array in batch.values())
    return kept if total <= CACHE_BYTES else None


def _probabilities(scores_BC: np.ndarray) -> np.ndarray:
    """Rows that already are distributions as they are, others through softmax."""
    wide = scores_BC.astype(np.float64)
    if (wide >= 0).all() and np.allclose(wide.sum(axis=1), 1, atol=1e-3):
        return wide
    powers_BC = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers_BC / powers_BC.sum(axis=1, keepdims=True))
