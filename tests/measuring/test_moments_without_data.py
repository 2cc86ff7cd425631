from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.errors import CandidateError
from gossamer.measuring.moments import moments
from gossamer.measuring.moments_without_data import moments_without_data, noise
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays

RNG = np.random.default_rng(6)


def network(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> test ' + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model(ir.serde.deserialize_model(proto), "test")


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def normed(activation: str) -> tuple[Model, dict[str, np.ndarray]]:
    """A first convolution, its norm with statistics of other data than noise, and a second convolution."""
    text = f"""(float[N,3,H,W] x) => (float y) {{
        a = Conv<pads=[1,1,1,1]>(x, w1)
        b = BatchNormalization(a, gamma, beta, mean, var)
        c = {activation}
        [second] y = Conv<pads=[1,1,1,1]>(c, w2) }}"""
    weights = {"w1": normal(6, 3, 3, 3), "w2": normal(4, 6, 3, 3), "high": np.float32(1.5), "low": np.float32(0)}
    x = 4 * normal(16, 3, 24, 24) + 2  # the data that the norm remembers
    y = np.concatenate([x[:, :, i : i + 22, j : j + 22] for i in range(3) for j in range(3)], axis=1)
    kernel = weights["w1"].transpose(0, 2, 3, 1).reshape(6, 27)
    a = np.einsum("ok,nkhw->nohw", kernel, y)
    statistics = {"mean": a.mean(axis=(0, 2, 3)), "var": a.var(axis=(0, 2, 3))}
    statistics |= {"gamma": np.abs(normal(6)) + 0.5, "beta": normal(6)}
    return network(text, **weights, **{k: v.astype(np.float32) for k, v in statistics.items()}), {"x": x}


@pytest.mark.parametrize("activation", ["Relu(b)", "Clip(b, low, high)", "LeakyRelu<alpha=0.3>(b)"])
def test_a_batch_norm_tells_how_large_channels_are(activation: str) -> None:
    model, x = normed(activation)
    real = moments(model, ["w2"], samples_from_arrays(x))["w2"].h_GKK
    found = moments_without_data(model, ["w1", "w2"])
    assert found["w1"].source == "noise" and found["w2"].source == "batch norm"
    h = found["w2"].h_GKK
    assert real is not None and h is not None and np.array_equal(h, h.swapaxes(1, 2))
    assert np.linalg.eigvalsh(h[0]).min() > -1e-3 * np.linalg.eigvalsh(h[0]).max()
    middle = np.diag(h[0]).reshape(6, 9)[:, 4] / 64**2  # an output position sees, noise is 64 wide
    assert np.allclose(middle, np.diag(real[0]).reshape(6, 9)[:, 4] / 24**2, rtol=0.25, atol=0.02)


def test_a_channel_that_noise_does_not_reach_has_a_diagonal() -> None:
    model, _ = normed("Relu(b)")
    mean = model.ir.graph.initializers["mean"]
    assert mean.const_value is not None
    mean.const_value = ir.tensor(
        np.where(np.arange(6) == 2, 1e9, mean.const_value.numpy()).astype(np.float32), name="mean"
    )
    h = moments_without_data(model, ["w2"])["w2"].h_GKK
    assert h is not None and (np.diag(h[0])[18:27] > 0).all()


def test_noise_suits_the_inputs() -> None:
    text = """(float[N,3,H,W] image, int64[N,S] ids, int64[N,S] mask, float[N,5] row) => (float y) {
        e = Gather(table, ids) m = Cast<to=1>(mask) y = Add(e, m) }"""
    model = network(text, table=normal(7, 1))
    samples = noise(model, 3)
    shapes = {name: np.shape(column) for name, column in samples.columns.items()}
    assert shapes == {"image": (32, 3, 64, 64), "ids": (32, 32), "mask": (32, 32), "row": (32, 5)}
    ids, image = np.asarray(samples.columns["ids"]), np.asarray(samples.columns["image"])
    assert ids.min() == 0 and ids.max() == 6 and np.asarray(samples.columns["mask"]).all()
    assert 0.9 < image.std() < 1.1 and (image[..., 1:] * image[..., :-1]).mean() > 0.3  # near pixels are alike
    again, other = noise(model, 3), noise(model, 4)
    assert np.array_equal(again.columns["row"], samples.columns["row"])
    assert not np.array_equal(other.columns["row"], samples.columns["row"])


def test_tables_are_not_weighted() -> None:
    model = network(
        "(int64[N,3] ids) => (float y) { e = Gather(w, ids) y = MatMul(e, v) }", w=normal(5, 2), v=normal(2, 2)
    )
    found = moments_without_data(model, ["w", "v"])
    assert found["w"].h_GKK is None and found["w"].rows_GO is None and found["w"].source == "noise"
    assert found["v"].h_GKK is not None


def test_a_model_that_noise_does_not_suit() -> None:
    text = "(float[N,1] x, int64[N,1] p) => (float y) { t = Transpose(x) g = Gather(t, p) y = MatMul(g, w) }"
    model = network(text, w=normal(1, 3))  # an index of 1 into one row
    with pytest.raises(CandidateError, match="test does not run on noise, so its moments need samples"):
        moments_without_data(model, ["w"])
