"""What holds for every way of removing weights while they are trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from typing import get_args  # noqa: E402

from tests.training.small_jobs import same_bits, values  # noqa: E402
from tests.training.small_nets import Net, job_of, net, zeros  # noqa: E402

import gossamer.training.sparsity  # noqa: E402
from gossamer.constraints.contract import constraint_from_text  # noqa: E402
from gossamer.constraints.sparse import Sparse  # noqa: E402
from gossamer.errors import CandidateError, ModelError, OptionError  # noqa: E402
from gossamer.training import loop  # noqa: E402
from gossamer.training.averages import State, follow  # noqa: E402
from gossamer.training.loop import train  # noqa: E402
from gossamer.training.sparsity.chosen import Removal, build, suited  # noqa: E402
from gossamer.training.sparsity.contract import Shaper, check_reached  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402

REMOVALS = [removal for removal in get_args(Removal) if removal != "second_order"]
PATTERNS = ["sparse:0.8", "sparse:2:4", "sparse:0.5:block=2x3", "sparse:0.0"]


def shaped(removal: Removal, text: str = "sparse:0.8") -> tuple[Net, Shaper]:
    made, aim = net(), constraint_from_text(text)
    assert isinstance(aim, Sparse)
    return made, build(removal, suited(made.layers, aim)[0], aim)


def test_every_file_is_tested_here() -> None:
    files = {path.stem for path in Path(gossamer.training.sparsity.__file__).parent.glob("[a-z]*.py")}
    assert files - {"contract", "chosen", "cubic"} == set(REMOVALS)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("removal", REMOVALS)
def test_the_net_learns_and_ends_as_sparse_as_it_was_to_be(removal: Removal, text: str) -> None:
    made, shaper = shaped(removal, text)
    trained = train(job_of(made, shaper))
    first, *others = (epoch.validation_loss for epoch in trained.epochs)
    assert min(others) < 0.9 * first
    for layer in made.layers:
        assert shaper.aim.contains(layer.matrix(layer.parameter.detach()).numpy())
        assert not torch.signbit(layer.parameter[layer.parameter == 0]).any(), "an archive would have to store them"
        assert zeros(layer) <= (shaper.aim.ratio or 0.5) + 0.06
    check_reached(made.layers, shaper.aim)


@pytest.mark.parametrize("stop_at", [3, 29, 55])
@pytest.mark.parametrize("removal", REMOVALS)
def test_wherever_a_run_stops_it_goes_on_bit_by_bit(removal: Removal, stop_at: int, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == stop_at:
            raise Stopped

    file, options = tmp_path / "run.safetensors", {"average": 0.9}
    first, resumed, whole = (shaped(removal) for _ in range(3))
    with pytest.raises(Stopped):
        train(job_of(*first, ("lasso:0.1",), file, Watch(steps=stop), options))
    after = train(job_of(*resumed, ("lasso:0.1",), file, options=options))
    before = train(job_of(*whole, ("lasso:0.1",), options=options))
    assert same_bits(resumed[0].module, whole[0].module) and after == before
    assert same_bits(resumed[1], whole[1])


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_moving_average_is_as_sparse(removal: Removal) -> None:
    made, shaper = shaped(removal)
    train(job_of(made, shaper, options={"average": 0.95}))
    check_reached(made.layers, shaper.aim)


@pytest.mark.parametrize("removal", REMOVALS)
def test_until_the_last_zero_is_there_the_average_is_the_net_itself(
    removal: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shaper = shaped(removal)
    decays: list[float] = []

    def spied(average: State, module: torch.nn.Module, decay: float, step: int) -> None:
        follow(average, module, decay, step)
        decays.append(decay)
        assert decay or all(torch.equal(average[name], value) for name, value in module.state_dict().items())

    monkeypatch.setattr(loop, "follow", spied)
    train(job_of(made, shaper, options={"average": 0.95}))
    assert decays == sorted(decays) and decays[-1] == 0.95
    meanwhile = 0.0 if removal == "rigl" else shaper.end  # rigl only exchanges zeros
    assert decays.index(0.95) == pytest.approx(meanwhile * len(decays), abs=2)


@pytest.mark.parametrize("removal", REMOVALS)
def test_two_processes_choose_the_same_zeros_as_one(removal: Removal) -> None:
    alone, shared = shaped(removal), shaped(removal)
    train(job_of(*alone, options={"batch": 16}))
    train(job_of(*shared, options={"batch": 8, "devices": 2}))
    ours, theirs = values(alone[0].module), values(shared[0].module)
    for name, value in ours.items():
        assert np.array_equal(value == 0, theirs[name] == 0)
        assert np.allclose(value, theirs[name], atol=1e-4)


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_rate_is_found_without_leaving_a_trace(removal: Removal) -> None:
    made, shaper = shaped(removal)
    trained = train(job_of(made, shaper, options={"rate": None}))
    assert trained.rate > 0
    check_reached(made.layers, shaper.aim)


@pytest.mark.parametrize("removal", REMOVALS)
def test_more_updates_than_steps_are_refused(removal: Removal) -> None:
    _, shaper = shaped(removal)
    message = (
        r"sparse:0.8 by \w+ changes its zeros \d+ times, and so needs at least \d+ steps of training; these are 30"
    )
    with pytest.raises(OptionError, match=message):
        shaper.check(30)
    shaper.check(60)


def test_a_checkpoint_of_another_removal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    train(job_of(*shaped("gradual"), checkpoint=file))
    with pytest.raises(ModelError, match=r"another way to zeros \(was gradual sparse:0.8, is gradual sparse:0.7\)"):
        train(job_of(*shaped("gradual", "sparse:0.7"), checkpoint=file))
    with pytest.raises(ModelError, match="with other penalties"):
        train(job_of(*shaped("gradual"), ("lasso:0.1",), checkpoint=file))


def test_layers_that_cannot_become_so_are_left_and_named() -> None:
    layers, notes = suited(net().layers, Sparse(pattern=(4, 16)))
    assert not layers and len(notes) == 3
    assert notes[0].startswith("sparse:4:16 left node_a as it was: its rows of 8 weights are not a multiple of 16")


def test_what_is_not_reached_is_named() -> None:
    with pytest.raises(CandidateError, match=r"node_a: its weight first is not sparse:0.5 after training"):
        check_reached(net().layers, Sparse(ratio=0.5))


def test_rounds_are_no_single_run() -> None:
    with pytest.raises(OptionError, match="second_order removes weights in rounds; for one run take gradual"):
        shaped("second_order")
