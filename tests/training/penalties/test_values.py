"""What each penalty is, against its formula."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse  # noqa: E402
from tests.training.small_nets import Net, net  # noqa: E402

from gossamer.training.penalties.group_lasso import GroupLasso  # noqa: E402
from gossamer.training.penalties.lasso import Lasso  # noqa: E402
from gossamer.training.penalties.mixture import Mixture  # noqa: E402

RNG = np.random.default_rng(2)
FIRST = RNG.standard_normal((6, 3, 2, 2)).astype(np.float32)
SECOND = 50 * RNG.standard_normal((6, 4)).astype(np.float32)


def two_layers(first: np.ndarray = FIRST) -> Net:
    """A convolution of 6 outputs with 12 weights each, and a product of 4 outputs with 6 each."""
    text = """g (float[N,3,5,5] x) => (float[N,4] y) {
        a = Conv(x, first) m = ReduceMean<keepdims=0>(a, axes) y = MatMul(m, second) }"""
    return net(parse(text, first=first, second=SECOND, axes=np.array([2, 3])))


def rms(w: np.ndarray) -> float:
    return float(np.sqrt(np.square(w[w != 0]).mean()))


def test_lasso_is_the_mean_of_magnitudes_over_the_layers_scales() -> None:
    made = two_layers()
    expected = (np.abs(FIRST / rms(FIRST)).sum() + np.abs(SECOND / rms(SECOND)).sum()) / (FIRST.size + SECOND.size)
    penalty = Lasso(made.layers)
    assert penalty().item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        for layer in made.layers:
            layer.parameter.mul_(0.5)
    assert penalty().item() == pytest.approx(expected / 2, rel=1e-5), "scales are those of the beginning"


def test_group_lasso_sums_the_norms_of_outputs() -> None:
    made = two_layers()
    rows = [(FIRST.reshape(6, 12) / rms(FIRST)), (SECOND.T / rms(SECOND))]
    total = sum(np.sqrt(w.shape[1]) * np.linalg.norm(w, axis=1).sum() for w in rows)
    assert GroupLasso(made.layers)().item() == pytest.approx(total / (FIRST.size + SECOND.size), rel=1e-5)


def test_group_lasso_draws_whole_outputs_to_zero_and_leaves_the_rest_dense() -> None:
    """On a least-squares problem in which half of the outputs are wanted small."""
    made = two_layers()
    weight = made.layers[0].parameter
    wanted = torch.from_numpy(FIRST).clone()
    wanted[:3] *= 0.05
    optimizer, penalty = torch.optim.Adam([weight], 0.01), GroupLasso(made.layers[:1])
    for _ in range(600):
        optimizer.zero_grad()
        ((weight - wanted).square().mean() + 0.3 * penalty()).backward()
        optimizer.step()
    norms = weight.detach().reshape(6, -1).norm(dim=1)
    assert norms[:3].max() < 0.05 < 0.8 < norms[3:].min()


def test_zeros_that_are_there_count_for_nothing() -> None:
    holes = FIRST.copy()
    holes[:, :, 0] = 0
    made = two_layers(holes)
    magnitudes = np.abs(holes / rms(holes)).sum() + np.abs(SECOND / rms(SECOND)).sum()
    assert Lasso(made.layers)().item() == pytest.approx(magnitudes / (FIRST.size / 2 + SECOND.size), rel=1e-5)
    assert np.isfinite(Mixture(made.layers, 4)().item())


def test_a_mixture_is_a_density() -> None:
    """exp(-penalty) of one layer integrates to 1 over what the weight may be."""
    made = two_layers()
    gaussians = Mixture(made.layers, 5).mixtures[0]
    x = torch.linspace(-30, 30, 1201)
    densities = torch.stack([-gaussians(part).detach() for part in x[:, None]]).exp()
    assert float(densities.sum() * (x[1] - x[0])) == pytest.approx(1, abs=1e-3)


def test_weights_gather_around_as_many_values_as_a_mixture_has() -> None:
    made = net(
        parse("g (float[N,40] x) => (float[N,50] y) { y = MatMul(x, w) }", w=RNG.standard_normal((40, 50), np.float32))
    )
    penalty, weight = Mixture(made.layers, 4), made.layers[0].parameter
    groups = [{"params": [weight], "lr": 0.01}, {"params": list(penalty.parameters()), "lr": 0.03}]
    optimizer, first = torch.optim.Adam(groups), penalty().item()
    for _ in range(400):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert penalty().item() < first - 1
    middles = torch.cat([torch.zeros(1), penalty.mixtures[0].middles.detach()]) * float(penalty.scales[0])
    away = (weight.detach().reshape(-1, 1) - middles).abs().amin(1)
    assert float(away.median()) < 0.05


def test_what_a_mixture_learns_moves_faster_and_does_not_decay() -> None:
    parameters = list(Mixture(two_layers().layers, 4).parameters())
    assert len(parameters) == 6
    assert all(parameter.ndim == 1 and parameter.rate_ratio == 10 for parameter in parameters)
