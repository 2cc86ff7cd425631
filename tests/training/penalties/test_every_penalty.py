"""What holds for every penalty of floats, and for their sum while a net is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse  # noqa: E402
from tests.training.small_jobs import same_bits, samples, values  # noqa: E402
from tests.training.small_nets import Net, job_of, model, net  # noqa: E402

import gossamer.training.penalties  # noqa: E402
from gossamer.errors import CandidateError  # noqa: E402
from gossamer.measuring.evidence import Evidence  # noqa: E402
from gossamer.nouns.plan import Step  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.passes.contract import run  # noqa: E402
from gossamer.training.loop import train  # noqa: E402
from gossamer.training.penalties.chosen import OF_INTEGERS, PENALTIES, build  # noqa: E402
from gossamer.training.penalties.chosen import parse as parse_penalties  # noqa: E402
from gossamer.training.penalties.weighted import Penalties  # noqa: E402
from gossamer.training.twin import twin  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402

OF_FLOATS = [name for name in PENALTIES if name not in OF_INTEGERS]


def penalty(text: str, made: Net) -> Penalties:
    built = build(parse_penalties([text]), made.layers)
    assert built is not None
    return built


def wide(factor: int) -> Net:
    """A layer with so many times the outputs, of the same distribution."""
    weight = np.random.default_rng(0).standard_normal((64, 100 * factor)).astype(np.float32)
    return net(parse("g (float[N,64] x) => (float[N,M] y) { y = MatMul(x, w) }", w=weight))


def test_every_file_is_known() -> None:
    files = {path.stem for path in Path(gossamer.training.penalties.__file__).parent.glob("[a-z]*.py")}
    assert files - {"contract", "chosen", "weighted", "scales"} == set(PENALTIES)


@pytest.mark.parametrize("name", OF_FLOATS)
def test_it_is_one_number_that_reaches_every_weight(name: str) -> None:
    made = net()
    value = penalty(f"{name}:1", made)()
    value.backward()
    assert value.shape == () and value.dtype == torch.float32 and 0.3 < value.item() < 3
    for layer in made.layers:
        assert layer.parameter.grad is not None and bool((layer.parameter.grad != 0).all())


@pytest.mark.parametrize("name", OF_FLOATS)
def test_a_strength_means_the_same_for_small_nets_and_large_and_for_any_scale(name: str) -> None:
    small, large = penalty(f"{name}:1", wide(1)), penalty(f"{name}:1", wide(8))
    assert small().item() == pytest.approx(large().item(), rel=0.05)
    scaled = wide(1)
    with torch.no_grad():
        scaled.layers[0].parameter.mul_(1000)
    assert penalty(f"{name}:1", scaled)().item() == pytest.approx(small().item(), rel=1e-4)
    assert penalty(f"{name}:2", wide(1))().item() == pytest.approx(2 * small().item(), rel=1e-6)


@pytest.mark.parametrize("name", OF_FLOATS)
def test_the_same_in_a_net_of_half_precision(name: str) -> None:
    made = penalty(f"{name}:1", net())
    with torch.autocast("cpu", torch.bfloat16):
        half = made()
    assert half.dtype == torch.float32 and torch.equal(half, made())


@pytest.mark.parametrize("name", OF_FLOATS)
def test_the_smallest_strength_changes_what_is_trained_and_gradients_are_those_of_the_sum(name: str) -> None:
    plain, with_it = net(), net()
    train(job_of(plain, options={"epochs": 1}))
    train(job_of(with_it, penalties=(f"{name}:0.5",), options={"epochs": 1}))
    assert not same_bits(plain.module, with_it.module)


@pytest.mark.parametrize("name", OF_FLOATS)
def test_however_a_step_is_cut_it_counts_once(name: str) -> None:
    whole, parts, shared = net(), net(), net()
    asked, epochs = (f"{name}:0.5",), {"epochs": 2, "rate": 0.01}
    one = train(job_of(whole, penalties=asked, options={**epochs, "batch": 32}))
    train(job_of(parts, penalties=asked, options={**epochs, "batch": 8, "accumulate": 4}))
    two = train(job_of(shared, penalties=asked, options={**epochs, "batch": 16, "devices": 2}))
    ours = values(whole.module)
    for other in (parts, shared):
        assert all(np.allclose(ours[key], value, atol=2e-5) for key, value in values(other.module).items())
    assert two.epochs[-1].validation_loss == pytest.approx(one.epochs[-1].validation_loss, rel=1e-4)


@pytest.mark.parametrize("name", OF_FLOATS)
def test_a_run_that_stops_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 29:
            raise Stopped

    file, asked = tmp_path / "run.safetensors", (f"{name}:0.2",)
    with pytest.raises(Stopped):
        train(job_of(net(), None, asked, file, Watch(steps=stop)))
    resumed, whole = net(), net()
    after, before = train(job_of(resumed, None, asked, file)), train(job_of(whole, None, asked))
    assert same_bits(resumed.module, whole.module) and after == before


def quantized(bits: int = 4) -> Net:
    """A twin: its weights are integers."""
    evidence = Evidence(samples_from_arrays({"x": samples(64).columns["x"]}))
    return net(twin(run(Step("quantize_static", {"weight_bits": bits}), model(), evidence).model))


def test_what_is_read_anew_after_each_epoch_survives_a_kill(tmp_path: Path) -> None:
    """The code lengths of a rate are those of the integers as they were when the epoch began."""

    class Stopped(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 41:
            raise Stopped

    file, asked = tmp_path / "run.safetensors", ("rate:0.2", "lasso:0.05")
    with pytest.raises(Stopped):
        train(job_of(quantized(), None, asked, file, Watch(steps=stop)))
    resumed, whole = quantized(), quantized()
    after, before = train(job_of(resumed, None, asked, file)), train(job_of(whole, None, asked))
    assert same_bits(resumed.module, whole.module) and after == before


def test_integers_that_all_become_zero_are_seen() -> None:
    made = quantized()
    built = penalty("lasso:1", made)
    assert built.driven_to_zero(1e-9) == ""
    with torch.no_grad():
        made.layers[1].parameter.clamp_(-0.49, 0.49)
    assert built.driven_to_zero(1e-9) == made.layers[1].layer


def test_the_epoch_to_keep_is_the_one_of_the_least_loss_with_penalties() -> None:
    """Right answers alone would choose otherwise: they are not to be had for nothing."""
    trained = train(job_of(net(), penalties=("lasso:3",), options={"rate": 0.01, "epochs": 6}))
    losses = [epoch.validation_loss for epoch in trained.epochs]
    assert trained.best_epoch == losses.index(min(losses)) > 0
    assert losses[0] > 3 * 0.7, "the penalty is part of it"


def test_a_penalty_that_drives_a_layer_to_zero_is_named_and_nothing_is_kept_of_it() -> None:
    made = net()
    before = values(made.module)
    with pytest.raises(CandidateError, match=r"penalty lasso:1000 drove all weights of node_\w+ to zero in epoch \d"):
        train(job_of(made, penalties=("lasso:1000",), options={"epochs": 20, "batch": 4}))
    assert all(np.array_equal(value, before[name]) for name, value in values(made.module).items())


def test_what_was_good_before_a_layer_went_is_kept() -> None:
    """A penalty that grows after two epochs, as one that looks at the weights anew may."""
    made, said = net(), []
    plain = job_of(made, penalties=("lasso:0.001",), watch=Watch(said.append), options={"epochs": 30, "batch": 4})
    inner, calls = plain.pupil.penalties.each[0], []

    def grow() -> None:
        calls.append(0)
        if len(calls) == 4:  # before the first step, and after each epoch
            inner.shares.mul_(1e6)

    inner.refresh = grow
    trained = train(plain)
    assert 0 < trained.best_epoch <= 2 and len(trained.epochs) < 30
    assert "lower it; going on with the best so far, that of epoch" in said[-1]
    assert all(float(layer.parameter.detach().abs().max()) > 0.1 for layer in made.layers)
