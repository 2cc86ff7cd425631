"""Who teaches what: the teacher that was given, losses that suit it, and what it gives for each part of the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import nn

from gossamer.errors import DataError, OptionError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.fetching import with_outputs
from gossamer.measuring.machine import available_cores
from gossamer.nouns.model import Model
from gossamer.nouns.samples import Samples
from gossamer.runtimes.contract import Session
from gossamer.training import teacher as teachers
from gossamer.training.hints import propose
from gossamer.training.lessons import Taught
from gossamer.training.losses.chosen import AMONG, INSIDE, Setting, Wanted, build, parse
from gossamer.training.losses.features import Hint
from gossamer.training.losses.soft_labels import are_probabilities
from gossamer.training.options import Options
from gossamer.training.pupil import WeightedLoss
from gossamer.training.tasks import Task, heads_of, place_of, tasks_of
from gossamer.training.teacher import Voice

STORED = (".npy", ".npz")
SELF = "self"  # the teacher is the student as it came in
ALPHA = 0.9  # the teacher's share beside labels; Hinton et al. gave the labels much the lower weight


class Distillation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is lessened.

    Attributes:
        losses: of `losses.chosen.LOSSES`, each with a weight if it is not to be 1, such as "attention:2", and for one
            of several outputs such as "soft_labels@digits"; their sum is lessened. Empty takes those that suit:
            `hard_labels` without a teacher; with one `soft_labels` for classifiers, else `outputs`; both for several
            heads of which labels do not say that they are of classes.
        temperature: of soft labels, `correlation` and `decoupled`.
        alpha: the teacher's share of soft labels where there are labels too; None is 0.9 with labels and 1 without.
    """

    losses: tuple[str, ...] = ()
    temperature: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        parse(self.losses)


class Student(NamedTuple):
    """A model that is to learn, and it opened in the runtime."""

    model: Model
    session: Session


class Parts(NamedTuple):
    """Samples bound to the student.

    Attributes:
        everything: as they were read; `learn` and `choose` are of it.
        learn, choose, verify: what trains, what chooses the epoch, and what the result is measured on.
        apart: `verify` was read from elsewhere.
    """

    everything: Samples
    learn: Samples
    choose: Samples
    verify: Samples
    apart: bool


class Teaching(NamedTuple):
    """What training lessens, ready.

    Attributes:
        graph: the student's, with its hints as further outputs.
        losses: with their shares.
        learn, choose, verify: what the teacher gives for these samples; None without one.
        name: the teacher's; empty without one.
        words: the losses as they are spelled.
        tasks: what is learned at which output.
    """

    graph: Model
    losses: tuple[WeightedLoss, ...]
    learn: Taught | None
    choose: Taught | None
    verify: Taught | None
    name: str
    words: tuple[str, ...]
    tasks: tuple[Task, ...]


def teach(
    student: Student,
    parts: Parts,
    teacher: Any,
    wanted: Distillation,
    options: Options,
    say: Callable[[str], None],
) -> Teaching:
    """Choose losses, ask the teacher for all samples once, and pair tensors if features are to be followed.

    Args:
        teacher: None, a path of a model or of outputs (.npy, .npz), a Model, an `nn.Module`, or arrays; or several of
            these: a text with commas ("a.onnx,b.onnx:2", the second counts twice), or a list of them or of `Voice`s;
            each for one output ("digits=a.onnx,clothes=b.onnx", or a mapping), whose losses are summed.
            "self" is the student as it came in, which new labels shall not make forget (Li and Hoiem 2016).

    Raises:
        OptionError: nothing to learn from, or a loss that does not suit what there is.
        DataError, ModelError, CandidateError: the teacher cannot be read or run, or does not fit the student.
    """
    labelled = parts.everything.labels is not None
    feeds = next(parts.learn.first(1).batches(1)).feeds
    given = dict(zip(student.session.outputs, student.session.run(feeds), strict=True))
    outputs = list(given.values())
    voices = [_opened(voice, student.model, labelled) for voice in teachers.voices_of(teacher)]
    tasks = _tasks(student.model, given, parts.everything.labels, voices, parse(wanted.losses))
    names = wanted.losses or _suitable(outputs, tasks, parts.everything.source)
    losses = parse(names)
    _check_batch(losses, options.batch, student.session.static_batch)
    hints = _hints(student.model, voices, feeds, losses)
    graph = with_outputs(student.model, [hint.student for hint in hints], "features") if hints else student.model
    setting = _setting(given, hints, wanted, labelled and teacher is not None, options.seed, tasks)
    weighted = build(losses, setting)
    if teacher is None:
        return Teaching(graph, weighted, None, None, None, "", names, tasks)
    threads = available_cores() if options.devices == 1 else 1  # threads do not outlive the copying of a process
    taught = _together(voices, setting, parts.everything, threads)
    say("asking the teacher" if len(voices) == 1 else f"asking {len(voices)} teachers")
    learn, choose = teachers.remembered(taught, parts.learn), teachers.remembered(taught, parts.choose)
    stored = any(_is_stored(voice.teacher) for voice in voices)
    name = ", ".join(_name_of(voice.teacher) for voice in voices)
    return Teaching(graph, weighted, learn, choose, None if stored and parts.apart else taught, name, names, tasks)


