"""Stages of training: weights are moved into a form, trained within it, moved further, and trained again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from gossamer.errors import OptionError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.machine import available_cores
from gossamer.nouns.model import Model, save, to_bytes
from gossamer.training.constraining import Activations, check_activations, constrained, is_sparse, stages_of
from gossamer.training.in_form import Course, Outcome, train_in_form
from gossamer.training.options import Options

STAGE = ".stage-"  # begins the names of files of finished stages, which a killed run goes on from


class Formed(NamedTuple):
    """The form that weights are to have in the end; no constraint leaves the model in the form that it has."""

    constraint: str = ""
    rounds: int = 4
    activations: Activations = "uint8"


def check_formed(formed: Formed, options: Options) -> None:
    """See that a form can be reached, before anything else takes time.

    Raises:
        OptionError: no such constraint, or none that training keeps; no rounds; more stages than epochs.
    """
    if formed.rounds < 1:
        raise OptionError(f"rounds is {formed.rounds}; allowed is 1 or more")
    check_activations(formed.constraint, formed.activations)
    stages = stages_of(formed.constraint, formed.rounds) if formed.constraint else ()
    if options.epochs < len(stages):
        raise OptionError(
            f"{formed.constraint} in {len(stages)} stages ({', '.join(stages)}) needs as many epochs at least, "
            f"epochs is {options.epochs}; give more epochs, or fewer rounds"
        )


def in_stages(model: Model, course: Course, options: Options, formed: Formed, folder: Path) -> tuple[Outcome, str]:
    """Train in as many stages as the form asks for; the outcome of the last, and the constraint that it met.

    Args:
        options: epochs are those of all stages together.
        folder: where finished stages lie until the run is over.

    Raises:
        OptionError: no weight can take the form.
        ModelError, DataError, CandidateError: see `train_in_form`.
    """
    if not formed.constraint:
        return train_in_form(model, course, options), ""
    stages = stages_of(formed.constraint, formed.rounds)
    key = _digest(model, course, options, formed)
    each = options.epochs // len(stages)
    for number, stage in enumerate(stages[:-1], 1):
        finished = folder / f"{STAGE}{number}-{key}.onnx"
        if finished.exists():
            model = normalise(read(finished))
            continue
        outcome = _stage(model, stage, course, msgspec.structs.replace(options, epochs=each), formed)
        if outcome.trained.interrupted:
            return outcome, stage
        model = outcome.model
        save(model, finished)
        if course.checkpoint is not None:
            course.checkpoint.unlink(missing_ok=True)
    rest = options.epochs - each * (len(stages) - 1)
    return _stage(model, stages[-1], course, msgspec.structs.replace(options, epochs=rest), formed), stages[-1]


def _stage(model: Model, stage: str, course: Course, options: Options, formed: Formed) -> Outcome:
    course.watch.say(f"moving weights into {stage}")
    moved = constrained(model, stage, formed.activations, course.learn.samples, available_cores())
    for note in moved.notes[len(model.notes) :]:
        course.watch.say(f"  {note}")
    return train_in_form(moved, course, options, sparse=is_sparse(stage))


def _digest(model: Model, course: Course, options: Options, formed: Formed) -> str:
    """Of what a run is, so that the stages of another are not taken for its own."""
    sha = hashlib.sha256(to_bytes(model))
    losses = [(type(loss.loss).__name__, loss.weight) for loss in course.losses]
    sha.update(msgspec.json.encode((options, formed, losses, course.learn.samples.digest())))
    return sha.hexdigest()[:16]
