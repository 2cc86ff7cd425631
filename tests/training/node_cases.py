"""The ONNX project's own test cases of single operators, as the `onnx` package makes them, run through the lowering."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.backend.test.case.test_case import TestCase as Case
from torch import Tensor

from gossamer.nouns.model import Model
from gossamer.training.lower import lower
from gossamer.training.tensors import tensor_of

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
TOLERANCES = {  # relative, as the project itself has it, and absolute; half precision rounds by 1 in 1,000 or 100
    torch.float16: (4e-3, 2e-3),
    torch.bfloat16: (2e-2, 1e-2),
}
USUAL = (1e-3, 1e-5)


@cache
def cases() -> tuple[Case, ...]:
    """Cases of the default domain with floats among inputs and outputs, and tensors of numbers only."""
    from onnx.backend.test.loader import load_node_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # edge cases divide by zero on purpose
        return tuple(case for case in load_node_model_tests() if _has_float_path(case.model.graph))


def _has_float_path(graph: onnx.GraphProto) -> bool:
    if any(node.domain not in ("", "ai.onnx") for node in graph.node):
        return False
    types = [value.type for value in (*graph.input, *graph.output)]
    if not all(type_.HasField("tensor_type") for type_ in types):
        return False
    if any(type_.tensor_type.elem_type == onnx.TensorProto.STRING for type_ in types):
        return False
    return all(
        any(value.type.tensor_type.elem_type in FLOATS for value in side) for side in (graph.input, graph.output)
    )


def lowered(case: Case) -> torch.fx.GraphModule:
    """The case's module, in the mode that the case means."""
    module = lower(Model(ir.serde.deserialize_model(case.model), case.name))
    return module.train("train" in case.name)


def tensors(values: list[object]) -> list[Tensor]:
    """Arrays or protos as tensors."""
    return [
        tensor_of(onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value))
        for value in values
    ]


def failure(case: Case) -> str:
    """Why a case fails, or ""."""
    try:
        module = lowered(case)
        for inputs, outputs in case.data_sets:
            with torch.no_grad():
                made = module(*tensors(inputs))
            for got, expected in zip(made if isinstance(made, tuple) else (made,), tensors(outputs), strict=True):
                rtol, atol = TOLERANCES.get(expected.dtype, USUAL)
                torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    except Exception as error:  # whatever it is, the case counts as failed
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""
