"""`gossamer train`: a model and samples come in; trained, written back, measured on the runtime, it goes out.

    summary = train_model("small.onnx", "photos.npz", "out", teacher="big.onnx")

The module in between is `lower`'s; people who keep a loop of their own take that and `write_back` instead.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from gossamer.delivery import check_not_input, writable_folder
from gossamer.errors import CandidateError, ModelError
from gossamer.intake.binding import bind, cast_notes
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.measuring.machine import available_cores
from gossamer.measuring.metrics import choose_metric
from gossamer.nouns.facts import Accuracy
from gossamer.nouns.model import Model, save, write_file
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.holding_out import hold_out
from gossamer.training.lessons import Lessons
from gossamer.training.loop import Trained, train
from gossamer.training.lower import lower
from gossamer.training.measured import measure
from gossamer.training.options import Options
from gossamer.training.pupil import Pupil
from gossamer.training.quantizing import Activations, quantize
from gossamer.training.run import Job
from gossamer.training.settle import settle
from gossamer.training.teaching import Distillation, Parts, Student, teach
from gossamer.training.twin import RATE, twin
from gossamer.training.watching import Watch
from gossamer.training.write_back import write_back
from gossamer.training.zeros import keep_zeros

CHECKPOINT = ".checkpoint.safetensors"


class Summary(msgspec.Struct, frozen=True):
    """What `training.json` holds.

    Attributes:
        artifact: the trained file.
        teacher: what it learned from; empty for labels alone.
        losses: what was lessened.
        constraint: what weights were put on first.
        samples: how many trained, chose the epoch, and verified.
        accuracy: before and after, of the files in onnxruntime, on samples that were in neither of the other two:
            against the labels, or without any against the teacher.
    """

    artifact: str
    teacher: str
    losses: tuple[str, ...]
    options: Options
    distillation: Distillation
    samples: tuple[int, int, int]
    trained: Trained
    accuracy: Accuracy
    seconds: float
    notes: tuple[str, ...] = ()
    constraint: str = ""

    def line(self) -> str:
        """The outcome as a person reads it."""
        got, epoch = self.accuracy, self.trained.best_epoch
        kept = f"epoch {epoch}" if epoch else "nothing better than the beginning"
        kept += ", interrupted" if self.trained.interrupted else ""
        return (
            f"{self.artifact}: {got.metric} {got.original:.2%} -> {got.result:.2%} on {got.n} samples "
            f"(95 % of the gain: {-got.high:+.2%} to {-got.low:+.2%}), {kept}"
        )


def train_model(
    model: Any,
    train_data: Any,
    out: str | Path = "out",
    teacher: Any = None,
    distillation: Distillation = Distillation(),  # noqa: B008  # frozen, so it can be shared
    options: Options = Options(),  # noqa: B008
    data: Any = None,
    data_options: DataOptions | None = None,
    metric: str | None = None,
    watch: Watch = Watch(),  # noqa: B008
    constraint: str = "",
    activations: Activations = "uint8",
) -> Summary:
    """Train an ONNX model on labels, a teacher or both, and write it with what it gained into a folder.

    Args:
        model: the student: a path, or whatever else `gossamer.load` takes.
        train_data: samples as `compress` takes them; labels are optional. A tenth chooses the epoch.
        out: gets model.onnx and training.json. A run that was killed goes on when it is started again the same way.
        teacher: a path of an ONNX model or of its outputs (.npy, .npz), an `nn.Module`, or arrays.
        data: other samples to verify the result on; by default another tenth of the first.
        metric: as for `compress`.
        constraint: a grid that weights are put on first, such as `grid:4`; training then moves integers and steps, and
            without another teacher the model teaches that it was. A model that has integers needs none.
        activations: what layers compute in behind a constraint.

    Raises:
        InputError: the model, the teacher, the data, an option or the folder cannot be used.
        MissingExtraError: the extra `train` is not installed.
        CandidateError: the loss became NaN, or memory does not suffice.
    """
    begin = perf_counter()
    source, folder = read(model), writable_folder(out)
    check_not_input(source.path, folder)
    watch.say("reading the model and the data")
    student, notes = _ready(source)
    parts, said = _samples(student, train_data, data, data_options, options.seed)
    if constraint:
        watch.say(f"putting weights on {constraint}")
        teacher = student.model if teacher is None else teacher
        quantized = quantize(student.model, constraint, activations, parts.learn, available_cores())
        student = Student(quantized, open_session(quantized, available_cores()))
    lessons = teach(student, parts, teacher, distillation, options, watch.say)
    graph = twin(lessons.graph)
    module = lower(graph)
    sparse = keep_zeros(module, graph)
    if sparse:
        watch.say(f"the zeros of {sparse} weights stay zeros")
    job = Job(
        Pupil(module, lessons.losses),
        Lessons(parts.learn, lessons.learn, student.session.static_batch),
        Lessons(parts.choose, lessons.choose, student.session.static_batch),
        for_fixed_batch(options if graph is lessons.graph else for_twin(options), student.session.static_batch),
        folder / CHECKPOINT,
        watch,
        name=source.name,
    )
    trained = train(job)
    watch.say("measuring the result")
    target = folder / "model.onnx"
    result = replace(settle(write_back(module, graph), student.model), path=None, reference=None)
    accuracy = _measured(result, student, Lessons(parts.verify, lessons.verify), metric)
    save(result, target)
    summary = Summary(
        artifact=str(target),
        teacher=lessons.name,
        losses=tuple(type(loss.loss).__name__ for loss in lessons.losses),
        options=job.options,
        distillation=distillation,
        samples=(len(parts.learn), len(parts.choose), len(parts.verify)),
        trained=trained,
        accuracy=accuracy,
        seconds=perf_counter() - begin,
        notes=(*notes, *said),
        constraint=constraint,
    )
    write_file(folder / "training.json", msgspec.json.format(msgspec.json.encode(summary), indent=2))
    if not trained.interrupted:  # else the same command goes on where it was
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return summary


def for_twin(options: Options) -> Options:
    """The options for a twin, whose weights have the same rate in any network: a range test is not needed."""
    return options if options.rate is not None else msgspec.structs.replace(options, rate=RATE)


def for_fixed_batch(options: Options, fixed_batch: int | None) -> Options:
    """The options for a model that insists on so many samples in a call: more calls make up a step of the same size."""
    if fixed_batch is None:
        return options
    wanted = options.batch * options.accumulate
    return msgspec.structs.replace(options, batch=fixed_batch, accumulate=max(1, round(wanted / fixed_batch)))


def _ready(source: Model) -> tuple[Student, tuple[str, ...]]:
    """The model in the form that is trained, opened; and what that changed.

    Raises:
        ModelError: it does not run.
    """
    prepared = normalise(source)
    try:
        return Student(prepared, open_session(prepared, available_cores())), prepared.notes
    except CandidateError as error:
        raise ModelError(f"{source.name}: {error}; only a model that runs can be trained") from error


def _samples(
    student: Student, train_data: Any, data: Any, data_options: DataOptions | None, seed: int
) -> tuple[Parts, tuple[str, ...]]:
    """The samples in parts, bound to the student's inputs; and what that changed."""
    inputs = student.session.inputs
    unbound = read_samples(train_data, data_options)
    samples, said = bind(unbound, inputs), cast_notes(unbound, inputs)
    if data is None:
        (choose, verify), learn = hold_out(samples, seed, 2)
        return Parts(samples, learn, choose, verify, False), said
    (choose,), learn = hold_out(samples, seed)
    return Parts(samples, learn, choose, bind(read_samples(data, data_options), inputs), True), said


def _measured(result: Model, student: Student, verify: Lessons, metric: str | None) -> Accuracy:
    """Before and after, as the runtime computes them.

    Raises:
        CandidateError: the result does not run.
        OptionError, DataError: the metric does not suit.
    """
    chosen = choose_metric(student.session, verify.samples, metric)
    return measure(student.session, open_session(result, available_cores()), verify, chosen)
