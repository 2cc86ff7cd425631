"""Two models held against each other: how true, how fast, how large, and where they part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from gossamer.archive import is_archive
from gossamer.gate import baseline, judge, meets, open_original
from gossamer.intake.binding import bind
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.measuring.latency import PROOF
from gossamer.measuring.layer_error import layer_errors
from gossamer.measuring.machine import peak_rss_bytes
from gossamer.measuring.quality import choose_metric
from gossamer.nouns.budget import Budget, check_budget
from gossamer.nouns.facts import Bytes, Facts
from gossamer.nouns.model import Model, save
from gossamer.nouns.record import Comparison
from gossamer.nouns.target import Target
from gossamer.runtimes.onnxruntime import open_session

LAYER_SAMPLES = 32  # that the noise of single layers is taken over


def measure(
    original: Any,
    result: Any,
    data: Any,
    data_options: DataOptions | None = None,
    metric: str | None = None,
    target: Target = Target(),  # noqa: B008
) -> Facts:
    """Hold two models against each other on all samples: accuracy or agreement, bytes, interleaved latency.

    Args:
        original, result: paths of ONNX files, or whatever else `gossamer.load` takes.

    Raises:
        InputError: a model or the data cannot be used.
        CandidateError: `result` does not open or run.
    """
    with _on_disk(read(original)) as path, _on_disk(read(result)) as other:
        opened = open_original(path, target)
        samples = bind(read_samples(data, data_options), opened.reference.inputs)
        rule = choose_metric(opened.reference, samples, metric)
        return judge(other, baseline(opened, path, samples, rule), rule, (), PROOF)


@contextmanager
def _on_disk(model: Model) -> Iterator[Path]:
    """The model's own file, or one that is there for the while, if it came through a converter."""
    if model.path is not None:
        yield model.path
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield path


def compare(
    original: Any,
    result: Any,
    data: Any,
    max_drop: float = 0.01,
    data_options: DataOptions | None = None,
    metric: str | None = None,
    target: Target = Target(),  # noqa: B008
) -> Comparison:
    """`measure`, and the noise of every layer.

    Raises:
        InputError: a model or the data cannot be used.
        CandidateError: `result` does not open or run.
    """
    begin = perf_counter()
    before, after = read(original), read(result)
    facts = measure(before, after, data, data_options, metric, target)
    samples = bind(read_samples(data, data_options), open_session(before.path or before).inputs)
    few = samples.first(LAYER_SAMPLES)
    return Comparison(
        met=meets(facts, Budget(max_drop)),
        artifact=str(result),
        accuracy=facts.accuracy,
        bytes=Bytes(_stored(original, facts.bytes.original), _stored(result, facts.bytes.result)),
        latency_ms=facts.latency_ms,
        seconds=perf_counter() - begin,
        peak_rss_bytes=peak_rss_bytes(),
        max_drop=max_drop,
        layers=tuple(layer_errors(normalise(before), after, few)),
    )


def _stored(given: Any, unpacked_bytes: int) -> int:
    """Bytes of a model, or of the archive that it was given in."""
    packed = isinstance(given, str | Path) and is_archive(Path(given))
    return Path(given).stat().st_size if packed else unpacked_bytes


def verify(
    original: Any,
    result: Any,
    data: Any,
    budget: Budget = Budget(),  # noqa: B008
    data_options: DataOptions | None = None,
    metric: str | None = None,
    target: Target = Target(),  # noqa: B008
) -> bool:
    """Whether a file meets a budget's floor on all samples, by the gate's own measurement.

    Raises:
        InputError: a model or the data cannot be used.
        CandidateError: the file does not pass the gate.
    """
    check_budget(budget)
    return meets(measure(original, result, data, data_options, metric, target), budget)