def _tasks(
    student: Model,
    given: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    voices: Sequence[Voice],
    wanted: Sequence[Wanted],
) -> tuple[Task, ...]:
    """What is learned at which output. One list of labels is of the first head that no teacher is named for."""
    names, outputs = list(given), list(given.values())
    heads = heads_of(student, outputs)
    named = {voice.output for voice in voices if voice.output}
    places = {place_of(name, names) for name in sorted(named)}
    free = [names[head] for head in heads if head not in places] if places else []
    asked = next((loss.output for loss in wanted if loss.name == "hard_labels" and loss.output), "")
    found = {task.output: task for task in tasks_of(names, heads, labels, asked or next(iter(free), ""))}
    tasks = [found.get(place, Task(names[place], place)) for place in sorted({*found, *places})]
    taught = voices[0].teacher is not None
    return tuple(
        task._replace(
            taught=taught and (not named or task.name in named),
            probabilities=_are_probabilities(outputs[task.output]),
        )
        for task in tasks
    )


def _suitable(given: Sequence[np.ndarray], tasks: Sequence[Task], source: str) -> tuple[str, ...]:
    """The losses for what there is to learn from.

    Of several heads some may be numbers, of which soft labels teach the differences alone; so where no labels say that
    they are classes, the outputs themselves are followed, too.
    """
    taught = [task for task in tasks if task.taught]
    labelled = [task for task in tasks if task.labelled]
    if not taught and not labelled:
        raise OptionError(
            f"{source} has no labels and there is no teacher, so there is nothing to learn; "
            "give --teacher: another model, or the original that this one was made from"
        )
    if not taught:
        return ("hard_labels",)
    by_labels = tuple(f"hard_labels@{task.name}" for task in labelled if not task.taught)
    numbers = _scores_at([given[task.output] for task in taught]) is None
    if numbers:
        return ("outputs", *by_labels)
    unsure = len(taught) > 1 and not all(task.labelled for task in taught)
    return ("soft_labels", *(("outputs",) if unsure else ()), *by_labels)


def _setting(
    given: Mapping[str, np.ndarray],
    hints: tuple[Hint, ...],
    wanted: Distillation,
    mixed: bool,
    seed: int,
    tasks: tuple[Task, ...],
) -> Setting:
    outputs = list(given.values())
    scores = _scores_at(outputs)
    alpha = wanted.alpha if wanted.alpha is not None else (ALPHA if mixed else 1.0)
    first = outputs[next((task.output for task in tasks if task.taught), scores or 0)]
    return Setting(
        scores=scores,
        outputs=len(outputs),
        width=first.shape[1] if first.ndim == 2 else None,
        probabilities=_are_probabilities(outputs[scores or 0]),
        hints=hints,
        temperature=wanted.temperature,
        alpha=alpha,
        seed=seed,
        names=tuple(given),
        tasks=tasks,
    )


def _are_probabilities(output: np.ndarray) -> bool:
    return output.ndim > 1 and are_probabilities(torch.from_numpy(np.array(output, np.float32)))


def _scores_at(given: list[np.ndarray]) -> int | None:
    """Which output has the scores of classes (B, C); None where none has."""
    shaped = (index for index, array in enumerate(given) if array.ndim == 2 and array.shape[1] > 1)
    return next((index for index in shaped if given[index].dtype.kind == "f"), None)


