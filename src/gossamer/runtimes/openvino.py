"""OpenVINO on the CPU: open a model, run it, and what is known of its integer kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from gossamer.errors import CandidateError, ModelError
from gossamer.nouns.model import PROTO_LIMIT_BYTES, Model, save, to_bytes
from gossamer.runtimes.contract import Feeds, Session

NAME = "openvino"
VERSION: str = ov.__version__.split("-")[0]

_CORE = ov.Core()
_FLOATS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_PRECISION = _CORE.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
FLOAT: str = _FLOATS.get(_PRECISION, _PRECISION)  # bfloat16 where the processor multiplies it, else float32

_NUMPY_KINDS = "biuf"
_NOT_IN_NUMPY = ("bf16", "f8e4m3", "f8e5m2", "f8e8m0", "f4e2m1", "nf4", "i4", "u4", "i2", "u2", "u1", "u3", "u6")


def open_session(model: Model | Path, threads: int = 1) -> Session:
    """Open a file, or a model in memory (through a temporary file if it is too big for one message).

    With one thread the calling thread does all the work, measured as equal thread and process time, so its own
    processor time is the latency. OpenVINO's own pinning is off: it would undo that of whoever measures.

    Raises:
        CandidateError: OpenVINO refuses the model; the text says why.
        ModelError: an input is text or of a type that numpy does not have.
    """
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "SCHEDULING_CORE_TYPE": "ANY_CORE",  # else fewer threads than asked for on processors with two kinds of cores
        "ENABLE_HYPER_THREADING": True,  # else only one thread a physical core, however many are asked for
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = _CORE.compile_model(_read(model), "CPU", options)
        request = compiled.create_infer_request()
    except Exception as error:  # RuntimeError mostly, but its bindings raise others too
        raise CandidateError(f"openvino refuses the model: {_reason(error)}") from error
    inputs = {_name(port): (_input_dtype(port), _shape(port)) for port in compiled.inputs}
    outputs = {_name(port): _dtype(port) for port in compiled.outputs}
    return Session(_Call(request, list(inputs), list(outputs)), inputs, outputs, threads, f"{NAME} {VERSION}")


class _Call:
    """One inference, with as little around it as Python allows.

    OpenVINO's own handling of a dict of arrays takes 30 us, as much as a small net. So an input is bound to its array
    without a copy, and stays bound while the same array comes again. Outputs are copies (3 us): those of OpenVINO are
    overwritten by the next call.
    """

    def __init__(self, request: ov.InferRequest, inputs: list[str], outputs: list[str]) -> None:
        self.request = request
        self.inputs = list(enumerate(inputs))
        self.positions = {name: index for index, name in enumerate(outputs)}
        self.bound: dict[str, np.ndarray] = {}

    def __call__(self, names: list[str] | None, feeds: Feeds) -> Sequence[np.ndarray]:
        try:
            for index, name in self.inputs:
                if self.bound.get(name) is not feeds[name]:
                    self._bind(index, name, feeds[name])
            results = list(self.request.infer(None).values())
        except KeyError as error:
            raise CandidateError(f"openvino: input {error} is missing; the model takes {self._listed()}") from error
        except RuntimeError as error:
            raise CandidateError(f"openvino: {_reason(error)}") from error
        return results if names is None else [results[self.positions[name]] for name in names]

    def _bind(self, index: int, name: str, array: np.ndarray) -> None:
        """Share an array's memory with the request; one that is strided or read-only cannot be, and is copied."""
        self.bound.pop(name, None)
        if array.flags.c_contiguous and array.flags.writeable:
            self.request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
            self.bound[name] = array
        else:
            self.request.set_input_tensor(index, ov.Tensor(np.array(array, order="C")))

    def _listed(self) -> str:
        return ", ".join(name for _, name in self.inputs)


def _read(model: Model | Path) -> ov.Model:
    if isinstance(model, Path):
        return _CORE.read_model(str(model))
    if model.weight_bytes() < PROTO_LIMIT_BYTES:
        return _CORE.read_model(to_bytes(model))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # weights stay mapped until they are packed
        save(model, Path(folder) / "model.onnx")
        return _CORE.read_model(str(Path(folder) / "model.onnx"))


def _name(port: ov.ConstOutput) -> str:
    """The tensor's name in the ONNX file; OpenVINO adds those of tensors that it finds equal."""
    names: set[str] = port.names
    friendly = port.node.friendly_name.removesuffix("/sink_port_0")
    return friendly if friendly in names or not names else min(names)


def _shape(port: ov.ConstOutput) -> tuple[int | str | None, ...]:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise CandidateError(f"openvino: input {_name(port)!r} has no known number of axes; give it a shape")
    return tuple(size.get_length() if size.is_static else None for size in shape)


def _input_dtype(port: ov.ConstOutput) -> np.dtype:
    dtype = _dtype(port)
    if dtype is None or dtype.kind not in _NUMPY_KINDS:
        kind = port.element_type.get_type_name()
        raise ModelError(
            f"input {_name(port)!r} has type {kind}; with runtime {NAME} inputs must be tensors of numbers that numpy "
            "has; use runtime onnxruntime for text"
        )
    return dtype


def _dtype(port: ov.ConstOutput) -> np.dtype | None:
    """None for types that numpy does not have; OpenVINO would name another of the same width."""
    kind = port.element_type.get_type_name()
    if kind in _NOT_IN_NUMPY:
        return None
    return np.dtype(object) if kind == "string" else np.dtype(port.element_type.to_dtype())


# lines that say where in OpenVINO, and not what
_PLACES = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:", "To facilitate")
_REPEATS = ("While validating node", "-- Conversion is failed")


def _reason(error: Exception) -> str:
    """What OpenVINO says, in one line, without the places in its sources."""
    lines = [line.strip().split(" Check '")[0] for line in str(error).splitlines()]
    told = " ".join(line.removeprefix("-- ") for line in lines if line and not line.startswith((*_PLACES, *_REPEATS)))
    return (told or " ".join(str(error).split()) or type(error).__name__)[:300]


# What planning asks of a runtime. Measured on x86 with AVX512-VNNI and AVX512-BF16 (AMD Zen 4), OpenVINO 2026.4, one
# thread, as shares of the time of its own float, which is bfloat16 there.
ACTIVATION = "uint8"  # as fast as int8 and as NNCF's mix of both (MobileNetV2 0.72, 0.73, 0.73); symmetric int8 0.83
# with Add 0.72, without 0.75; Mul, Concat and GlobalAveragePool make no difference beyond noise
INTEGER_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
# a Conv computes in integers whatever stands behind it; a pair between it and a SiLU in float costs: 0.95, without 0.81
INTEGER_PRODUCTS = ("Conv", "Gemm", "MatMul")
INTEGER_ATTENTION = False  # encoder of 6 layers: 0.72 and 24.1 dB with, 0.65 and 26.4 dB without
FAST_DYNAMIC = False  # MatMulInteger is computed in float: the encoder 2.1-2.4
SLOW_FUSIONS: tuple[str, ...] = ()  # split_skip_layernorm 0.98, within noise: its own fusions do not lose
FAST_FORMS: tuple[str, ...] = ()  # fuse_attention 1.01: it finds attention by itself
