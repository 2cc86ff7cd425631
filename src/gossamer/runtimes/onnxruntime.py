"""ONNX Runtime on the CPU: open a model, run it, and what is known of its integer kernels.

What it fuses was measured with op profiles (1.31): uint8 activations with int8 symmetric weights run in integer
kernels two to three times as fast as float; int8 activations leave most convolutions in float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gossamer.errors import CandidateError, ModelError
from gossamer.nouns.model import PROTO_LIMIT_BYTES, Model, save, to_bytes

NAME = "onnxruntime"
VERSION: str = ort.__version__

ort.set_default_logger_severity(3)  # its warnings about unused initializers are not for the person at the terminal


@dataclass(frozen=True)
class Session:
    """An opened model.

    Attributes:
        handle: the runtime's own session.
        inputs: name -> (numpy dtype, shape; a dimension is an int, or a str or None where it is free).
        outputs: names, in order.
        threads: intra-op threads.
    """

    handle: ort.InferenceSession
    inputs: dict[str, tuple[np.dtype, tuple[int | str | None, ...]]]
    outputs: tuple[str, ...]
    threads: int

    @property
    def static_batch(self) -> int | None:
        """The batch size the model insists on, or None if its first axis is free."""
        for _, shape in self.inputs.values():
            if shape and isinstance(shape[0], int):
                return shape[0]
        return None

    def run(self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> list[np.ndarray]:
        """Some or all outputs for one batch; a batch smaller than a static one is padded and cut back.

        An output whose first axis is not the batch comes back as the runtime gave it.
        """
        wanted = None if names is None else list(names)
        size, rows = self.static_batch, len(next(iter(feeds.values()))) if feeds else 0
        if size is None or rows >= size or not feeds:
            return list(self.handle.run(wanted, dict(feeds)))
        padded = {name: np.concatenate([x, np.repeat(x[-1:], size - rows, axis=0)]) for name, x in feeds.items()}
        outputs = self.handle.run(wanted, padded)
        return [y[:rows] if y.ndim and len(y) == size else y for y in outputs]


def open_session(model: Model | Path, threads: int = 1, optimize: bool = True) -> Session:
    """Open a file, or a model in memory (through a temporary file if it is too big for one message).

    `optimize` False runs the graph as written: every tensor of it exists and can be an output at no cost.

    Raises:
        CandidateError: the runtime refuses the model; the text is its first line.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if isinstance(model, Path):
            handle = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        elif model.weight_bytes() < PROTO_LIMIT_BYTES:
            handle = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
        else:
            with tempfile.TemporaryDirectory() as folder:
                save(model, Path(folder) / "model.onnx")
                handle = ort.InferenceSession(
                    str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
                )
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise CandidateError(f"onnxruntime refuses the model: {_first_line(error)}") from error
    inputs = {value.name: (_dtype(value.type, value.name), tuple(value.shape)) for value in handle.get_inputs()}
    return Session(handle, inputs, tuple(value.name for value in handle.get_outputs()), threads)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


_NUMPY_NAME = {"float": "float32", "double": "float64"}


def _dtype(tensor_type: str, name: str) -> np.dtype:
    element = tensor_type.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_NUMPY_NAME.get(element, element))
    except TypeError:
        if element == "string":
            return np.dtype(object)
        raise ModelError(f"input {name!r} has type {tensor_type}; inputs must be tensors of numbers or text") from None


# What planning asks of a runtime. Measured on x86 with VNNI, onnxruntime 1.31.
ACTIVATION = "uint8"  # with int8 activations most convolutions stay in float
INTEGER_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
INTEGER_PRODUCTS = ("Gemm", "MatMul")  # give float out for free, so they can be alone in a float graph
FAST_DYNAMIC = True  # DynamicQuantizeLinear and MatMulInteger are fused
SLOW_FUSIONS = ("split_skip_layernorm",)  # passes that keep the runtime from a fusion that loses time
FAST_FORMS = ("fuse_attention",)  # passes that write a pattern as one operator, faster but only in recent versions