def _check_batch(losses: Sequence[Wanted], batch: int, static_batch: int | None) -> None:
    """See that losses that compare samples get several at once.

    Raises:
        OptionError: samples go through one by one.
    """
    comparing = [loss.name for loss in losses if loss.name in AMONG]
    if not comparing or min(batch, static_batch or batch) > 1:
        return
    what = "give a batch of 2 at least, 64 suits" if static_batch is None else "export the model with a free batch axis"
    raise OptionError(f"loss {comparing[0]} compares the samples of a batch, and they come one by one; {what}")


def _hints(
    student: Model, voices: Sequence[Voice], feeds: dict[str, np.ndarray], losses: Sequence[Wanted]
) -> tuple[Hint, ...]:
    """Pairs of inner tensors for the losses that need them, or can do with them."""
    names = {loss.name for loss in losses}
    needing = next((loss.name for loss in losses if loss.name in INSIDE), None)
    if needing and len(voices) > 1:
        raise OptionError(f"loss {needing} looks inside one teacher, and there are {len(voices)}; leave it out")
    model = voices[0].teacher if len(voices) == 1 and isinstance(voices[0].teacher, Model) else None
    if needing and (model is None or voices[0].output):
        raise OptionError(
            f"loss {needing} needs a teacher that is an ONNX model, whose inner tensors can be seen, for all outputs"
        )
    if model is None or voices[0].output or names.isdisjoint(INSIDE + AMONG):
        return ()
    try:
        hints = propose(student, model, feeds)
    except OptionError as error:
        if needing in (None, "features"):  # what compares samples can do with outputs
            if needing:
                raise
            return ()
        raise OptionError(f"loss {needing} looks inside: {error}") from error
    return hints if needing or "similarities" in names else hints[-1:]


def _opened(voice: Voice, student: Model, labelled: bool) -> Voice:
    """With the graph in the place of a path to one, or of `SELF`."""
    teacher = voice.teacher
    if isinstance(teacher, str) and teacher == SELF and not Path(teacher).exists():
        if not labelled:
            raise OptionError("teacher self says what the model says already; it needs labels beside it to learn from")
        return voice._replace(teacher=student)
    if isinstance(teacher, (str, Path)) and Path(teacher).suffix.lower() not in STORED:
        return voice._replace(teacher=normalise(read(teacher)))
    return voice._replace(teacher=normalise(teacher)) if isinstance(teacher, Model) else voice


def _together(voices: Sequence[Voice], setting: Setting, samples: Samples, threads: int) -> Taught:
    """All teachers as one: of each output those that are named for it, or all of all outputs."""
    names = setting.names
    if not voices[0].output:
        asked = [_taught(voice.teacher, names, setting.hints, samples, threads) for voice in voices]
        return _mean(voices, asked, setting.scores, setting.probabilities)
    each = dict[int, Taught]()
    for task in (task for task in setting.tasks if task.taught):
        own = [voice for voice in voices if voice.output == task.name]
        asked = [_taught(voice.teacher, (task.name,), (), samples, threads) for voice in own]
        each[task.output] = _mean(own, asked, 0, task.probabilities)
    return teachers.from_each(each, len(names))


def _mean(voices: Sequence[Voice], asked: Sequence[Taught], scores: int | None, probabilities: bool) -> Taught:
    """Those who speak of the same, as one."""
    weights = [voice.weight for voice in voices]
    return asked[0] if len(asked) == 1 else teachers.from_several(asked, weights, scores, probabilities)


def _taught(teacher: Any, outputs: Sequence[str], hints: tuple[Hint, ...], samples: Samples, threads: int) -> Taught:
    if isinstance(teacher, Model):
        return teachers.from_model(teacher, outputs, [hint.teacher for hint in hints], threads)
    if isinstance(teacher, nn.Module):
        return teachers.from_module(teacher)
    if isinstance(teacher, (str, Path, np.ndarray)) or teachers.are_arrays(teacher):
        return teachers.from_arrays(teacher, samples)
    raise DataError(
        f"a teacher of type {type(teacher).__name__}; give the path of an ONNX model or of its outputs (.npy, .npz), "
        "an nn.Module, arrays, or a list of such"
    )


def _is_stored(teacher: Any) -> bool:
    """Whether it knows no samples but those that it was stored for."""
    return not isinstance(teacher, (Model, nn.Module))


def _name_of(teacher: Any) -> str:
    if isinstance(teacher, Model):
        return teacher.name
    return str(teacher) if isinstance(teacher, (str, Path)) else type(teacher).__name__
