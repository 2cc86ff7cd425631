"""ONNX Runtime on the CPU: open a model, run it, and what is known of its integer kernels.

What it fuses was measured with op profiles (1.31): uint8 activations with int8 symmetric weights run in integer
kernels two to three times as fast as float; int8 activations leave most convolutions in float.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from gossamer.errors import CandidateError, ModelError
from gossamer.nouns.model import Model, to_bytes
from gossamer.runtimes.contract import Session

NAME = "onnxruntime"
VERSION: str = ort.__version__
FLOAT = "float32"
MAPPED_BYTES = 16_000_000  # weights beyond this are handed over in a file: as bytes they would be held four times

ort.set_default_logger_severity(3)  # its warnings about unused initializers are not for the person at the terminal


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
        elif model.weight_bytes() < MAPPED_BYTES:
            handle = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
        else:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # weights stay mapped
                ir.save(model.ir, Path(folder) / "model.onnx", external_data="model.onnx.data")
                handle = ort.InferenceSession(
                    str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
                )
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise CandidateError(f"onnxruntime refuses the model: {_first_line(error)}") from error
    inputs = {value.name: (_dtype(value.type, value.name), tuple(value.shape)) for value in handle.get_inputs()}
    outputs = {value.name: _output_dtype(value.type) for value in handle.get_outputs()}
    return Session(handle.run, inputs, outputs, threads, f"{NAME} {VERSION}", shared=True)


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


def _output_dtype(kind: str) -> np.dtype | None:
    """None for sequences, optionals, and types that numpy does not have."""
    element = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(object if element == "string" else _NUMPY_NAME.get(element, element))
    except TypeError:
        return None


# What planning asks of a runtime. Measured on x86 with VNNI, onnxruntime 1.31.
ACTIVATION = "uint8"  # with int8 activations most convolutions stay in float
INTEGER_PRODUCTS: tuple[str, ...] = ("Gemm", "MatMul")  # give float out for free: can be alone in a float graph
INTEGER_OPERATORS = ("Conv", *INTEGER_PRODUCTS, "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
INTEGER_ATTENTION = True  # 8.8 ms with, 9.2 without, of a 25 ms encoder of 6 layers
FAST_DYNAMIC = True  # DynamicQuantizeLinear and MatMulInteger are fused
SLOW_FUSIONS: tuple[str, ...] = ("split_skip_layernorm",)  # passes that keep it from a fusion that loses time
FAST_FORMS: tuple[str, ...] = ("fuse_attention",)  # a pattern as one operator: faster, but only in recent versions
