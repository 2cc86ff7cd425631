"""The rate: what it says is what an archive takes, and training under it makes the archive smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import parse  # noqa: E402
from tests.training.small_jobs import same_bits  # noqa: E402
from tests.training.small_nets import Net, job_of, net  # noqa: E402

from gossamer.archive.pack import pack  # noqa: E402
from gossamer.nouns.model import Model, to_bytes  # noqa: E402
from gossamer.nouns.plan import Step  # noqa: E402
from gossamer.passes.contract import run  # noqa: E402
from gossamer.training.loop import train  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.pace import at_pace  # noqa: E402
from gossamer.training.penalties.rate import Rate  # noqa: E402
from gossamer.training.settle import settle  # noqa: E402
from gossamer.training.twin import twin  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402
from gossamer.training.write_back import write_back  # noqa: E402

SHAPES = {"first": (8, 200), "b": (200,), "second": (200, 100), "c": (100,), "third": (100, 3)}


def quantized(bits: int = 4) -> Model:
    rng = np.random.default_rng(5)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) / 3 for name, shape in SHAPES.items()}
    text = """g (float[N,8] x) => (float[N,3] y) {
        a = Gemm(x, first, b) h = Relu(a) d = Gemm(h, second, c) e = Relu(d) y = MatMul(e, third) }"""
    config = {"constraint": f"grid:{bits}", "solver": "nearest", "form": "dequantize"}
    return run(Step("constrain_weights", config), parse(text, **arrays)).model


def refreshed(made: Net) -> Rate:
    rate = Rate(made.layers)
    rate.refresh()
    return rate


def test_it_is_what_an_archive_takes() -> None:
    model = quantized()
    made = net(twin(model))
    stored = [one for one in pack(to_bytes(model)).tensors if one.name.endswith("_quantized")]
    size = sum(layer.size for layer in made.layers)
    rate = refreshed(made).eval()
    assert len(stored) == len(made.layers) == 3
    assert float(rate().detach()) == pytest.approx(8 * sum(one.coded_bytes for one in stored) / size, rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_its_gradient_is_what_one_integer_more_costs(bits: int) -> None:
    made = net(twin(quantized(bits), learn_steps=False))
    rate, layer = refreshed(made), made.layers[1]
    with torch.no_grad():
        layer.parameter.add_(0.25)  # of a step: between two integers
        n = layer.in_steps()
        inside = (n > -(2 ** (bits - 1)) + 1) & (n < 2 ** (bits - 1) - 1)
    rate().backward()
    gradient = layer.parameter.grad[inside] * rate._size
    table, classes = rate.get_buffer(f"table_{4 if bits == 3 else bits}"), rate.get_buffer("classes_1").long()
    places = n.floor().long() + table.shape[1] // 2
    more = table[classes, (places + 1).clamp(max=table.shape[1] - 1)] - table[classes, places.clamp(min=0)]
    np.testing.assert_allclose(gradient.numpy(), more[inside].numpy(), rtol=2e-3, atol=1e-3)
    assert float(gradient.abs().max()) > 0.1


def test_training_under_it_makes_the_archive_smaller() -> None:
    sizes, right = [], []
    for penalties in ((), ("rate:1",)):
        model = quantized()
        graph = twin(model)
        made = net(graph)
        at_pace(made.module, graph, Options(), for_bits=bool(penalties))  # as `train_in_form` does
        trained = train(job_of(made, penalties=penalties, options={"epochs": 8, "rate": 0.03}))
        result = settle(write_back(made.module, graph), model)
        sizes.append(len(pack(to_bytes(result)).data))
        right.append(trained.epochs[trained.best_epoch].right or 0.0)
    assert sizes[1] < 0.7 * sizes[0]
    assert right[1] > right[0] - 0.1


def test_a_run_that_stops_goes_on_bit_by_bit(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 29:
            raise Stopped

    file, asked = tmp_path / "run.safetensors", ("rate:0.3",)
    with pytest.raises(Stopped):
        train(job_of(net(twin(quantized())), None, asked, file, Watch(steps=stop)))
    resumed, whole = (net(twin(quantized())) for _ in range(2))
    after, before = train(job_of(resumed, None, asked, file)), train(job_of(whole, None, asked))
    assert same_bits(resumed.module, whole.module) and after == before
