"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # the standard's own spelling
    transB: int = 0,
) -> Tensor:
    """alpha a b + beta c, (M, K) (K, N) -> (M, N); either factor may be given transposed, c is broadcast."""
    a = a.mT if transA else a
    if alpha == beta == 1.0 and transB and c is not None and c.ndim == 1:
        return functional.linear(a, b, c if c.shape[0] == b.shape[0] else c.expand(b.shape[0]))
    product = a @ (b.mT if transB else b)
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


def einsum(*tensors: Tensor, equation: str) -> Tensor:
    """Products summed over the indices that the equation leaves out."""
    return torch.einsum(equation.replace(" ", ""), *tensors)


def det(x: Tensor) -> Tensor:
    """Determinants of matrices (..., N, N)."""
    determinants: Tensor = torch.linalg.det(x)
    return determinants


TABLE: Table = {
    "Det": Operator(det),
    "Einsum": Operator(einsum),
    "Gemm": Operator(gemm, since=7),
    "MatMul": Operator(torch.matmul),
}
