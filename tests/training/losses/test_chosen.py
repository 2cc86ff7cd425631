"""Losses by name: how they are spelled and summed, what each is made for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402
from tests.training.losses.test_every_loss import network  # noqa: E402

from gossamer.errors import OptionError  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.training.command import train_model  # noqa: E402
from gossamer.training.losses.chosen import LOSSES, Setting, build  # noqa: E402
from gossamer.training.losses.chosen import parse as parse_losses  # noqa: E402
from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.features import Hint  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.teaching import Distillation  # noqa: E402

HINTS = (Hint("a", "b", 3, 4, 1, True), Hint("c", "d", 5, 6, 1, True))
SETTING = Setting(scores=0, outputs=1, width=7, probabilities=False, hints=(), temperature=2.0, alpha=1.0, seed=0)
QUICK = Options(epochs=2, batch=16, rate=0.01, device="cpu")


def piece() -> Seen:
    torch.manual_seed(0)
    own = (torch.randn(4, 7), torch.randn(4, 3, 4, 4), torch.randn(4, 5, 2, 2))
    taught = (torch.randn(4, 7), torch.randn(4, 4, 4, 4), torch.randn(4, 6, 2, 2))
    return Seen(own, taught, torch.tensor([0, 1, 2, 3]))


def total(losses: tuple[str, ...], setting: Setting, at: Seen) -> float:
    made = build(parse_losses(losses), setting)
    return sum(loss.loss(at).item() * loss.weight for loss in made)


@given(st.lists(st.sampled_from(LOSSES), min_size=1, unique=True), st.floats(0.1, 10))
def test_a_sum_is_the_sum_of_its_losses_each_with_its_weight(names: list[str], weight: float) -> None:
    setting, at = SETTING._replace(hints=HINTS), piece()
    spelled = [f"{name}:{weight!r}" if index % 2 else name for index, name in enumerate(names)]
    shares = [weight if index % 2 else 1.0 for index in range(len(names))]
    fixed = [name for name in names if name not in ("features", "contrast")]  # those bring layers of their own
    expected = sum(
        total((name,), setting, at) * share for name, share in zip(names, shares, strict=True) if name in fixed
    )
    found = total(tuple(one for one, name in zip(spelled, names, strict=True) if name in fixed), setting, at)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert np.isfinite(total(tuple(spelled), setting, at))


def test_layers_that_losses_bring_are_the_same_at_every_start() -> None:
    setting, at = SETTING._replace(hints=HINTS), piece()
    assert total(("features", "contrast"), setting, at) == total(("features", "contrast"), setting, at)
    assert total(("contrast",), SETTING, at) == total(("contrast",), SETTING, at)
    assert total(("contrast",), SETTING, at) != total(("contrast",), SETTING._replace(seed=1), at)


def test_one_joined_loss_looks_at_all_pairs() -> None:
    made = build(parse_losses(("soft_labels", "attention", "relations:3")), SETTING._replace(hints=HINTS))
    assert [type(loss.loss).__name__ for loss in made] == ["SoftLabels", "Features"]
    assert made[1].loss.names == ("Attention", "Relations")
    assert made[1].loss.factors == (1.0, 3.0)
    assert not list(made[1].loss.parameters())


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (("soft_label",), r"loss 'soft_label' is unknown, did you mean soft_labels. allowed are hard_labels, soft_"),
        (("attention:x",), "loss attention has the weight 'x'; allowed is a number above 0, such as attention:0"),
        (("attention:",), "loss attention has the weight ''; allowed is a number above 0"),
        (("attention:0",), "loss attention has the weight '0'; allowed is a number above 0"),
        (("outputs:nan",), "loss outputs has the weight 'nan'; allowed is a number above 0"),
        (("outputs", "outputs:2"), "loss outputs comes twice; give it once, with the weight that it is to have"),
    ],
)
def test_misspelled_losses_are_refused(losses: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Distillation(losses)


@pytest.mark.parametrize("name", ["correlation", "decoupled"])
def test_losses_of_classes_are_refused_without_scores(name: str) -> None:
    with pytest.raises(OptionError, match=rf"loss {name} needs scores of classes, an output \(N, C\) of floats, and"):
        build(parse_losses((name,)), SETTING._replace(scores=None))


def test_contrast_needs_a_vector_a_sample() -> None:
    with pytest.raises(OptionError, match=r"loss contrast needs one vector a sample: an output \(N, D\), or a teacher"):
        build(parse_losses(("contrast",)), SETTING._replace(scores=None, width=None))


# --- for a student and a teacher at hand


def points(count: int = 100) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, 1, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("name", ["relations", "similarities", "contrast"])
def test_samples_that_come_one_by_one_cannot_be_compared(name: str, tmp_path: Path) -> None:
    alone = Options(epochs=1, batch=1, rate=0.01, device="cpu")
    with pytest.raises(
        OptionError, match=f"loss {name} compares the samples of a batch, and they come one by one; give"
    ):
        train_model(network(3, 0), points(), tmp_path, network(4, 1), Distillation((name,)), alone)


def test_a_last_sample_that_is_left_alone_does_no_harm(tmp_path: Path) -> None:
    wanted = Distillation(("relations", "similarities", "contrast"))
    summary = train_model(network(3, 0), points(121), tmp_path, network(4, 1), wanted, QUICK)
    assert summary.samples[0] % 16 or summary.samples[1] % 16
    assert summary.trained.epochs[-1].loss is not None


@pytest.mark.parametrize("name", ["attention", "features"])
def test_losses_that_look_inside_need_a_graph(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"loss {name} needs a teacher that is an ONNX model, whose inner tensors"):
        train_model(network(3, 0), points(), tmp_path, np.zeros((100, 3), np.float32), Distillation((name,)), QUICK)


@pytest.mark.parametrize("name", ["relations", "similarities", "contrast"])
def test_stored_outputs_are_compared_where_there_is_no_graph(name: str, tmp_path: Path) -> None:
    outputs = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    summary = train_model(network(3, 0), points(), tmp_path, outputs, Distillation((name,)), QUICK)
    assert summary.losses == (name,)


def dense(width: int) -> Model:
    graph = """g (float[N,4] x) => (float[N,3] y) {
        a = MatMul(x, first)
        h = Relu(a)
        y = MatMul(h, second)
    }"""
    return parse(graph, first=normal(4, width), second=normal(width, 3))


def test_networks_without_positions_are_compared_by_their_outputs(tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)}
    summary = train_model(dense(3), data, tmp_path, dense(5), Distillation(("relations", "contrast:0.5")), QUICK)
    assert summary.losses == ("relations", "contrast:0.5")
    with pytest.raises(OptionError, match=r"loss attention looks inside: .* no pair agrees"):
        train_model(dense(3), data, tmp_path / "b", dense(5), Distillation(("attention",)), QUICK)
