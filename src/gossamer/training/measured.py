"""What training gained, measured on the exported files, on samples that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gossamer.measuring.batches import Outputs, batch_size, run_batch
from gossamer.measuring.metrics import Metric, score_batch
from gossamer.measuring.noise import powers, ratio
from gossamer.measuring.quality import Scores, compare
from gossamer.nouns.facts import Accuracy
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.training.lessons import Lessons
from gossamer.training.tasks import Task


class Gained(NamedTuple):
    """A model before and after training: the mean over tasks, and if there are several each by its output's name."""

    all: Accuracy
    each: dict[str, Accuracy]


def measure(before: Session, after: Session, lessons: Lessons, metric: Metric, tasks: Sequence[Task] = ()) -> Gained:
    """The paired comparison of a model before and after training, against labels or else against the teacher.

    Args:
        tasks: what was learned; with two or more each is measured at its output alone, unless the metric is a
            person's own.

    Raises:
        DataError: the metric cannot be taken of these outputs.
    """
    several = tuple(tasks) if len(tasks) > 1 and metric.function is None else ()
    old, new = (_scores(session, lessons, metric, several) for session in (before, after))
    each = {task.name: compare(*pair) for task, *pair in zip(several, old[1:], new[1:], strict=True)}
    return Gained(compare(old[0], new[0]), each)


def metric_samples(samples: Samples, tasks: Sequence[Task]) -> Samples:
    """Samples with the labels of the first task that has any, by which a metric is chosen."""
    column = next((task.column for task in tasks if task.labelled), None)
    return samples if column is None or samples.labels is None else replace(samples, labels=samples.labels[:, column])


def _scores(session: Session, lessons: Lessons, metric: Metric, tasks: tuple[Task, ...]) -> list[Scores]:
    """Of the mean over tasks, and of each."""
    samples = lessons.samples
    size = batch_size(session, samples)
    values, ratios, place = list[np.ndarray](), list[np.ndarray](), 0
    for batch in samples.batches(size):
        count = len(next(iter(batch.feeds.values())))
        got = run_batch(session, batch.feeds, size)
        expected = _expected(got, lessons, samples.rows[place : place + count], batch.feeds)
        values.append(
            np.stack([_of_task(task, metric, got, expected, batch.labels, count) for task in tasks or (None,)])
        )
        ratios.append(ratio(*powers(got, expected, count)))
        place += count
    noise = float(np.mean(np.concatenate([part.reshape(-1) for part in ratios]))) if ratios else 0.0
    values_TN = np.concatenate(values, 1)
    rows = [values_TN.mean(0), *(values_TN if tasks else ())]
    return [Scores(metric.name, row_N, noise, 0, 0.0, session, size) for row_N in rows]


def _of_task(
    task: Task | None, metric: Metric, got: Outputs, expected: Outputs, labels: np.ndarray | None, count: int
) -> np.ndarray:
    """Scores (B,) of one task, by its labels or else by its teacher; of all outputs without one."""
    if task is None:
        return score_batch(metric, got, expected, labels, count)
    own, other = {task.name: got[task.name]}, {task.name: expected[task.name]}
    by_labels = metric.name == "top1" and task.labelled and labels is not None
    named = metric if by_labels or metric.name != "top1" else Metric("agreement")
    truth = labels if labels is None or task.column is None else labels[:, task.column]
    return score_batch(named, own, other, truth if by_labels else None, count)


def _expected(got: Outputs, lessons: Lessons, rows: np.ndarray, feeds: dict[str, np.ndarray]) -> Outputs:
    """What the teacher says; what it says nothing of is as good as it is."""
    if lessons.taught is None:
        return got
    taught = lessons.taught(rows, feeds)
    return {name: array if array.size else got[name] for name, array in zip(got, taught, strict=False)}
