"""What is told of a forecast: only what stands out, with a command that can be typed."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
from tests.report.records import forecast

from gossamer.constraints.contract import constraint_from_text
from gossamer.nouns.prediction import Forecast, Prediction
from gossamer.report.forecast_findings import forecast_findings


def layer(name: str, bits: int = 3, gain: float = 1.0, **changes: Any) -> Prediction:
    made = Prediction(
        name, f"{name}.w", f"grid:{bits}", 0.01, 0.02, 1.0, 1000, noise_ratio=0.01 * gain,
        measured_noise_ratio=0.01 * gain, float_bytes=20_000,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def told(*layers: Prediction, whole: tuple[float | None, float | None] = (None, None)) -> list[str]:
    found = forecast_findings(Forecast(layers, *whole), "my net.onnx", "d.npz")
    return [f"{one.text} | {one.remedy}" for _, one in found]


def typed(line: str) -> list[str]:
    """The command between backticks, as a shell splits it."""
    return next(shlex.split(part) for part in line.split("`") if part.startswith("gossamer "))


def quiet() -> list[Prediction]:
    return [layer(f"conv{place}") for place in range(6)]


def test_nothing_stands_out_nothing_is_told() -> None:
    assert told(*quiet()) == [] and told() == []
    assert list(forecast_findings(None, "m", "d")) == []


def test_a_loud_layer_keeps_its_bits_and_why() -> None:
    loud = layer("head[0]", 6, 12.0, noise_ratio=0.0012, loss=1e-4, measured_noise_ratio=0.001)
    (line,) = told(*quiet(), loud)
    assert "`head[0]` keeps 6 bits, where the usual layer has 3:" in line
    assert "an error there is heard 12 times as loud as in the usual layer." in line
    command = typed(line)
    assert command[:5] == ["gossamer", "constrain", "my net.onnx", "--data", "d.npz"]
    assert command[command.index("--layers") + 1] == "head[[]0]"
    assert constraint_from_text(command[command.index("--constraint") + 1]) == constraint_from_text("grid:3")


def test_a_small_layer_keeps_its_bits_as_they_cost_nothing() -> None:
    (line,) = told(*quiet(), layer("stem", 7, 1.0, float_bytes=900))
    assert "`stem` keeps 7 bits" in line and "bits cost little there, as it has 900 bytes of weights in all" in line


def test_bits_without_a_reason_are_no_finding() -> None:
    assert told(*quiet(), layer("odd", 7, 1.0)) == []


def test_the_noisiest_layer_comes_with_one_bit_more() -> None:
    (line,) = told(*quiet(), layer("down", 3, measured_noise_ratio=0.06))
    assert "Of the noise that new weights make, 50 % comes from `down` (grid:3, 6 %)." in line
    assert "grid:4" in typed(line)


def test_a_noisy_layer_under_another_constraint_is_spared_by_hand() -> None:
    (line,) = told(*quiet(), layer("down", constraint="sparse:2:4", measured_noise_ratio=0.06))
    assert "leave it out of its step's scope" in line


def test_weights_that_fell_back_are_named_with_the_reason() -> None:
    dead = [layer(name, reason="its input was zero in every sample") for name in ("x", "y")]
    (line,) = told(*quiet(), *dead, layer("z", reason="second order comes out no better than nearest here"))
    assert "The weights of `x` and `y` fell back to the nearest point: its input was zero in every sample." in line
    assert "Samples that reach these layers" in line and "`z`" not in line


def test_a_poor_order_is_owned_up_to() -> None:
    wrong = [
        layer(f"l{place}", noise_ratio=0.01 * (1 + place), measured_noise_ratio=0.01 * (8 - place))
        for place in range(7)
    ]
    assert any("the rank correlation with what was measured is −1.00" in line for line in told(*wrong))


def test_a_whole_noisier_than_predicted_is_told() -> None:
    (line,) = told(*quiet(), whole=(0.01, 0.03))
    assert "The whole is 3.0 times as noisy as predicted (1 % predicted, 3 % measured)" in line
    assert told(*quiet(), whole=(0.01, 0.019)) == []


def test_a_forecast_without_measurement_is_no_obstacle() -> None:
    bare = [msgspec.structs.replace(one, measured_noise_ratio=None, noise_ratio=None) for one in forecast().predictions]
    assert all("keeps 7 bits" not in line for line in told(*bare))
