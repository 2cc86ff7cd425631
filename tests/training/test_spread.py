"""Zeros over layers: by one score as many as were asked for, by none as many in each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse
from tests.training.small_nets import job_of, net

from gossamer.arith.removal import removed_count
from gossamer.constraints.sparse import Sparse
from gossamer.errors import CandidateError, ModelError, OptionError
from gossamer.measuring.evidence import Evidence
from gossamer.nouns.plan import Step
from gossamer.nouns.samples import samples_from_arrays
from gossamer.passes.contract import run
from gossamer.training.loop import train
from gossamer.training.sparsity.chosen import Removal, build
from gossamer.training.sparsity.contract import check_reached
from gossamer.training.spread import (
    LEAST_KEPT,
    aims_by_layer,
    aims_by_score,
    check_share,
    check_spread,
    described,
    energy_of,
    input_energies,
    is_spread,
)

LAYERS = st.lists(st.integers(1, 300), min_size=1, max_size=6)
RATIOS = st.floats(0, 0.999)


def energies(sizes: list[int], seed: int) -> list[np.ndarray]:
    """Many of them zero, as behind a round, and layers of very different loudness."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size) ** 2 * (rng.random(size) < 0.7) * 10 ** rng.uniform(-6, 6) for size in sizes]


@given(sizes=LAYERS, ratio=RATIOS, seed=st.integers(0, 99))
def test_all_layers_together_have_the_ratio_and_none_is_empty(sizes: list[int], ratio: float, seed: int) -> None:
    kept = sum(sizes) - removed_count(ratio, sum(sizes))
    if kept < len(sizes):
        with pytest.raises(OptionError, match=rf"leaves {kept} of [\d,]+ weights for {len(sizes)} layers"):
            aims_by_score(energies(sizes, seed), Sparse(ratio=ratio))
        return
    aims = aims_by_score(energies(sizes, seed), Sparse(ratio=ratio))
    counts = [removed_count(aim.ratio or 0.0, size) for aim, size in zip(aims, sizes, strict=True)]
    assert sum(counts) == removed_count(ratio, sum(sizes))
    assert all(count < size for count, size in zip(counts, sizes, strict=True))


@given(sizes=LAYERS, ratio=RATIOS, seed=st.integers(0, 99), factor=st.floats(1e-3, 1e3))
def test_how_loud_a_layer_is_does_not_count(sizes: list[int], ratio: float, seed: int, factor: float) -> None:
    found, aim = energies(sizes, seed), Sparse(ratio=ratio)
    if sum(sizes) - removed_count(ratio, sum(sizes)) >= len(sizes):
        louder = [energy * 2.0 ** round(np.log2(factor) * place) for place, energy in enumerate(found)]
        assert aims_by_score(found, aim) == aims_by_score(louder, aim)


@given(sizes=LAYERS, first=RATIOS, second=RATIOS, seed=st.integers(0, 99))
def test_a_higher_ratio_gives_no_layer_fewer_zeros(sizes: list[int], first: float, second: float, seed: int) -> None:
    low, high = sorted((first, second))
    least = sum(max(1, int(np.ceil(LEAST_KEPT * size))) for size in sizes)
    if sum(sizes) - removed_count(high, sum(sizes)) >= least:
        found = energies(sizes, seed)
        fewer, more = (aims_by_score(found, Sparse(ratio=ratio)) for ratio in (low, high))
        assert all((a.ratio or 0.0) <= (b.ratio or 0.0) for a, b in zip(fewer, more, strict=True))


def test_the_score_is_an_energy_over_those_that_are_not_less() -> None:
    """1, 2, 3 and 4: scores 0.1, 2/9, 3/7 and 1; of equal ones 1/4, 1/3, 1/2 and 1."""
    layers = [np.array([3.0, 1.0, 4.0, 2.0]), np.ones(4)]
    ratios = [[aim.ratio for aim in aims_by_score(layers, Sparse(ratio=count / 8))] for count in range(7)]
    assert ratios == [[0, 0], [0.25, 0], [0.5, 0], [0.5, 0.25], [0.5, 0.5], [0.75, 0.5], [0.75, 0.75]]


