"""A network that is taught by an earlier copy of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.training.test_several_teachers import network  # noqa: E402

from gossamer.errors import OptionError  # noqa: E402
from gossamer.runtimes.onnxruntime import open_session  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.generations import afresh, born_again  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402


def labelled(count: int = 300) -> dict[str, Any]:
    data = {"x": np.random.default_rng(1).standard_normal((count, 4)).astype(np.float32)}
    return {**data, "labels": open_session(network(8, 5)).run(data)[0].argmax(1)}


def test_each_generation_learns_from_the_one_before(tmp_path: Path) -> None:
    options = Options(epochs=10, batch=16, rate=0.03, device="cpu")
    wanted = Distillation(("soft_labels",), temperature=1.0)
    first, second = born_again(network(8, 5), labelled(), tmp_path, 2, wanted, options)
    assert first.accuracy.original < 0.7  # random weights
    assert first.accuracy.result > 0.8
    assert second.accuracy.result > 0.8
    assert (first.options.seed, second.options.seed) == (1, 2)
    assert [Path(summary.artifact).parent.name for summary in (first, second)] == ["generation-1", "generation-2"]
    with pytest.raises(OptionError, match="generations is 0; allowed is a whole number from 1 up"):
        born_again(network(8, 5), labelled(), tmp_path, 0)


def test_new_weights_are_as_wide_as_the_old_ones() -> None:
    model = network(200, 0)
    fresh, again, other = afresh(model, 1), afresh(model, 1), afresh(model, 2)
    for name in model.ir.graph.initializers:
        old, new = (one.ir.graph.initializers[name].const_value.numpy() for one in (model, fresh))
        assert new.std() == pytest.approx(old.std(), rel=0.1)
        assert abs(np.corrcoef(old.ravel(), new.ravel())[0, 1]) < 0.15
        assert np.array_equal(new, again.ir.graph.initializers[name].const_value.numpy())
        assert not np.array_equal(new, other.ir.graph.initializers[name].const_value.numpy())


def test_a_model_that_teaches_itself_keeps_what_it_said(tmp_path: Path) -> None:
    """New labels pull it away; the more its earlier copy counts, the less."""
    model, data = network(8, 0), labelled()
    options = Options(epochs=4, batch=16, rate=0.01, device="cpu")

    def kept(alpha: float) -> float:
        wanted = Distillation(("soft_labels",), alpha=alpha)
        summary = train_model(model, data, tmp_path / str(alpha), "self", wanted, options)
        after, before = (open_session(one).run({"x": data["x"]})[0] for one in (Path(summary.artifact), model))
        return float((after.argmax(1) == before.argmax(1)).mean())

    assert kept(0.95) > kept(0.05) + 0.1
    with pytest.raises(OptionError, match="teacher self says what the model says already; it needs labels beside it"):
        train_model(model, {"x": data["x"]}, tmp_path, "self", options=options)
