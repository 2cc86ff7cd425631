from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gossamer.measuring.gain import Judge, is_gain
from gossamer.nouns.model import Model
from gossamer.nouns.samples import samples_from_arrays


def scaled(factor: float, batch: str = "N") -> Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        test (float[{batch},2] x) => (float[{batch},2] y) <float f = {{{factor}}}> {{ y = Mul(x, f) }}"""
    return Model(ir.serde.deserialize_model(onnx.parser.parse_model(text)), "test")


@pytest.mark.parametrize("batch", ["N", "1", "2"])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_noise_is_a_share_of_the_signal_of_all(batch: str, size: int, threads: int) -> None:
    x = np.array([[1, 0], [0, 2], [2, 0], [0, 0], [4, 0]], np.float32)
    rows = [np.arange(start, min(start + size, len(x))) for start in range(0, len(x), size)]
    calls = [samples_from_arrays({"x": x}).take(part) for part in rows]
    noise_N = Judge([{"y": x[part]} for part in rows], calls, threads).noise(scaled(1.5, batch))
    assert np.allclose(noise_N, 0.25 * np.square(x).sum(axis=1) / 25)


def test_gain_is_more_than_chance() -> None:
    before = np.full(8, 1.0)
    assert is_gain(before, before * 0.9)
    assert not is_gain(before, before)
    assert not is_gain(before, before * 1.1)
    assert not is_gain(before, np.array([0.0, *[1.01] * 7]))  # one loud sample
    assert not is_gain(before, np.array([0.5] * 4 + [1.4] * 4))  # as many lose
    assert is_gain(before[:1], before[:1] * 0.9) and not is_gain(before[:1], before[:1])
