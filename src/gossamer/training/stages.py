"""Stages of training: weights are moved into a form, trained within it, moved further, and trained again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.contract import as_text, constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError
from gossamer.intake.normalise import normalise
from gossamer.intake.onnx_file import read
from gossamer.measuring.evidence import Evidence
from gossamer.measuring.machine import available_cores
from gossamer.nouns.model import Model, save, to_bytes
from gossamer.training.constraining import (
    CALIBRATION,
    Activations,
    check_activations,
    cleaned,
    constrained,
    stages_of,
    zeros_of,
)
from gossamer.training.in_form import Course, Outcome, Shaping, train_in_form
from gossamer.training.norms import LEAST_BATCH, folded, with_norms
from gossamer.training.options import Options
from gossamer.training.penalties.chosen import OF_INTEGERS, Wanted, parse
from gossamer.training.run import data_digest, described
from gossamer.training.sections import train_in_sections
from gossamer.training.sparsity.chosen import Removal
from gossamer.training.spread import SPREADS, Spread, check_spread, input_energies, is_spread

STAGE = ".stage-"  # begins the names of files of finished stages, which a killed run goes on from
ROUNDS = 4  # in which a ratio of zeros is reached


class Formed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The form that weights are to have in the end; no constraint leaves the model in the form that it has.

    Attributes:
        rounds: in which a ratio of zeros is reached by removal second_order; None stands for four.
        removal: how weights become zero: in rounds, at the least error of what layers compute; or in one run, while the
            others are trained (see `sparsity`).
        penalties: what weights cost by themselves, see `penalties.chosen`.
        sections: that integers are trained in, one after the other, see `sections`; 0 and 1 train the whole at once.
        spread: of which layers a ratio of zeros is: all together, by a score, or each (equal), see `spread`.
    """

    constraint: str = ""
    rounds: int | None = None
    activations: Activations = "uint8"
    removal: Removal = "second_order"
    penalties: tuple[str, ...] = ()
    sections: int = 0
    spread: Spread = "score"


class Stage(NamedTuple):
    """One run of training.

    Attributes:
        constraint: that weights are moved into before; empty leaves them.
        zeros: that they come to meanwhile.
        penalties: those that act in it.
    """

    constraint: str
    zeros: Sparse | None
    penalties: tuple[str, ...]

    def __str__(self) -> str:
        if self.zeros is not None:
            return as_text(self.zeros)
        return self.constraint or ", ".join(self.penalties)


def check_formed(formed: Formed, options: Options) -> None:
    """See that a form can be reached, before anything else takes time.

    Raises:
        OptionError: no such constraint, removal or penalty; a word that has no meaning for the others; more stages than
            epochs.
    """
    rounds, constraint = formed.rounds, formed.constraint
    if rounds is not None and rounds < 1:
        raise OptionError(f"rounds is {rounds}; allowed is 1 or more")
    check_activations(constraint, formed.activations)
    _check_removal(formed)
    if formed.sections > 1 and (formed.penalties or formed.removal != "second_order"):
        raise OptionError("sections are trained without penalties or zeros that appear meanwhile; leave either out")
    stages = plan(formed)
    if options.epochs < len(stages):
        raise OptionError(
            f"{constraint} in {len(stages)} stages ({', '.join(map(str, stages))}) needs as many epochs at least, "
            f"epochs is {options.epochs}; give more epochs, or fewer rounds"
        )


def plan(formed: Formed) -> tuple[Stage, ...]:
    """The stages, in order.

    Penalties act wherever layers have weights of their own. If there is no such stage, as for a codebook alone, one
    comes before the others.

    Raises:
        OptionError: no such constraint or penalty, or a penalty of integers without any.
    """
    wanted = parse(formed.penalties)
    if not formed.constraint:
        return (Stage("", None, formed.penalties),)
    zeros = None if formed.removal == "second_order" else zeros_of(formed.constraint)
    texts = stages_of(formed.constraint, (formed.rounds or ROUNDS) if zeros is None else 1)
    stages = [Stage(text, None, _acting(wanted, text)) for text in texts]
    if zeros is not None:
        stages[0] = Stage("", zeros, _acting(wanted, as_text(zeros)))
    missing = [one for one in wanted if not any(one.text in stage.penalties for stage in stages)]
    for one in missing:
        if one.name in OF_INTEGERS:
            raise OptionError(
                f"penalty {one.text} is of integers, and {formed.constraint} makes none; add a grid, such as "
                "sparse:0.9+grid:4, or leave it out"
            )
    first = [Stage("", None, tuple(one.text for one in missing))] if missing else []
    return (*first, *stages)


def in_stages(model: Model, course: Course, options: Options, formed: Formed, folder: Path) -> tuple[Outcome, str]:
    """Train in as many stages as the form asks for; the outcome of the last, and the constraint that it met.

    Args:
        options: epochs are those of all stages together.
        folder: where finished stages lie until the run is over.

    Raises:
        OptionError: no weight can take the form, or there are fewer steps than updates of zeros.
        ModelError, DataError, CandidateError: see `train_in_form`.
    """
    if not formed.constraint and formed.sections < 2:
        return train_in_form(model, course, options, shaping=Shaping(formed.penalties)), ""
    key = _digest(model, course, options, formed)

    def finished_of(number: int, stage: int = 0) -> Path:
        return folder / f"{STAGE}{stage}-section-{number}-{key}.onnx"

    if not formed.constraint:
        return train_in_sections(model, course, options, formed.sections, finished_of), ""
    stages = plan(formed)
    each = options.epochs // len(stages)
    for number, stage in enumerate(stages[:-1], 1):
        finished = folder / f"{STAGE}{number}-{key}.onnx"
        if finished.exists():
            course.watch.say(f"going on behind stage {number}, {stage}")
            model = normalise(read(finished))
            continue
        some = msgspec.structs.replace(options, epochs=each)
        outcome = _trained(model, stage, course, some, formed, partial(finished_of, stage=number))
        if outcome.trained.interrupted:
            return outcome, stage.constraint
        model = outcome.model
        save(model, finished)
        if course.checkpoint is not None:
            course.checkpoint.unlink(missing_ok=True)
    rest = options.epochs - each * (len(stages) - 1)
    some = msgspec.structs.replace(options, epochs=rest)
    outcome = _trained(model, stages[-1], course, some, formed, partial(finished_of, stage=len(stages)))
    return outcome, stages[-1].constraint if outcome.trained.interrupted else formed.constraint


