"""Metrics: what a score is, and which one suits a model and its data."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from gossamer.errors import DataError, ModelError, OptionError
from gossamer.measuring.batches import Outputs, reason, run_batch
from gossamer.measuring.noise import powers, ratio
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session

Scorer = Callable[[Outputs, "np.ndarray | None"], "np.ndarray"]

BUILT_IN = ("top1", "agreement", "snr")


@dataclass(frozen=True)
class Metric:
    """How a sample is scored.

    Attributes:
        name: "top1", "agreement", "snr", or the `module:function` of a person's own.
        function: called with a dict of outputs (B, ...) and the labels (B, ...) or None; returns scores (B,).
    """

    name: str
    function: Scorer | None = None


def choose_metric(session: Session, samples: Samples, asked: str | None = None) -> Metric:
    """The metric asked for, or the one that suits: top1 with labels; without, agreement of classifiers, else snr.

    Runs the model on the first sample to see its outputs.

    Raises:
        OptionError: the metric asked for does not exist, or does not suit the outputs.
        DataError: the labels do not suit the metric.
    """
    if asked is not None and ":" in asked:
        return Metric(asked, load_scorer(asked))
    if asked is not None and asked not in BUILT_IN:
        near = get_close_matches(asked, BUILT_IN, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"metric {asked!r} is unknown{hint}; allowed are {', '.join(BUILT_IN)} and module:function")
    classes = count_classes(first_outputs(session, samples))
    if asked == "agreement" and not classes:
        raise OptionError("metric agreement needs an output of shape (batch, classes); this model has none; use snr")
    if asked == "top1" or (asked is None and samples.labels is not None):
        check_labels(samples, classes)
        return Metric("top1")
    return Metric(asked or ("agreement" if classes else "snr"))


def check_labels(samples: Samples, classes: int) -> None:
    """Labels for top1: whole numbers, one a sample, each a class.

    Raises:
        DataError: they are something else.
    """
    instead = "give --metric module:function that scores them, or data without labels"
    if samples.labels is None:
        raise DataError(f"{samples.source}: metric top1 needs labels and there are none; use agreement or snr")
    if not classes:
        raise DataError(
            f"{samples.source}: labels given, but the model has no output of shape (batch, classes); {instead}"
        )
    labels = samples.labels
    if labels.dtype.kind not in "iu" or labels.size != len(labels):
        got = f"{labels.dtype} of shape {labels.shape}"
        raise DataError(f"{samples.source}: labels are {got}; top1 takes whole numbers of shape (N,); {instead}")
    used = labels[samples.rows]
    low, high = int(used.min()), int(used.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"{samples.source}: label {wrong}; the model has {classes} classes, 0 to {classes - 1}; {instead}"
        )


def load_scorer(name: str) -> Scorer:
    """A person's `module:function`; the module may lie in the working folder.

    Raises:
        OptionError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"metric {name}: {error}; write module:function, importable from {os.getcwd()}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise OptionError(f"metric {name}: it is a {type(function).__name__}; it must be a function(outputs, labels)")
    scorer: Scorer = function
    return scorer


def score_batch(
    metric: Metric, outputs: Outputs, expected: Outputs, labels: np.ndarray | None, count: int
) -> np.ndarray:
    """Scores (B,) of `count` samples, given the original's outputs and the labels.

    Raises:
        OptionError: the person's function failed, or returned something else than B finite numbers.
        DataError: top1 without labels, or outputs the metric cannot use.
    """
    if metric.function is not None:
        return _own_scores(metric.name, metric.function, outputs, labels, count)
    if metric.name == "snr":
        return snr_scores(outputs, expected, count)
    got_B = np.argmax(_class_scores(outputs), axis=1)
    if metric.name == "agreement":
        return np.asarray(got_B == np.argmax(_class_scores(expected), axis=1), np.float64)
    if labels is None:
        raise DataError("metric top1 needs labels and there are none; use agreement or snr")
    return np.asarray(got_B == labels.reshape(count), np.float64)


def snr_scores(outputs: Outputs, expected: Outputs, count: int) -> np.ndarray:
    """Share of the outputs' power that is not noise, (B,): max(0, 1 - noise power / signal power), mean over outputs.

    In these units a drop of 0.01 (1 %) is a signal-to-noise ratio of 20 dB, 0.001 is 30 dB, 0.1 is 10 dB. A sample
    with more noise than signal scores 0.
    """
    noise_OB, signal_OB = powers(outputs, expected, count)
    if not len(noise_OB):
        raise DataError("the model has no numeric output; give --metric module:function")
    return np.asarray(np.mean(np.maximum(0.0, 1.0 - ratio(noise_OB, signal_OB)), axis=0))


def _own_scores(name: str, function: Scorer, outputs: Outputs, labels: np.ndarray | None, count: int) -> np.ndarray:
    try:
        scores = np.asarray(function(outputs, labels), dtype=np.float64)
    except (Exception, SystemExit) as error:  # the person's own code may do anything
        raise OptionError(f"metric {name} raised {type(error).__name__}: {error}") from error
    if scores.shape != (count,) or not np.isfinite(scores).all():
        got = f"shape {scores.shape}" if scores.shape != (count,) else "NaN or infinity"
        raise OptionError(f"metric {name} returned {got}; it must return one finite number a sample, shape ({count},)")
    return scores


def first_outputs(session: Session, samples: Samples) -> Outputs:
    """The outputs for the first sample.

    Raises:
        DataError: there is none.
        ModelError: the model fails on it.
    """
    if not len(samples):
        raise DataError(f"{samples.source}: there are no samples; give at least one")
    feeds = next(samples.take(np.arange(1)).batches(1)).feeds
    try:
        return run_batch(session, feeds, 1)
    except Exception as error:
        raise ModelError(f"the model fails on the first sample: {reason(error)}") from error


def classifier_scores(outputs: Outputs) -> np.ndarray | None:
    """The first output of shape (B, C), C of 2 or more, as such; trailing axes of length 1 are dropped. Else None."""
    for output in outputs.values():
        if output.dtype.kind == "f" and output.ndim >= 2 and output.shape[1] >= 2 and output[0].size == output.shape[1]:
            return output.reshape(output.shape[:2])
    return None


def count_classes(outputs: Outputs) -> int:
    """C, or 0 if the model does not look like a classifier."""
    scores_BC = classifier_scores(outputs)
    return 0 if scores_BC is None else scores_BC.shape[1]


def _class_scores(outputs: Outputs) -> np.ndarray:
    scores_BC = classifier_scores(outputs)
    if scores_BC is None:
        raise DataError("the model has no output of shape (batch, classes); use metric snr or module:function")
    return scores_BC
