"""Who is told how training goes: a line now and then, a bar in a terminal, figures for TensorBoard or MLflow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from gossamer.errors import MissingExtraError

REDRAW_S = 0.1

Say = Callable[[str], None]
Figures = Callable[[Mapping[str, float], int], None]  # name -> value, and the step they belong to
Steps = Callable[[int, int], None]  # steps done, steps in all


class Epoch(msgspec.Struct, frozen=True):
    """What is known at the end of an epoch; epoch 0 is before the first step.

    Attributes:
        loss: mean over the epoch's samples; None for epoch 0.
        validation_loss: mean over the validation samples, of the averaged weights if there are any; None where it is
            not finite.
        right: share of validation samples whose arg-max is the label's, or without labels the teacher's; None for
            models that do not classify.
        rate: the learning rate of the last step.
    """

    epoch: int
    loss: float | None
    validation_loss: float | None
    right: float | None
    rate: float


class Watch(NamedTuple):
    """Whom training tells; nobody by default.

    Attributes:
        say: a line at the end of each epoch, and for what is out of the ordinary.
        steps: after every step.
        figures: loss, validation and rate at the end of each epoch.
        end: once, when training ends or fails.
    """

    say: Say = lambda _: None
    steps: Steps = lambda _, __: None
    figures: Figures = lambda _, __: None
    end: Callable[[], None] = lambda: None


def line_of(epoch: Epoch, epochs: int, judged: str) -> str:
    """An epoch as a person reads it."""
    loss = "" if epoch.loss is None else f"loss {epoch.loss:.4g}, "
    right = "" if epoch.right is None else f", {judged} {epoch.right:.2%}"
    validation = "is not finite" if epoch.validation_loss is None else f"{epoch.validation_loss:.4g}"
    return f"epoch {epoch.epoch} of {epochs}: {loss}validation loss {validation}{right}"


class Bar:
    """A progress bar on a rich console, if that is a terminal; it is drawn at the first step, and gone in the end."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._progress: Any = None
        self._drawn_s = 0.0

    def step(self, done: int, steps: int) -> None:
        """Show that so many steps are done."""
        now_s = monotonic()
        if not self._console.is_terminal or (now_s - self._drawn_s < REDRAW_S and done < steps):
            return
        self._drawn_s = now_s
        if self._progress is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("  training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True, auto_refresh=False)
            self._progress.add_task("training", total=steps)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, refresh=True)

    def end(self) -> None:
        """Take it away."""
        if self._progress is not None:
            self._progress.stop()


def tensorboard(folder: Path) -> Figures:
    """Figures into event files for TensorBoard.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("figures for TensorBoard need it: pip install tensorboard") from error
    writer: Any = SummaryWriter(str(folder))

    def write(figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def mlflow(uri: str) -> Figures:
    """Figures into a run of the MLflow experiment `gossamer` at a tracking URI.

    Raises:
        MissingExtraError: mlflow is not installed.
    """
    try:
        tracking = importlib.import_module("mlflow.tracking")
    except ImportError as error:
        raise MissingExtraError("figures for MLflow need it: pip install mlflow") from error
    client: Any = tracking.MlflowClient(uri)
    known = client.get_experiment_by_name("gossamer")
    experiment = client.create_experiment("gossamer") if known is None else known.experiment_id
    run = client.create_run(experiment).info.run_id

    def write(figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            client.log_metric(run, name, value, step=step)

    return write


def watch_of(say: Say, console: Any, tensorboard_folder: Path | None = None, mlflow_uri: str | None = None) -> Watch:
    """What a command shows: lines, a bar in a terminal, and figures where they were asked for.

    Args:
        console: the rich console that `say` prints on, so that lines and bar do not run into each other.

    Raises:
        MissingExtraError: what draws the figures is not installed.
    """
    readers = [tensorboard(tensorboard_folder)] if tensorboard_folder is not None else []
    readers += [mlflow(mlflow_uri)] if mlflow_uri is not None else []

    def figures(values: Mapping[str, float], step: int) -> None:
        for reader in readers:
            reader(values, step)

    bar = Bar(console)
    return Watch(say, bar.step, figures, bar.end)
