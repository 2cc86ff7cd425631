"""Operators of onnxruntime's own domain that Gossamer writes, and those that its optimizer leaves in saved models."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators import quantization
from gossamer.training.operators.contract import Attributes, Operator, Table, plain
from gossamer.training.operators.norms import layer_normalization
from gossamer.training.operators.recurrent import lstm


def matmul_nbits(
    x: Tensor,
    w: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    K: int = 0,  # the operator's own spelling
    N: int = 0,
    bits: int = 4,
    block_size: int = 32,
) -> Tensor:
    """x (..., K) by a weight of N rows, stored in 2, 4 or 8 bits in blocks that share a scale.

    Args:
        w: (N, blocks, block_size * bits / 8) bytes, several integers in each, the first in the lowest bits.
        scales: one for each block of each row.
        zero_points: integers stored as those of w, or floats; half the range if absent.
    """
    blocks = -(-K // block_size)
    integers = _unpacked(w.reshape(N, blocks, -1), bits)
    scale = scales.reshape(N, blocks, 1)
    zero: Tensor | float = float(2 ** (bits - 1))
    if zero_points is not None and zero_points.is_floating_point():
        zero = zero_points.reshape(N, blocks, 1)
    elif zero_points is not None:
        zero = _unpacked(zero_points.reshape(N, -1), bits)[:, :blocks, None].to(scale.dtype)
    w_NK = ((integers.to(scale.dtype) - zero) * scale).reshape(N, -1)[:, :K]
    return functional.linear(x, w_NK.to(x.dtype), bias)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Integers of the last axis' bytes."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    integers: Tensor = packed.unsqueeze(-1) >> shifts & (2**bits - 1)
    return integers.flatten(-2)


def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero: Tensor,
    r_scale: Tensor,
    r_zero: Tensor,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    activations: tuple[str, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM of stored integers (directions, inputs, 4H).

    The runtime rounds inputs and states to 8 bits at every step as well; here they stay floats.
    """
    weights = (_dequantized(w, w_scale, w_zero), _dequantized(r, r_scale, r_zero))
    return lstm(x, *weights, b, lengths, h, c, p, activations, clip, direction, hidden_size, input_forget)


def _dequantized(w: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(directions, 4H, inputs) of integers with the inputs first; scales one a direction, or one a row of it."""
    shape = (len(w), 1, -1)
    return ((w.to(scale.dtype) - zero_point.to(scale.dtype).reshape(shape)) * scale.reshape(shape)).mT


def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A product of integers in floats."""
    y = quantization.matmul_integer(a, b, a_zero, b_zero) * (a_scale * b_scale)
    return y if bias is None else y + bias


def dynamic_quantize_matmul(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x in 8 bits over its own range, by a matrix of integers."""
    integers, scale, zero = quantization.dynamic_quantize_linear(x)
    return matmul_integer_to_float(integers, w, scale, w_scale, zero, w_zero, bias)


def fused_matmul(
    a: Tensor,
    b: Tensor,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """alpha a b, either factor transposed."""
    return alpha * ((a.mT if transA else a) @ (b.mT if transB else b))


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU by tanh, of x and a bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of x and a bias."""
    return functional.gelu(x + bias)


def quick_gelu(x: Tensor, alpha: float = 1.702) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Layer normalization of a sum."""
    total = x + skip if bias is None else x + skip + bias
    return layer_normalization(total, gamma, beta, -1, epsilon)


def _without_accuracy(node: ir.Node) -> Attributes:
    """How exactly the runtime computes is no part of the meaning."""
    return {name: value for name, value in plain(node).items() if name not in ("accuracy_level", "weight_prepacked")}


def _no_groups(node: ir.Node) -> str:
    reordered = len(node.inputs) > 4 and node.inputs[4] is not None
    return "its columns are reordered by g_idx, which is not supported" if reordered else ""


def _no_batches(node: ir.Node) -> str:
    moved = [name for name in ("transBatchA", "transBatchB") if name in node.attributes]
    return f"{moved[0]} is set, which is not supported" if moved and node.attributes[moved[0]].as_int() else ""


TABLE: Table = {
    "BiasGelu": Operator(bias_gelu),
    "DequantizeLinear": quantization.TABLE["DequantizeLinear"],
    "DynamicQuantizeLSTM": Operator(dynamic_quantize_lstm, gives_tuple=True),
    "DynamicQuantizeMatMul": Operator(dynamic_quantize_matmul),
    "FastGelu": Operator(fast_gelu),
    "FusedMatMul": Operator(fused_matmul, obstacle=_no_batches),
    "Gelu": Operator(functional.gelu),
    "MatMulIntegerToFloat": Operator(matmul_integer_to_float, carries=(0, 1)),
    "MatMulNBits": Operator(matmul_nbits, attributes=_without_accuracy, obstacle=_no_groups),
    "QuantizeLinear": quantization.TABLE["QuantizeLinear"],
    "QuickGelu": Operator(quick_gelu),
    "SkipLayerNormalization": Operator(skip_layer_normalization),
}
