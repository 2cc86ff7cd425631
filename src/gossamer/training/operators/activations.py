"""Activation functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.training.operators.contract import Operator, Table


def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """x, or alpha x below zero."""
    return functional.leaky_relu(x, alpha)


def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero; the slope is broadcast."""
    return torch.where(x < 0, slope * x, x)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x, or alpha (exp(x) - 1) below zero."""
    return functional.elu(x, alpha)


def selu(x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """gamma times the ELU of alpha."""
    return gamma * functional.elu(x, alpha)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    return functional.celu(x, alpha)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution's share below x (Hendrycks and Gimpel, 2016)."""
    return functional.gelu(x, approximate=approximate)


def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """A line cut off at 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


def softplus(x: Tensor) -> Tensor:
    """log(exp(x) + 1)."""
    return torch.logaddexp(x, torch.zeros_like(x))


def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: Tensor, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    """0 within lambd of 0, and what lies outside moved by bias towards it."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def swish(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x sigmoid(alpha x)."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) over its sum along an axis."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The logarithm of softmax along an axis."""
    return torch.log_softmax(x, axis)


def hardmax(x: Tensor, axis: int = -1) -> Tensor:
    """1 at the first of the greatest along an axis, else 0."""
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


def _matrix(x: Tensor, axis: int) -> Tensor:
    """As before opset 13: all axes from this one on are one."""
    return x.reshape(math.prod(x.shape[:axis]) if axis >= 0 else math.prod(x.shape[: x.ndim + axis]), -1)


def flat_softmax(x: Tensor, axis: int = 1) -> Tensor:
    """Softmax over all axes from this one on."""
    return torch.softmax(_matrix(x, axis), -1).reshape(x.shape)


def flat_log_softmax(x: Tensor, axis: int = 1) -> Tensor:
    """The logarithm of softmax over all axes from this one on."""
    return torch.log_softmax(_matrix(x, axis), -1).reshape(x.shape)


def flat_hardmax(x: Tensor, axis: int = 1) -> Tensor:
    """Hardmax over all axes from this one on."""
    return hardmax(_matrix(x, axis), -1).reshape(x.shape)


TABLE: Table = {
    "Celu": Operator(celu),
    "Elu": Operator(elu),
    "Gelu": Operator(gelu),
    "HardSigmoid": Operator(hard_sigmoid),
    "HardSwish": Operator(functional.hardswish),
    "Hardmax": (Operator(flat_hardmax), Operator(hardmax, since=13)),
    "LeakyRelu": Operator(leaky_relu),
    "LogSoftmax": (Operator(flat_log_softmax), Operator(log_softmax, since=13)),
    "Mish": Operator(functional.mish),
    "PRelu": Operator(parametric_relu, since=7),
    "Relu": Operator(torch.relu),
    "Selu": Operator(selu),
    "Shrink": Operator(shrink),
    "Sigmoid": Operator(torch.sigmoid),
    "Softmax": (Operator(flat_softmax), Operator(softmax, since=13)),
    "Softplus": Operator(softplus),
    "Softsign": Operator(functional.softsign),
    "Swish": Operator(swish),
    "Tanh": Operator(torch.tanh),
    "ThresholdedRelu": Operator(thresholded_relu),
}