def _trained(
    model: Model, stage: Stage, course: Course, options: Options, formed: Formed, finished: Callable[[int], Path]
) -> Outcome:
    course.watch.say(_told(stage, formed.removal))
    samples, threads = course.learn.samples, available_cores()
    if stage.constraint:
        in_order = formed.sections > 1  # what is learned front to back begins so, too
        moved = constrained(model, stage.constraint, formed.activations, samples, threads, formed.spread, in_order)
    else:
        moved = cleaned(model, samples, threads)
    for note in moved.notes[len(model.notes) :]:
        course.watch.say(f"  {note}")
    if formed.sections > 1:
        return train_in_sections(moved, course, options, formed.sections, finished)
    zeros = zeros_of(stage.constraint) if stage.constraint else stage.zeros
    alone = zeros is not None and str(stage) == as_text(zeros)  # weights are floats then
    spread = zeros is not None and is_spread(formed.spread, zeros)
    some = samples.first(CALIBRATION)
    inputs = input_energies(moved, Evidence(some, threads)) if spread and stage.zeros is not None else None
    shown = with_norms(moved, some, threads) if alone and _takes_norms(course, options, stage) else moved
    if shown is not moved:
        course.watch.say("norms stand behind convolutions of floats meanwhile")
    shaping = Shaping(stage.penalties, formed.removal, stage.zeros, inputs)
    outcome = train_in_form(shown, course, options, sparse=stage.zeros is None and zeros is not None, shaping=shaping)
    outcome = outcome if shown is moved else outcome._replace(model=folded(outcome.model, moved))
    if spread and zeros is not None and stage.constraint == as_text(zeros):
        check_spread(outcome.model, zeros)
    return outcome


def _takes_norms(course: Course, options: Options, stage: Stage) -> bool:
    """Whether norms may stand behind convolutions.

    Not where shares of the rate are by name, as theirs would be unclear, nor under penalties: what a norm scales up
    again can become small at no loss.
    """
    together = course.learn.fixed_batch or options.batch
    return together >= LEAST_BATCH and not options.rates and not stage.penalties


def _told(stage: Stage, removal: Removal) -> str:
    """What a stage begins with, in a line."""
    if not stage.constraint and stage.zeros is None:
        return f"training weights under the penalty {stage}"
    under = f", under the penalty {', '.join(stage.penalties)}" if stage.penalties else ""
    if stage.zeros is None:
        return f"moving weights into {stage}{under}"
    return f"training weights that become {stage} meanwhile, by {removal} removal{under}"


def _acting(wanted: tuple[Wanted, ...], constraint: str) -> tuple[str, ...]:
    """The penalties that have something to act on, once weights are under a constraint."""
    aim = constraint_from_text(constraint)
    stored = aim.then if isinstance(aim, Composed) else aim
    if isinstance(stored, Codebook):
        return ()
    return tuple(one.text for one in wanted if isinstance(stored, Grid) or one.name not in OF_INTEGERS)


def _check_removal(formed: Formed) -> None:
    """See that removal, spread and rounds mean something here."""
    constraint, removal, rounds = formed.constraint, formed.removal, formed.rounds
    if removal not in get_args(Removal):
        raise OptionError(f"removal is {removal!r}; allowed are {', '.join(get_args(Removal))}")
    zeros = zeros_of(constraint) if constraint else None
    if removal != "second_order" and zeros is None:
        raise OptionError(
            f"removal {removal} is how weights become zero, and {constraint or 'no constraint'} asks for no zeros; "
            "give one that does, such as sparse:0.9, or leave removal out"
        )
    if formed.spread not in SPREADS:
        raise OptionError(f"spread is {formed.spread!r}; allowed are {', '.join(SPREADS)}")
    if formed.spread == "equal" and zeros is None:
        raise OptionError(
            f"spread equal is how zeros lie over layers, and {constraint or 'no constraint'} asks for no zeros; "
            "give one that does, such as sparse:0.9, or leave spread out"
        )
    if rounds in (None, 1):  # in one everything is done
        return
    if removal != "second_order":
        raise OptionError(
            f"rounds is {rounds}, and removal {removal} reaches {constraint} in one run; drop one of both"
        )
    if zeros is None or zeros.ratio is None:
        raise OptionError(
            f"rounds is {rounds}, and {constraint or 'no constraint'} is not reached in rounds, as only a ratio of "
            "zeros is; leave rounds out"
        )


def _digest(model: Model, course: Course, options: Options, formed: Formed) -> str:
    """Of what a run is, so that the stages of another are not taken for its own."""
    sha = hashlib.sha256(to_bytes(model))
    losses = [(described(loss.loss), loss.weight) for loss in course.losses]
    lessons = [data_digest(one) for one in (course.learn, course.choose)]
    sha.update(msgspec.json.encode((options, formed, losses, lessons)))
    return sha.hexdigest()[:16]
