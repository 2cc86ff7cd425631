"""Normalizations, and dropout: what depends on whether the module is being trained."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Attributes, Operator, Table, plain


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    training: bool,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:
    """Each channel of x (N, C, ...) by its running statistics (C), or in training by those of the batch.

    In training the running statistics are updated in place, as torch does it: `momentum` is the share of the old ones
    that stays (torch names the other share so), and the new variance is the unbiased one.
    """
    return functional.batch_norm(x, mean, var, scale, bias, training, 1 - momentum, epsilon)


def batch_normalization_with_statistics(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    training: bool,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the standard has it for `training_mode`: y, running mean and running variance, that of the whole batch.

    The statistics are outputs and are written back in place as well.
    """
    if not training:
        y = functional.batch_norm(x, mean, var, scale, bias, False, 1 - momentum, epsilon)
        return y, mean.clone(), var.clone()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    with torch.no_grad():
        new_var, new_mean = torch.var_mean(x, axes, correction=0)
        new_mean = momentum * mean + (1 - momentum) * new_mean
        new_var = momentum * var + (1 - momentum) * new_var
    y = functional.batch_norm(x, None, None, scale, bias, True, 1 - momentum, epsilon)
    with torch.no_grad():
        mean.copy_(new_mean)
        var.copy_(new_var)
    return y, new_mean, new_var


def dropout(x: Tensor, ratio: float = 0.5, training_mode: bool | None = None, *, training: bool) -> Tensor:
    """In training, numbers set to zero with probability `ratio` and the others scaled up; else x itself."""
    return functional.dropout(x, ratio, training)


def dropout_with_mask(
    x: Tensor, ratio: float = 0.5, training_mode: bool | None = None, *, training: bool
) -> tuple[Tensor, Tensor]:
    """Dropout and where the numbers were kept."""
    if not training or ratio == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.rand_like(x) >= ratio
    return torch.where(kept, x / (1 - ratio), torch.zeros_like(x)), kept


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample of x (N, C, ...) by its own mean and variance."""
    return functional.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: torch.dtype | None = torch.float32,
) -> Tensor:
    """Mean and variance of all axes from `axis` on are made 0 and 1; then scale and bias (Ba et al., 2016)."""
    normal = x.shape[axis:]
    if scale.shape == normal and (bias is None or bias.shape == normal):
        return functional.layer_norm(x, normal, scale, bias, epsilon)
    y = functional.layer_norm(x, normal, None, None, epsilon) * scale
    return y if bias is None else y + bias


def layer_normalization_with_statistics(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: torch.dtype | None = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalization, the means and one over the standard deviations."""
    axes = list(range(axis % x.ndim, x.ndim))
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return layer_normalization(x, scale, bias, axis, epsilon), mean, torch.rsqrt(var + epsilon)


def rms_normalization(
    x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: torch.dtype | None = torch.float32
) -> Tensor:
    """x over the root of its mean square from `axis` on (Zhang and Sennrich, 2019)."""
    wide = x.to(stash_type) if stash_type is not None and stash_type.itemsize > x.dtype.itemsize else x
    axes = list(range(axis % x.ndim, x.ndim))
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: torch.dtype | None = torch.float32,
) -> Tensor:
    """Groups of channels of each sample by their mean and variance (Wu and He, 2018); scale and bias a channel."""
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def group_normalization_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """As of opset 18: scale and bias are given a group."""
    repeats = x.shape[1] // num_groups
    each = (scale.repeat_interleave(repeats), bias.repeat_interleave(repeats))
    return functional.group_norm(x, num_groups, *each, epsilon)


def lp_normalization(x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
    """x over its norm along an axis; zeros stay."""
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else torch.linalg.vector_norm(x, 2, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance_normalization(x: Tensor, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """Mean and variance over these axes are made 0 and 1."""
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (var.sqrt() + 1e-9)


def local_response_normalization(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """x over a power of the squares of neighbouring channels (Krizhevsky et al., 2012)."""
    squares = x.square().reshape(x.shape[0], 1, x.shape[1], math.prod(x.shape[2:]))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    mean = functional.avg_pool2d(functional.pad(squares, (0, 0, before, after)), (size, 1), stride=1)
    return x / (bias + alpha * mean.reshape(x.shape)) ** beta


def _without_mode(node: ir.Node) -> Attributes:
    """`training_mode` is the module's to say; `spatial` was 1 wherever it still stood."""
    return {name: value for name, value in plain(node).items() if name not in ("training_mode", "spatial")}


def _without_seed(node: ir.Node) -> Attributes:
    return {name: value for name, value in plain(node).items() if name != "seed"}


TABLE: Table = {
    "BatchNormalization": Operator(
        batch_normalization,
        since=9,
        attributes=_without_mode,
        several=batch_normalization_with_statistics,
        training=True,
    ),
    "Dropout": Operator(dropout, sizes=(1, 2), attributes=_without_seed, several=dropout_with_mask, training=True),
    "GroupNormalization": (Operator(group_normalization_by_group), Operator(group_normalization, since=21)),
    "InstanceNormalization": Operator(instance_normalization),
    "LRN": Operator(local_response_normalization),
    "LayerNormalization": Operator(layer_normalization, several=layer_normalization_with_statistics),
    "LpNormalization": Operator(lp_normalization),
    "MeanVarianceNormalization": Operator(mean_variance_normalization),
    "RMSNormalization": Operator(rms_normalization),
}
