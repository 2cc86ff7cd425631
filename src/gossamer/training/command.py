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
from gossamer.errors import CandidateError, ModelError, OptionError
from gossamer.graph.new_head import with_new_head
from gossamer.intake.binding import bind, cast_notes
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.measuring.machine import available_cores
from gossamer.measuring.metrics import Metric, choose_metric, first_outputs
from gossamer.nouns.facts import Accuracy
from gossamer.nouns.model import Model, save, write_file
from gossamer.nouns.samples import Samples
from gossamer.runtimes.onnxruntime import open_session
from gossamer.training.constraining import Activations
from gossamer.training.holding_out import hold_out, keep_apart
from gossamer.training.in_form import Course
from gossamer.training.lessons import Lessons
from gossamer.training.loop import Trained
from gossamer.training.lower import lower
from gossamer.training.measured import Gained, measure
from gossamer.training.options import Options
from gossamer.training.origin import with_origin
from gossamer.training.rates import set_rates
from gossamer.training.sparsity.chosen import Removal
from gossamer.training.spread import Spread
from gossamer.training.stages import STAGE, Formed, check_formed, in_stages
from gossamer.training.tasks import Task, heads_of
from gossamer.training.teacher import voices_of
from gossamer.training.teaching import SELF, Distillation, Parts, Student, teach
from gossamer.training.twin import twin
from gossamer.training.watching import Watch

CHECKPOINT = ".checkpoint.safetensors"


