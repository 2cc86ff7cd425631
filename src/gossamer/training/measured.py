"""What training gained, measured on the exported files, on samples that it never saw."""

from __future__ import annotations

import numpy as np

from gossamer.measuring.batches import Outputs, batch_size, run_batch
from gossamer.measuring.metrics import Metric, score_batch
from gossamer.measuring.noise import powers, ratio
from gossamer.measuring.quality import Scores, compare
from gossamer.nouns.facts import Accuracy
from gossamer.runtimes.contract import Session
from gossamer.training.lessons import Lessons


def measure(before: Session, after: Session, lessons: Lessons, metric: Metric) -> Accuracy:
    """The paired comparison of a model before and after training, against labels or else against the teacher.

    Raises:
        DataError: the metric cannot be taken of these outputs.
    """
    return compare(_scores(before, lessons, metric), _scores(after, lessons, metric))


def _scores(session: Session, lessons: Lessons, metric: Metric) -> Scores:
    samples = lessons.samples
    size = batch_size(session, samples)
    values, ratios, place = [], [], 0
    for batch in samples.batches(size):
        count = len(next(iter(batch.feeds.values())))
        got = run_batch(session, batch.feeds, size)
        expected = _expected(got, lessons, samples.rows[place : place + count], batch.feeds)
        values.append(score_batch(metric, got, expected, batch.labels, count))
        ratios.append(ratio(*powers(got, expected, count)))
        place += count
    noise = float(np.mean(np.concatenate([part.reshape(-1) for part in ratios]))) if ratios else 0.0
    return Scores(metric.name, np.concatenate(values), noise, 0, 0.0, session, size)


def _expected(got: Outputs, lessons: Lessons, rows: np.ndarray, feeds: dict[str, np.ndarray]) -> Outputs:
    if lessons.taught is None:
        return got
    return dict(zip(got, lessons.taught(rows, feeds), strict=False))
