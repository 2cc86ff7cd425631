"""onnxruntime's own quantizers, as a person would call them: uint8 activations, int8 weights, model pre-processed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

Granularity = Literal["channel", "tensor"]
GRANULARITIES: tuple[Granularity, ...] = ("channel", "tensor")
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class Reader(CalibrationDataReader):  # type: ignore[misc]  # the peer's interface
    """Samples one by one."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.rest: Iterator[dict[str, np.ndarray]] = _one_by_one(arrays)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample, or None after the last."""
        return next(self.rest, None)


def prepared(model: Path, folder: Path) -> Path:
    """The model after `quant_pre_process`, which onnxruntime advises before either quantizer.

    Its symbolic shape inference raises a bare `Exception` on some models; its own advice is to leave that out then.
    """
    target = folder / "prepared.onnx"
    try:
        quant_pre_process(model, target)
    except Exception:
        quant_pre_process(model, target, skip_symbolic_shape=True)
    return target


def static(model: Path, target: Path, arrays: dict[str, np.ndarray], granularity: Granularity, method: str) -> Path:
    """`quantize_static`, QDQ; its default types (int8, int8) leave most convolutions in float and are not tried."""
    logging.disable(logging.WARNING)
    with redirect_stdout(sys.stderr):  # standard output is for the tables
        quantize_static(
            model,
            target,
            Reader(arrays),
            per_channel=granularity == "channel",
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
        )
    return target


def dynamic(model: Path, target: Path, granularity: Granularity) -> Path:
    """`quantize_dynamic` with int8 weights."""
    logging.disable(logging.WARNING)
    quantize_dynamic(model, target, per_channel=granularity == "channel", weight_type=QuantType.QInt8)
    return target


def _one_by_one(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for row in range(len(next(iter(arrays.values())))):
        yield {name: array[row : row + 1] for name, array in arrays.items()}
