"""Who is told of training: lines, a bar, figures."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from rich.console import Console

from gossamer.errors import MissingExtraError
from gossamer.training.watching import Epoch, line_of, mlflow, tensorboard, watch_of


def test_an_epoch_is_one_line() -> None:
    line = line_of(Epoch(2, 0.51234, 0.61, 0.925, 1e-3), 5, "top1")
    assert line == "epoch 2 of 5: loss 0.5123, validation loss 0.61, top1 92.50%"
    assert line_of(Epoch(0, None, 0.61, None, 0.0), 5, "top1") == "epoch 0 of 5: validation loss 0.61"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_in_a_terminal_alone_and_taken_away(terminal: bool) -> None:
    written = io.StringIO()
    said: list[str] = []
    watch = watch_of(said.append, Console(file=written, force_terminal=terminal, width=80))
    for done in (1, 2):
        watch.steps(done, 2)
    watch.end()
    assert ("1/2" in written.getvalue()) == terminal
    assert written.getvalue().count("\x1b[?25l") == written.getvalue().count("\x1b[?25h")  # the cursor is back


def test_figures_go_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    write = tensorboard(tmp_path)
    write({"loss": 0.5, "rate": 0.1}, 1)
    assert any(path.name.startswith("events.out.tfevents") and path.stat().st_size > 100 for path in tmp_path.iterdir())


def test_figures_go_to_mlflow(tmp_path: Path) -> None:
    client = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed").MlflowClient(
        f"sqlite:///{tmp_path}/m.db"
    )
    mlflow(f"sqlite:///{tmp_path}/m.db")({"loss": 0.5}, 1)
    experiment = client.get_experiment_by_name("gossamer")
    assert client.search_runs([experiment.experiment_id])[0].data.metrics == {"loss": 0.5}


@pytest.mark.parametrize(("module", "reader"), [("torch.utils.tensorboard", tensorboard), ("mlflow.tracking", mlflow)])
def test_a_reader_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str, reader: object) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"figures for \w+ need it: pip install (tensorboard|mlflow)"):
        reader("there")  # type: ignore[operator]