class Summary(msgspec.Struct, frozen=True):
    """What `training.json` holds.

    Attributes:
        artifact: the trained file.
        teacher: what it learned from; empty for labels alone.
        losses: what was lessened, as it is spelled.
        constraint: what weights were moved into.
        samples: how many trained, chose the epoch, and verified.
        accuracy: before anything and after, of the files in onnxruntime, on samples that were in neither of the other
            two: against the labels, or without any against the teacher. Of several outputs that learned, the mean.
        tasks: the same of each output, if several learned.
        form: what was asked for: constraint, rounds, removal, spread, penalties and the like.
        head: for how many classes the last layer was drawn anew.
        options: those that were given, but for a batch that memory halved. In several stages `trained` is the last.
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
    tasks: dict[str, Accuracy] = msgspec.field(default_factory=dict)
    form: Formed = Formed()
    head: int | None = None

    def line(self) -> str:
        """The outcome as a person reads it."""
        got, epoch = self.accuracy, self.trained.best_epoch
        beginning = "the weights that were moved into it last" if self.constraint else "the beginning"
        kept = f"epoch {epoch}" if epoch else f"no epoch better than {beginning}"
        kept += ", interrupted" if self.trained.interrupted else ""
        each = [f"{name} {task.original:.2%} -> {task.result:.2%}" for name, task in self.tasks.items()]
        kept = "; ".join([kept, ", ".join(each)]) if each else kept
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
    rounds: int | None = None,
    head: int | None = None,
    removal: Removal = "second_order",
    penalties: tuple[str, ...] = (),
    sections: int = 0,
    spread: Spread = "score",
) -> Summary:
    """Train an ONNX model on labels, a teacher or both, and write it with what it gained into a folder.

    Args:
        model: the student: a path, or whatever else `gossamer.load` takes.
        train_data: samples as `compress` takes them; labels are optional. A tenth chooses the epoch.
        out: gets model.onnx and training.json. A run that was killed goes on when it is started again the same way.
        teacher: a path of an ONNX model or of its outputs (.npy, .npz), an `nn.Module`, or arrays; or several, see
            `teaching.teach`.
        data: other samples to verify the result on; by default another tenth of the first.
        metric: as for `compress`.
        constraint: what weights are to be, as `gossamer constrain` takes it: `grid:4`, `sparse:0.9`,
            `sparse:0.9+codebook:16`. They are moved there, and trained within it; without another teacher the model
            teaches that it was. A model that has its form already needs none.
        activations: what layers compute in behind a grid.
        rounds: in which a ratio of zeros is reached, with a share of the epochs each; None is four.
        head: for how many classes the last layer is drawn anew before anything else; None keeps it.
        removal: how weights become zero: second_order in rounds, at the least error of what layers compute; gradual,
            movement or rigl in one run, while the others are trained.
        penalties: what weights cost by themselves, each with its strength: `lasso:0.1`, `group_lasso:0.1`,
            `mixture:0.01`, `rate:0.1`.
        sections: that integers are trained in one after the other, front to back, with the epochs for each; by the
            float network, its teacher. 0 trains the whole at once.
        spread: what a ratio of zeros is of: score, of all constrained weights together, most where they matter least;
            equal, of each layer. N:M and blocks are of each layer either way.

    Raises:
        InputError: the model, the teacher, the data, an option or the folder cannot be used.
        MissingExtraError: the extra `train` is not installed.
        CandidateError: the loss became NaN, or memory does not suffice.
    """
    begin = perf_counter()
    formed = Formed(constraint, rounds, activations, removal, penalties, sections, spread)
    check_formed(formed, options)
    source, folder = read(model), writable_folder(out)
    check_not_input(model, folder)
    watch.say("reading the model and the data")
    student, notes = _ready(source, head, options.seed)
    student = student._replace(model=with_origin(student.model, teacher))
    if head is not None:
        first, *others = (str(value.name) for value in student.model.ir.graph.outputs)
        watch.say(f"output {first} is of {head} new classes" + (f"; {', '.join(others)} stay" if others else ""))
    if options.rates:  # before anything takes time
        graph = twin(student.model)
        watch.say(set_rates(lower(graph), graph, options.rates))
    parts, said = _samples(student, train_data, data, data_options, options.seed)
    chosen = _metric(student, parts.verify, metric)
    by = _teacher(teacher, student, bool(constraint), head is not None)
    lessons = teach(student, parts, by, distillation, options, watch.say)
    fixed = student.session.static_batch
    course = Course(
        lessons.losses,
        tuple(str(value.name) for value in lessons.graph.ir.graph.outputs[len(student.session.outputs) :]),
        Lessons(parts.learn, lessons.learn, fixed),
        Lessons(parts.choose, lessons.choose, fixed),
        folder / CHECKPOINT,
        watch,
    )
    outcome, stage = in_stages(student.model, course, options, formed, folder)
    watch.say("measuring the result")
    target = folder / "model.onnx"
    result = replace(outcome.model, path=None, reference=None)
    gained = _measured(result, student, Lessons(parts.verify, lessons.verify), chosen, lessons.tasks)
    save(result, target)
    trained = outcome.trained
    summary = Summary(
        artifact=str(target),
        teacher=lessons.name,
        losses=lessons.words,
        options=msgspec.structs.replace(outcome.options, epochs=options.epochs, rate=options.rate),
        distillation=distillation,
        samples=(len(parts.learn), len(parts.choose), len(parts.verify)),
        trained=trained,
        accuracy=gained.all,
        seconds=perf_counter() - begin,
        notes=tuple(dict.fromkeys((*notes, *said, *outcome.model.notes))),
        constraint=stage,
        tasks=gained.each,
        form=formed,
        head=head,
    )
    write_file(folder / "training.json", msgspec.json.format(msgspec.json.encode(summary), indent=2))
    if not trained.interrupted:  # else the same command goes on where it was
        for leftover in (folder / CHECKPOINT, *folder.glob(f"{STAGE}*")):
            leftover.unlink(missing_ok=True)
    return summary


def _ready(source: Model, head: int | None, seed: int) -> tuple[Student, tuple[str, ...]]:
    """The model in the form that is trained, opened; and what that changed.

    Raises:
        OptionError, ModelError: it can get no such head; or it does not run.
    """
    prepared = normalise(source)
    if head is not None:
        prepared = with_new_head(prepared, head, seed)
    try:
        return Student(prepared, open_session(prepared, available_cores())), prepared.notes
    except CandidateError as error:
        raise ModelError(f"{source.name}: {error}; only a model that runs can be trained") from error


def _teacher(given: Any, student: Student, constrained: bool, renewed: bool) -> Any:
    """The teacher that was given; without one a model that is moved into a constraint teaches that it was.

    Raises:
        OptionError: it is the model itself, whose last layer is new.
    """
    if not renewed:
        return student.model if constrained and given is None else given
    if any(isinstance(voice.teacher, str) and voice.teacher == SELF for voice in voices_of(given)):
        raise OptionError("teacher self knows nothing of the new classes; give another, or labels alone")
    return given


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
    verify = bind(read_samples(data, data_options), inputs)
    apart, notes = keep_apart(samples, (verify,))
    (choose,), learn = hold_out(apart, seed)
    return Parts(samples, learn, choose, verify, True), (*said, *notes)


def _metric(student: Student, samples: Samples, asked: str | None) -> Metric:
    """The metric that suits; of a model with several heads and whole numbers for labels it is top1.

    Raises:
        OptionError, DataError: see `choose_metric`.
    """
    labels = samples.labels
    if labels is not None and labels.dtype.kind in "iu" and asked in (None, "top1"):
        if len(heads_of(student.model, list(first_outputs(student.session, samples).values()))) > 1:
            return Metric("top1")
    return choose_metric(student.session, samples, asked)


def _measured(result: Model, student: Student, verify: Lessons, metric: Metric, tasks: tuple[Task, ...]) -> Gained:
    """Before and after, as the runtime computes them.

    Raises:
        CandidateError: the result does not run.
        OptionError, DataError: the metric does not suit.
    """
    return measure(student.session, open_session(result, available_cores()), verify, metric, tasks)
