"""What is particular to each way of removing weights, step by step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse  # noqa: E402
from tests.training.small_nets import Net, net, zeros  # noqa: E402

from gossamer.constraints.sparse import Sparse  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.plan import Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes.contract import run  # noqa: E402
from gossamer.training.sparsity.contract import Moment, Shaper, check_reached, partial  # noqa: E402
from gossamer.training.sparsity.gradual import Gradual  # noqa: E402
from gossamer.training.sparsity.movement import Movement  # noqa: E402
from gossamer.training.sparsity.rigl import RigL  # noqa: E402
from gossamer.training.twin import twin  # noqa: E402

TOTAL = 200


def one_layer(size: int = 10) -> Net:
    return net(parse("g (float[N,10] x) => (float[N,M] y) { y = MatMul(x, w) }", w=normal(10, size)))


def steps(shaper: Shaper, made: Net, gradient: torch.Tensor, first: int, last: int, rate: float = 0.0) -> None:
    """Steps of plain descent along one gradient."""
    weight = made.layers[0].parameter
    for done in range(first, last):
        weight.grad = gradient.clone()
        shaper.after_backward(Moment(done, TOTAL))
        with torch.no_grad():
            weight.sub_(rate * weight.grad)
        shaper.after_step(Moment(done, TOTAL))


def test_the_share_of_zeros_rises_along_a_cubic_and_stays() -> None:
    made = one_layer()
    shaper = Gradual(made.layers, Sparse(ratio=0.9))
    none, shares = torch.zeros(10, 10), []
    for done in range(TOTAL):
        steps(shaper, made, none, done, done + 1)
        shares.append(zeros(made.layers[0]))
        assert shaper.settled(Moment(done + 1, TOTAL)) == (done + 1 >= 100)
    assert shares[99:] == pytest.approx([0.9] * 101)
    assert all(later >= earlier for earlier, later in pairwise(shares))
    third = int(0.5 * TOTAL * 8 / shaper.updates) - 1
    assert shares[third] == pytest.approx(0.9 * (1 - (1 - 1 / 3) ** 3), abs=0.01)


def test_a_weight_that_was_removed_comes_back_with_its_value_when_others_shrink() -> None:
    made = one_layer()
    weight = made.layers[0].parameter
    with torch.no_grad():
        weight.copy_(torch.linspace(1, 2, 100).reshape(10, 10))
    shaper = Gradual(made.layers, Sparse(ratio=0.5))
    steps(shaper, made, torch.zeros(10, 10), 0, 60)
    removed = weight == 0
    assert bool(removed.reshape(-1)[:40].all()), "the smallest go first"
    with torch.no_grad():
        weight.reshape(-1)[90:].mul_(0.001)
    steps(shaper, made, torch.zeros(10, 10), 60, TOTAL)
    back = removed & (weight != 0)
    assert bool(back.any())
    assert torch.equal(weight[back], torch.linspace(1, 2, 100).reshape(10, 10)[back])
    assert zeros(made.layers[0]) == 0.5


def test_no_gradient_reaches_zeros_and_no_step_moves_them() -> None:
    made = one_layer()
    weight = made.layers[0].parameter
    shaper = Gradual(made.layers, Sparse(ratio=0.5))
    steps(shaper, made, torch.zeros(10, 10), 0, 160)
    gone = weight == 0
    weight.grad = torch.ones(10, 10)
    shaper.after_backward(Moment(160, TOTAL))
    assert torch.equal(weight.grad == 0, gone)
    with torch.no_grad():
        weight.add_(1)  # as momentum would
    shaper.after_step(Moment(160, TOTAL))
    assert torch.equal(weight == 0, gone)


def test_movement_keeps_what_grows_be_it_ever_so_small() -> None:
    made = one_layer()
    weight = made.layers[0].parameter
    with torch.no_grad():
        weight.copy_(torch.ones(10, 10))
        weight[:5] = 0.01
    gradient = torch.ones(10, 10)
    gradient[:5] = -200.0  # small ones grow, large ones shrink
    shaper = Movement(made.layers, Sparse(ratio=0.5))
    steps(shaper, made, gradient, 0, TOTAL, rate=1e-5)
    assert bool((weight[:5] != 0).all()) and bool((weight[5:] == 0).all())
    size = np.sqrt((200**2 + 1) / 2)  # of the gradients, while none of them is masked
    expected = sum(200 / size * (0.01 + 200e-5 * step) for step in range(TOTAL))
    assert float(shaper.get_buffer("score_0")[0, 0]) == pytest.approx(expected, rel=1e-4)


def test_scores_of_what_was_removed_move_on_with_the_value_that_it_had() -> None:
    made = one_layer()
    shaper = Movement(made.layers, Sparse(ratio=0.5))
    steps(shaper, made, torch.ones(10, 10), 0, 160)
    gone = made.layers[0].parameter == 0
    before = shaper.get_buffer("score_0").clone()
    steps(shaper, made, torch.ones(10, 10), 160, 161)
    moved = shaper.get_buffer("score_0") - before
    assert bool((moved[gone] != 0).all())


@pytest.mark.parametrize("aim", [Sparse(ratio=0.8), Sparse(pattern=(1, 2)), Sparse(ratio=0.6, block=(2, 2))])
def test_rigl_has_as_many_zeros_at_every_step_and_moves_them(aim: Sparse) -> None:
    made = one_layer()
    weight = made.layers[0].parameter
    shaper = RigL(made.layers, aim)
    first, count = weight == 0, zeros(made.layers[0])
    rng = torch.Generator().manual_seed(0)
    for done in range(TOTAL):
        steps(shaper, made, torch.randn(10, 10, generator=rng), done, done + 1, rate=0.1)
        assert shaper.settled(Moment(done, TOTAL)) and zeros(made.layers[0]) == pytest.approx(count, abs=1e-6)
        check_reached(made.layers, aim)
    assert not torch.equal(weight == 0, first)


def test_rigl_grows_where_gradients_are_largest_from_zero() -> None:
    made = one_layer()
    weight = made.layers[0].parameter
    shaper = RigL(made.layers, Sparse(ratio=0.8))
    alive = weight != 0
    smallest = weight.detach().abs().masked_fill(~alive, np.inf).argmin()
    gradient = torch.zeros(10, 10)
    wanted = (~alive).reshape(-1).nonzero()[7]
    gradient.reshape(-1)[wanted] = 5.0
    at = int(0.75 * TOTAL / shaper.updates)  # the first update
    steps(shaper, made, torch.zeros(10, 10), 0, at)
    weight.grad = gradient.clone()
    shaper.after_backward(Moment(at, TOTAL))
    assert shaper.get_buffer("mask_0").reshape(-1)[wanted] and not shaper.get_buffer("mask_0").reshape(-1)[smallest]
    assert weight.reshape(-1)[wanted] == 0 and weight.grad.reshape(-1)[wanted] == 5.0, "it begins at zero, and moves"


def test_of_every_m_weights_more_stay_at_first() -> None:
    aim = Sparse(pattern=(1, 4))
    kept = [partial(aim, share) for share in (0.0, 0.3, 0.6, 1.0)]
    assert [None if each is None else each.pattern for each in kept] == [None, (3, 4), (2, 4), (1, 4)]
    half = partial(Sparse(ratio=0.8, block=(2, 1)), 0.5)
    assert half == Sparse(ratio=0.4, block=(2, 1))


@pytest.mark.parametrize("removal", [Gradual, Movement, RigL])
def test_the_integers_of_a_twin_become_zero_too(removal: type[Shaper]) -> None:
    model = parse("g (float[N,10] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(10, 8))
    evidence = Evidence(samples_from_arrays({"x": normal(32, 10)}))
    made = net(twin(run(Step("quantize_static", {"weight_bits": 4}), model, evidence).model))
    shaper = removal(made.layers, Sparse(ratio=0.75))
    steps(shaper, made, torch.randn(10, 8, generator=torch.Generator().manual_seed(0)), 0, TOTAL, rate=0.01)
    check_reached(made.layers, Sparse(ratio=0.75))
    assert float((made.layers[0].integers() == 0).float().mean()) >= 0.75