def test_what_an_input_never_brings_goes_first() -> None:
    model = parse("g (float[N,10] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(10, 8))
    x = normal(64, 10) * np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], np.float32)
    seen = input_energies(model, Evidence(samples_from_arrays({"x": x})))
    assert seen["w"].shape == (1, 10)
    assert np.allclose(seen["w"][0], np.mean(np.square(x, dtype=np.float64), axis=0), rtol=1e-4)
    energy = energy_of(normal(1, 8, 10), seen["w"])
    assert not energy[:, :, :5].any() and energy[:, :, 5:].all()


def test_nodes_that_share_a_weight_and_weights_of_one_node_get_one_aim() -> None:
    text = """g (float[N,8] x) => (float[N,8] y) {
        a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) y = MatMul(b, v) }"""
    model = parse(text, w=normal(8, 8), v=normal(8, 8))
    aim = Sparse(ratio=0.8)
    aims = aims_by_layer(model, aim, Evidence(samples_from_arrays({"x": normal(64, 8)})))
    assert list(aims) == ["node_a", "node_b", "node_y"] and aims["node_a"] == aims["node_b"]
    assert 64 * ((aims["node_a"].ratio or 0) + (aims["node_y"].ratio or 0)) == removed_count(0.8, 128)
    assert described(aims, aim).startswith("sparse:0.8 of all layers together: ")


def test_integers_and_tables_are_scored_by_themselves() -> None:
    text = """g (int64[N,3] ids) => (float[N,8] y) {
        e = Gather(table, ids) m = ReduceMean<keepdims=0>(e, axes) y = MatMul(m, w) }"""
    model = parse(text, table=normal(600, 10), axes=np.array([1]), w=normal(10, 8))
    evidence = Evidence(samples_from_arrays({"ids": np.random.default_rng(0).integers(0, 600, (32, 3))}))
    assert list(input_energies(model, evidence)) == ["w"]
    assert list(aims_by_layer(model, Sparse(ratio=0.5), evidence)) == ["node_e", "node_y"]
    static = parse("g (float[N,10] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(10, 8))
    seen = Evidence(samples_from_arrays({"x": normal(32, 10)}))
    assert input_energies(run(Step("quantize_static"), static, seen).model, seen) == {}


def test_patterns_and_blocks_are_the_same_in_every_layer() -> None:
    assert is_spread("score", Sparse(ratio=0.5)) and not is_spread("equal", Sparse(ratio=0.5))
    assert not is_spread("score", Sparse(pattern=(2, 4))) and not is_spread("score", Sparse(ratio=0.5, block=(2, 1)))


def test_too_few_zeros_are_found_out() -> None:
    check_share([np.array([True, True]), np.array([False, True])], Sparse(ratio=0.75))
    with pytest.raises(CandidateError, match="2 of 4 weights are zero after training, which is not sparse"):
        check_share([np.array([True, True]), np.array([False, False])], Sparse(ratio=0.75))
    model = parse("g (float[N,10] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(10, 8))
    with pytest.raises(CandidateError, match="0 of 80 weights are zero"):
        check_spread(model, Sparse(ratio=0.5))


@pytest.mark.parametrize("removal", ["gradual", "movement", "rigl"])
def test_every_shaper_reaches_each_layers_own_share(removal: Removal) -> None:
    made, aim = net(), Sparse(ratio=0.8)
    aims = aims_by_score([np.square(layer.parameter.detach().numpy()) for layer in made.layers], aim)
    assert len(set(aims)) == len(made.layers)
    train(job_of(made, build(removal, made.layers, aim, aims)))
    for layer, one in zip(made.layers, aims, strict=True):
        check_reached([layer], one)
    check_share([layer.parameter.detach().numpy() == 0 for layer in made.layers], aim)


def test_a_checkpoint_of_another_spread_is_refused(tmp_path: Path) -> None:
    file, aim = tmp_path / "run.safetensors", Sparse(ratio=0.8)
    made, other = net(), net()
    train(job_of(made, build("gradual", made.layers, aim), checkpoint=file))
    aims = aims_by_score([np.square(layer.parameter.detach().numpy()) for layer in other.layers], aim)
    with pytest.raises(ModelError, match=r"another way to zeros \(was gradual sparse:0.8, is gradual sparse:0.8 by"):
        train(job_of(other, build("gradual", other.layers, aim, aims), checkpoint=file))
