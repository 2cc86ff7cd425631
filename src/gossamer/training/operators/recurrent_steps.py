"""Recurrent layers step by step, for what torch's own kernels do not know: peepholes, lengths, other functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, "Weights", Sequence[Callable[[Tensor], Tensor]]], State]


class Weights(NamedTuple):
    """Of one direction; what the input gives is added up beforehand."""

    w: Tensor
    r: Tensor
    w_bias: Tensor
    r_bias: Tensor
    peepholes: Tensor | None


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": torch.nn.functional.softplus,
    "Softsign": torch.nn.functional.softsign,
    "Tanh": torch.tanh,
}


def by_steps(
    cell: Cell,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    lengths: Tensor | None,
    states: tuple[Tensor | None, ...],
    functions: Sequence[str],
    direction: str,
) -> tuple[Tensor, State]:
    """Each direction for itself; a sample that has ended keeps its state, and gives zeros."""
    w, r, b, p = weights
    bias = torch.zeros(len(w), 2 * w.shape[1], dtype=x.dtype, device=x.device) if b is None else b
    outputs, lasts = [], []
    each = len(functions) // len(w)
    for index in range(len(w)):
        w_bias, r_bias = bias[index].chunk(2)
        part = Weights(w[index], r[index], w_bias, r_bias, None if p is None else p[index])
        now = tuple(start(state, x, r)[index] for state in states)
        chosen = [FUNCTIONS[name] for name in functions[index * each : (index + 1) * each]]
        backwards = direction == "reverse" or index == 1
        sequence = _reversed(x, lengths) if backwards else x
        given = sequence @ part.w.mT + part.w_bias
        steps = []
        for step in range(len(x)):
            new = cell(given[step], now, part, chosen)
            if lengths is None:
                now = new
                steps.append(new[0])
            else:
                going = (step < lengths)[:, None]
                now = tuple(torch.where(going, a, b) for a, b in zip(new, now, strict=True))
                steps.append(torch.where(going, new[0], torch.zeros_like(new[0])))
        y = torch.stack(steps)
        outputs.append(_reversed(y, lengths) if backwards else y)
        lasts.append(now)
    return torch.stack(outputs, 1), tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))


def lstm_cell(
    given: Tensor,
    states: State,
    weights: Weights,
    functions: Sequence[Callable[[Tensor], Tensor]],
    clip: float,
    input_forget: bool,
) -> State:
    h, c = states
    f, g, out = functions
    i, o, forget, cell = (given + h @ weights.r.mT + weights.r_bias).chunk(4, -1)
    if weights.peepholes is not None:
        p_i, p_o, p_f = weights.peepholes.chunk(3)
        i, forget = i + p_i * c, forget + p_f * c
    i = f(_clipped(i, clip))
    forget = 1 - i if input_forget else f(_clipped(forget, clip))
    c = forget * c + i * g(_clipped(cell, clip))
    if weights.peepholes is not None:
        o = o + p_o * c
    return f(_clipped(o, clip)) * out(c), c


def gru_cell(
    given: Tensor,
    states: State,
    weights: Weights,
    functions: Sequence[Callable[[Tensor], Tensor]],
    clip: float,
    linear_before_reset: bool,
) -> State:
    (h,) = states
    f, g = functions
    z_in, r_in, h_in = given.chunk(3, -1)
    size = h.shape[-1]
    gates = h @ weights.r[: 2 * size].mT + weights.r_bias[: 2 * size]
    z, reset = (f(_clipped(a + b, clip)) for a, b in zip((z_in, r_in), gates.chunk(2, -1), strict=True))
    w_h, b_h = weights.r[2 * size :].mT, weights.r_bias[2 * size :]
    inner = reset * (h @ w_h + b_h) if linear_before_reset else (reset * h) @ w_h + b_h
    return ((1 - z) * g(_clipped(h_in + inner, clip)) + z * h,)


def rnn_cell(
    given: Tensor, states: State, weights: Weights, functions: Sequence[Callable[[Tensor], Tensor]], clip: float
) -> State:
    (h,) = states
    return (functions[0](_clipped(given + h @ weights.r.mT + weights.r_bias, clip)),)


def _clipped(x: Tensor, clip: float) -> Tensor:
    return x.clamp(-clip, clip) if clip else x


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """A sequence (T, N, ...) backwards; of samples that end earlier only what there is."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    at = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, at[:, :, None].expand_as(x))


def start(state: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    """The state before the first step; zeros if none is given."""
    return x.new_zeros(len(r), x.shape[1], r.shape[2]) if state is None else state
