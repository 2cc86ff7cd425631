"""Where quantized candidates of one model are trained, by its float original: the one that they are held against.

Labels would teach little that the original does not know, and what it once learned by heart.

Everything that they share is made once: the samples, the split, and what the original says of every sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from gossamer.intake.binding import bind
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.measuring.machine import available_cores
from gossamer.nouns.model import Model, save, to_bytes, write_file
from gossamer.nouns.samples import Samples
from gossamer.nouns.schooling import Schooling
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.holding_out import hold_out, keep_apart
from gossamer.training.in_form import Course, train_in_form
from gossamer.training.lessons import Lessons
from gossamer.training.loop import Trained
from gossamer.training.lower import lower
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil, WeightedLoss
from gossamer.training.teaching import Distillation, Parts, Student, teach
from gossamer.training.twin import twin
from gossamer.training.watching import Watch

MOST_EPOCHS = 10
FEWEST_STEPS = 20  # below that nothing is learned that would be worth it
TIMED_STEPS = 3
OVERHEAD = 1.2  # of steps: what judging between epochs takes besides


@dataclass(frozen=True)
class School:
    """See `open_school`.

    Attributes:
        losses: what is lessened; shared, as they hold no weights.
        learn, choose: what trains, and what chooses the epoch.
        fixed_batch: how many samples the model insists on.
        folder: where trained candidates are kept until the run ends, so that none is trained twice.
        known: digest of a candidate and its options -> what came of it.
    """

    losses: tuple[WeightedLoss, ...]
    learn: Lessons
    choose: Lessons
    fixed_batch: int | None
    folder: Path | None
    seed: int
    watch: Watch
    known: dict[str, tuple[Model, str]] = field(default_factory=dict)

    def fit(self, model: Model, seconds: float) -> Schooling | None:
        """Epochs and samples that fit into so many seconds, from the time of a few steps; None if nothing does."""
        known = None if self.folder is None else self.folder / f"schooling-{_digest(to_bytes(model))}.json"
        if known is not None and known.exists():  # of a run that was killed: what it began must go on as it was
            return msgspec.json.decode(known.read_bytes(), type=Schooling)
        found = self._fitted(model, seconds)
        if known is not None and found is not None:
            write_file(known, msgspec.json.encode(found))
        return found

    def _fitted(self, model: Model, seconds: float) -> Schooling | None:
        begin, usual = perf_counter(), Schooling(seed=self.seed)
        step_s = self._step_s(model, usual)
        steps = int((seconds - (perf_counter() - begin)) / (step_s * OVERHEAD))
        if steps < FEWEST_STEPS:
            return None
        epochs = steps * usual.batch // len(self.learn)
        if epochs:
            return Schooling(epochs=min(epochs, MOST_EPOCHS), seed=self.seed)
        return Schooling(epochs=1, samples=steps * usual.batch, seed=self.seed)

    def digest(self) -> str:
        """A text equal for equal samples."""
        return _digest((self.learn.samples.digest() + self.choose.samples.digest()).encode())

    def train(self, model: Model, schooling: Schooling, nodes: frozenset[str] | None = None) -> tuple[Model, str]:
        """A trained copy, or the model itself if nothing was better; and what is to be said of it.

        Only what these nodes read is trained; None stands for all.

        Raises:
            ModelError, CandidateError: see `lower` and `loop.train`.
        """
        key = _digest(to_bytes(model) + msgspec.json.encode((schooling, sorted(nodes or ()))))
        if key not in self.known:
            self.known[key] = self._recalled(model, key) or self._trained(model, schooling, key, nodes)
        return self.known[key]

    def _trained(self, model: Model, schooling: Schooling, key: str, nodes: frozenset[str] | None) -> tuple[Model, str]:
        learn = self._drawn(schooling)
        checkpoint = None if self.folder is None else self.folder / f"trained-{key}.safetensors"
        options = Options(schooling.epochs, schooling.batch, rate=schooling.rate, seed=schooling.seed)
        course = Course(self.losses, (), learn, self.choose, checkpoint, self.watch)
        found, trained, _ = train_in_form(model, course, options, nodes, schooling.learn_steps)
        if trained.interrupted:
            raise KeyboardInterrupt  # the search ends; what it has finished is measured, and this is not
        note = _told(trained, len(learn))
        result = found if trained.best_epoch else model
        if self.folder is not None and checkpoint is not None:
            save(result, self.folder / f"trained-{key}.onnx")
            write_file(self.folder / f"trained-{key}.txt", note.encode())
            checkpoint.unlink(missing_ok=True)
        return result, note

    def _recalled(self, model: Model, key: str) -> tuple[Model, str] | None:
        """What a killed run trained of the same candidate."""
        note = None if self.folder is None else self.folder / f"trained-{key}.txt"
        if note is None or not note.exists() or not note.with_suffix(".onnx").exists():
            return None
        found = read(note.with_suffix(".onnx"))
        clone = model.clone()
        for name, value in clone.ir.graph.initializers.items():
            source = found.ir.graph.initializers.get(name)
            if source is None or source.const_value is None:
                return None
            value.const_value = source.const_value
        return clone, note.read_text()

    def _drawn(self, schooling: Schooling) -> Lessons:
        if not schooling.samples or schooling.samples >= len(self.learn):
            return self.learn
        chosen = np.random.default_rng(schooling.seed).permutation(len(self.learn))[: schooling.samples]
        return Lessons(self.learn.samples.take(np.sort(chosen)), self.learn.taught, self.learn.fixed_batch)

    def _step_s(self, model: Model, schooling: Schooling) -> float:
        """Seconds of one step of training, the first left out."""
        pupil = Pupil(lower(twin(model, schooling.learn_steps)), self.losses).train()
        size = min(schooling.batch, len(self.learn))
        times = []
        for index in range(TIMED_STEPS + 1):
            begin = perf_counter()
            rows = np.arange(index * size, (index + 1) * size) % len(self.learn)
            for piece in self.learn.pieces(rows, size):
                loss, _ = pupil(piece)
                loss.backward()
            times.append(perf_counter() - begin)
        return float(np.median(times[1:]))


def open_school(
    source: Model,
    train_data: Any,
    data_options: DataOptions | None = None,
    seed: int = 0,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    measured: tuple[Samples, ...] = (),
) -> School:
    """Read the samples, and ask the original for its answers.

    Args:
        source: the float original, in clean form; the teacher.
        train_data: as `compress` takes its data; a tenth chooses the epoch. Labels are not used.
        folder: for what is to outlive a kill.
        measured: samples that results are measured on; those of equal content are not learned from.

    Raises:
        DataError: samples that cannot be read, are too few, or do not fit.
    """
    session = open_session(source, available_cores())
    everything = bind(read_samples(train_data, data_options), session.inputs)
    apart, notes = keep_apart(everything, measured)
    for note in notes:
        say(note)
    samples = replace(apart, labels=None)
    (choose,), learn = hold_out(samples, seed)
    student = Student(source, session)
    parts = Parts(samples, learn, choose, choose, True)
    lessons = teach(student, parts, source, Distillation(), Options(seed=seed), say)
    watch = Watch(lambda line: say(f"  {line}"))
    fixed = session.static_batch
    return School(
        lessons.losses,
        Lessons(learn, lessons.learn, fixed),
        Lessons(choose, lessons.choose, fixed),
        fixed,
        folder,
        seed,
        watch,
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _told(trained: Trained, samples: int) -> str:
    """What training did, in a sentence."""
    first, best = trained.epochs[0], trained.epochs[trained.best_epoch]
    text = f"{len(trained.epochs) - 1} epochs on {samples:,} samples, taught by the original"
    if not trained.best_epoch:
        return f"{text} and found nothing better"
    gained = f"validation loss {first.validation_loss or 0:.4g} -> {best.validation_loss or 0:.4g}"
    if first.right is None or best.right is None:
        return f"{text}; {gained}"
    return f"{text}; agreement {first.right:.2%} -> {best.right:.2%}, {gained}"
