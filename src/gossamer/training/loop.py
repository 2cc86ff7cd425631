"""The loop: epochs of steps, validation between them, checkpoints, and the best weights in the end.

    pupil = Pupil(module, [WeightedLoss(SoftLabels())])
    trained = train(Job(pupil, Lessons(samples, taught), Lessons(others, taught), Options(epochs=5)))

The module is any `nn.Module`: what `lower` made of a graph, its weights parametrized or not. The engine underneath is
Lightning Fabric. On a CPU the same run gives the same bits, also if it was killed and went on from its checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import msgspec
import numpy as np
import torch

from gossamer.errors import DataError
from gossamer.training import checkpoints
from gossamer.training.averages import State, follow, load, snapshot
from gossamer.training.keeping import is_best, is_ruined, is_settled
from gossamer.training.learning_rate import range_test, rate_at, set_rate
from gossamer.training.options import Options
from gossamer.training.pages import kept_pages
from gossamer.training.probe import check_trainable, probe
from gossamer.training.processes import engine, in_processes
from gossamer.training.run import Job, Run, begin, resume, save
from gossamer.training.sparsity.contract import Moment
from gossamer.training.step import seed_step, take_step
from gossamer.training.validation import judge
from gossamer.training.watching import Epoch, line_of


class Trained(msgspec.Struct, frozen=True):
    """What came of training.

    Attributes:
        rate: the highest learning rate, given or found.
        best_epoch: whose weights the module holds now; 0 if nothing was better than the beginning.
        epochs: every epoch, from 0, before the first step.
        batch: samples that went through the module at once in the end.
        interrupted: Ctrl-C ended it; what the module holds is the best so far.
    """

    rate: float
    best_epoch: int
    epochs: tuple[Epoch, ...]
    batch: int
    interrupted: bool = False


def train(job: Job) -> Trained:
    """Train the job's student in place; it ends in eval mode, with the weights of the epoch that validated best.

    Raises:
        MissingExtraError: lightning-fabric or safetensors is not installed.
        ModelError: the student has no weights to train, or the checkpoint is of another run.
        DataError: labels or a teacher that do not fit the student.
        OptionError: a device that is not there.
        CandidateError: the loss became NaN, or memory does not suffice. The student holds the best weights so far.
    """
    student = job.pupil.student
    check_trainable(student, job.name)
    device = next(student.parameters()).device
    with (
        kept_pages(),
        torch.random.fork_rng(devices=[]),
    ):  # others would wake CUDA, which must sleep while processes are copied
        fabric = engine(job.options, unreached=probe(job))
        try:
            if job.options.devices == 1:
                return _train(fabric, job)
            with TemporaryDirectory() as folder:
                file = Path(folder) / "trained.safetensors"
                in_processes(fabric, lambda: _hand_over(file, fabric, job))
                state, texts = checkpoints.read(file)
                load(student, state)
                return msgspec.json.decode(texts["trained"], type=Trained)
        except IndexError as error:
            raise DataError(
                f"{job.name}: a sample looks up what is not in a table: {error}; mend its integers"
            ) from error
        finally:
            job.pupil.to(device).eval()


def steps_of(count: int, options: Options, epoch: int) -> list[np.ndarray]:
    """Positions of the samples of each step of an epoch (0, 1, ...), in the order of a permutation of its own.

    A last step less than half full is left out, as its gradient is noisy, and so is one that does not go round all
    processes; the next epoch leaves out others.

    Raises:
        DataError: there are fewer samples than processes.
    """
    if count < options.devices:
        raise DataError(f"{count} samples cannot be shared by {options.devices} processes; give fewer devices")
    order = np.random.default_rng((options.seed, epoch)).permutation(count)
    size = options.step_samples
    steps = [order[start : start + size] for start in range(0, count, size)]
    short = len(steps) > 1 and (2 * len(steps[-1]) < size or len(steps[-1]) < options.devices)
    return steps[:-1] if short else steps


def _train(fabric: Any, job: Job) -> Trained:
    """All of it, in one process. An interrupt ends it with the best so far, once there is something better."""
    run, interrupted = begin(fabric, job), False
    try:
        if not resume(run):
            _refresh(run)
            run.place.rate = job.options.rate or _found_rate(run)
            _end_epoch(run, None)
            save(run)
        while (
            not is_ruined(run, _moment(run)) and run.place.epoch < job.options.epochs and not _is_out_of_patience(run)
        ):
            _epoch(run)
    except KeyboardInterrupt:
        if not run.place.best_epoch or job.options.devices > 1:
            raise
        job.watch.say(f"interrupted: going on with the best so far, that of epoch {run.place.best_epoch}")
        interrupted = True
    finally:
        load(job.pupil.student, run.best)
        if fabric.is_global_zero:
            job.watch.end()
    return Trained(run.place.rate, run.place.best_epoch, tuple(run.place.epochs), run.place.batch, interrupted)


def _epoch(run: Run) -> None:
    """The steps of an epoch that are still to do, and its end."""
    job, place = run.job, run.place
    steps = steps_of(len(job.data), job.options, place.epoch)
    rank, world = run.fabric.global_rank, run.fabric.world_size
    to_do = steps[place.step :]
    saved = monotonic()
    for step, pieces in zip(to_do, job.data.in_turn([step[rank::world] for step in to_do], place.batch), strict=True):
        done, total = place.epoch * len(steps) + place.step, job.options.epochs * len(steps)
        set_rate(run.optimizer, rate_at(done, total, job.options, place.rate))
        seed_step(job.options.seed, done, rank)
        place.loss_sum += take_step(run, pieces, len(step), Moment(done, total)) * len(step)
        place.seen += len(step)
        place.step += 1
        if run.average is not None:
            _follow(run, run.average, Moment(done + 1, total))
        if run.fabric.is_global_zero:
            job.watch.steps(done + 1, total)
        if monotonic() - saved > job.save_s:
            save(run)
            saved = monotonic()
    place.epoch, place.step = place.epoch + 1, 0
    _end_epoch(run, run.fabric.all_reduce(torch.tensor(place.loss_sum / place.seen, dtype=torch.float64)).item())
    place.loss_sum, place.seen = 0.0, 0
    save(run)


def _follow(run: Run, average: State, at: Moment) -> None:
    """The average of the weights since the last of them was removed: before, they do not belong together."""
    student, shaper = run.job.pupil.student, run.job.pupil.shaper
    decay = run.job.options.average if shaper is None or shaper.settled(at) else 0.0
    follow(average, student, decay, at.done - 1)
    if shaper is not None:
        shaper.held(average)


def _end_epoch(run: Run, loss: float | None) -> None:
    """Judge the student, keep it if it is the best so far, and tell."""
    job, place = run.job, run.place
    _refresh(run)
    judged = judge(run)
    if is_best(run, judged.score, _moment(run)):
        place.best_score, place.best_epoch = judged.score if is_settled(run, _moment(run)) else None, place.epoch
        run.best = (
            snapshot(job.pupil.student) if run.average is None else {n: v.clone() for n, v in run.average.items()}
        )
    group = run.optimizer.param_groups[0]
    rate = group["lr"] / group["ratio"] if place.epoch else 0.0
    epoch = Epoch(place.epoch, loss, judged.loss, judged.right, rate)
    place.epochs.append(epoch)
    if run.fabric.is_global_zero:
        job.watch.say(
            line_of(epoch, job.options.epochs, "agreement" if job.validation.samples.labels is None else "top1")
        )
        figures = {"loss": loss, "validation loss": judged.loss, "validation right": judged.right, "rate": rate}
        job.watch.figures({name: value for name, value in figures.items() if value is not None}, place.epoch)


def _refresh(run: Run) -> None:
    if run.job.pupil.penalties is not None:
        run.job.pupil.penalties.refresh()


def _moment(run: Run) -> Moment:
    """Between two epochs."""
    steps = len(steps_of(len(run.job.data), run.job.options, 0))
    return Moment(run.place.epoch * steps, run.job.options.epochs * steps)


def _is_out_of_patience(run: Run) -> bool:
    patience = run.job.options.patience
    return bool(patience) and run.place.epoch - run.place.best_epoch >= patience


def _found_rate(run: Run) -> float:
    """The rate that a range test finds; the run is left as it was."""
    job, place = run.job, run.place
    pupil = job.pupil
    before, kept = snapshot(pupil), run.optimizer.state_dict()
    rank, world = run.fabric.global_rank, run.fabric.world_size
    steps = steps_of(len(job.data), job.options, 0)
    if pupil.shaper is not None:
        pupil.shaper.rehearse()

    def step(index: int, rate: float) -> float:
        chosen = steps[index % len(steps)]
        set_rate(run.optimizer, rate)
        seed_step(job.options.seed, index, rank)
        loss = take_step(run, job.data.pieces(chosen[rank::world], place.batch), len(chosen), may_diverge=True)
        return float(run.fabric.all_reduce(torch.tensor(loss, dtype=torch.float64)))

    try:
        rate = range_test(step, job.options.optimizer)
    finally:
        load(pupil, before)
        run.optimizer.load_state_dict(kept)
    if run.fabric.is_global_zero:
        job.watch.say(f"a range test found the learning rate {rate:.2g}")
    return rate


def _hand_over(file: Path, fabric: Any, job: Job) -> None:
    """Train, and leave the result in a file for the process that waits."""
    trained = _train(fabric, job)
    if fabric.is_global_zero:
        checkpoints.write(file, job.pupil.student.state_dict(), {"trained": msgspec.json.encode(trained).decode()})
