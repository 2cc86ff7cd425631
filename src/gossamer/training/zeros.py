"""Zeros that were chosen stay zeros while the rest is trained: pruned weights, and a codebook's zero.

A sparse model is fine-tuned so (Han et al. 2015): no gradient reaches its zeros, and so no optimizer moves them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from gossamer.errors import CandidateError
from gossamer.graph.edit import attribute_int, constant
from gossamer.nouns.model import Model
from gossamer.training.operators.fake_quantize import DOMAIN

LAYERS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
TABLES = ("Gather", "GatherND", "GatherElements")  # a codebook's values, or rows, are looked up in input 0
SPARSE = 0.5  # of a weight's numbers: with so many zeros they were chosen
SPARSE_COARSE = 0.75  # the same of integers of 2 and 3 bits, of which many are zero anyway
COARSE_LIMIT = 3


def keep_zeros(module: fx.GraphModule, model: Model, sparse: bool = False, left: frozenset[str] = frozenset()) -> int:
    """See that training keeps the zeros of sparse weights and codebooks; returns of how many parameters.

    Args:
        module: what `lower` made of the model.
        model: a twin, or a model without integers.
        sparse: the model is known to be: all zeros of layers' weights were chosen, be they ever so few.
        left: initializers whose zeros are somebody else's to keep.
    """
    parameters, held = dict(module.named_parameters()), 0
    for path, name in module.meta["initializers"].items():
        value = None if name in left else model.ir.graph.initializers.get(name)
        chosen = None if value is None or path not in parameters else _chosen_zeros(value, sparse)
        if chosen is None:
            continue
        parameter = parameters[path]
        with torch.no_grad():
            parameter.masked_fill_(torch.from_numpy(chosen).to(parameter.device), 0)
        parameter.register_hook(_Blocked(chosen))  # type: ignore[no-untyped-call]
        held += 1
    return held


class _Blocked:
    """A gradient without that of the zeros."""

    def __init__(self, chosen: np.ndarray) -> None:
        self._chosen = torch.from_numpy(chosen)

    def __call__(self, gradient: Tensor) -> Tensor:
        if self._chosen.device != gradient.device:
            self._chosen = self._chosen.to(gradient.device)
        return gradient.masked_fill(self._chosen, 0)


def _chosen_zeros(value: ir.Value, sparse: bool) -> np.ndarray | None:
    """Which numbers of an initializer are zeros that stay, or None."""
    array = constant(value)
    if array is None or array.ndim == 0 or array.dtype.kind != "f" or not array.size:
        return None
    zeros, share = array == 0, SPARSE
    for node, slot in value.uses():
        if node.domain == "" and node.op_type in TABLES and slot == 0:
            return zeros if zeros.any() else None
        if node.domain == DOMAIN and node.op_type == "FakeQuantize" and slot == 0:
            zeros = np.abs(array) < 0.5  # in steps: what rounds to zero
            share = SPARSE_COARSE if attribute_int(node, "high", 127) <= COARSE_LIMIT else SPARSE
            break
        if node.domain == "" and slot in LAYERS.get(node.op_type, ()):
            break
    else:
        return None
    return zeros if zeros.mean() >= share or (sparse and zeros.any()) else None


def check_zeros(before: Model, after: Model, sparse: bool = False, left: frozenset[str] = frozenset()) -> None:
    """See that no chosen zero of a float weight was lost.

    Raises:
        CandidateError: names the weight.
    """
    for name, value in before.ir.graph.initializers.items():
        chosen = None if name in left else _chosen_zeros(value, sparse)
        trained = after.ir.graph.initializers.get(name)
        if chosen is None or trained is None:
            continue
        if np.any(np.asarray(constant(trained))[chosen] != 0):
            raise CandidateError(f"training moved zeros of {name}, which were to stay")
