"""Numbers rounded to a grid and kept as floats, with gradients for the numbers and for the grid's step.

These operators stand in no file: they are what a twin (see `training.twin`) has in the place of integers. What they
give is what the runtime's QuantizeLinear and DequantizeLinear give, to the bit for weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.operators.quantization import spread

DOMAIN = "gossamer"  # of the operators below, which no runtime knows
BIAS_LIMIT = float(2**31 - 1)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    log_ratio: Tensor | None = None,
    unit: Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    low: int = -128,
    high: int = 127,
) -> Tensor:
    """(clamp(round(x / s) + zero point, low, high) - zero point) s, with s = `step(scale, log_ratio)`.

    Weights come in a unit of their own, x = unit * given: the step that their channel begins with. An optimizer that
    moves all parameters by about the same amount, as Adam does, then brings the integers of every channel and width as
    near to their next; in plain numbers, channels behind folded norms differ a thousandfold.

    Gradients are those of LSQ (Esser et al. 2020): they pass straight through the rounding; numbers beyond the grid get
    none, and move its step instead. Learning the logarithm of the step, as TQT does (Jain et al. 2020), keeps it
    positive, and makes a learning rate mean the same for small steps and large ones.

    Args:
        x: float of any shape.
        scale: positive; one, or one an index of `axis`, or one a block of `block_size` there.
        zero_point: integers of the scale's shape; None stands for 0.
        log_ratio: of the scale's size, 0 in the beginning; None where the step is not learned.
        unit: as many as there are scales; None for 1.
    """
    s = step(scale, log_ratio)
    if unit is not None:
        x = x * spread(unit, x, axis, block_size)
    zero = 0.0 if zero_point is None else _one_or_spread(zero_point.to(s.dtype), x, axis, block_size)
    with torch.autocast(x.device.type, enabled=False):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        made: Tensor = OnGrid.apply(wide, spread(s, x, axis, block_size), low - zero, high - zero)  # type: ignore[no-untyped-call]
    return made


def fake_quantize_bias(
    bias: Tensor,
    input_scale: Tensor,
    input_log_ratio: Tensor | None,
    weight_scale: Tensor,
    weight_log_ratio: Tensor | None,
    unit: Tensor | None = None,
) -> Tensor:
    """A bias in whole steps of the input's scale times the weight's, int32 in the file; the gradient passes."""
    s = (step(input_scale, input_log_ratio).reshape(()) * step(weight_scale, weight_log_ratio)).detach()
    if unit is not None:
        bias = bias * unit
    return bias + (torch.round(bias / s).clamp(-BIAS_LIMIT, BIAS_LIMIT) * s - bias).detach()


def step(scale: Tensor, log_ratio: Tensor | None) -> Tensor:
    """The step of a grid, as it is after training so far: scale * exp(log_ratio)."""
    return scale if log_ratio is None else scale * log_ratio.reshape(scale.shape).exp()


def integers_of(x: Tensor, s: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What a grid of step s holds for x: whole numbers less the zero point, in floats; halves go to even."""
    return torch.clamp(torch.round(x / s), low, high)


class OnGrid(torch.autograd.Function):
    """x rounded to whole steps within bounds: one pass forward, and a mask and two sums back.

    Written for a processor's caches: with the chain of its parts, autograd would take three times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, low: Any, high: Any) -> Tensor:
        one = s.numel() == 1 and not isinstance(low, Tensor)
        made = torch.div(x, s).round_().clamp_(low, high).mul_(s)
        ctx.save_for_backward(x, made, s)
        ctx.bounds = (low, high)
        ctx.one = one
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, made, s = ctx.saved_tensors
        low, high = ctx.bounds
        if ctx.one:
            step_size = float(s)
            ends = (low - 0.5) * step_size, (high + 0.5) * step_size
            passed = torch.ops.aten.hardtanh_backward(gradient, x, *ends)
            if not ctx.needs_input_grad[1]:
                return passed, None, None, None
            g, p = gradient.reshape(-1), passed.reshape(-1)
            moved = torch.dot(g, made.reshape(-1)) - torch.dot(p, x.reshape(-1))
            return passed, (moved / s).reshape(s.shape), None, None
        passed = gradient * ((x >= (low - 0.5) * s) & (x <= (high + 0.5) * s))
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        return passed, ((gradient * made - passed * x) / s).sum_to_size(s.shape), None, None


def _one_or_spread(zero: Tensor, x: Tensor, axis: int, block_size: int) -> float | Tensor:
    """A zero point as a number where one is enough."""
    first = zero.reshape(-1)[0]
    return float(first) if bool((zero == first).all()) else spread(zero, x, axis, block_size)


TABLE: Table = {
    "FakeQuantize": Operator(fake_quantize),
    "FakeQuantizeBias": Operator(fake_quantize_bias),
}
