"""LSTM, GRU and RNN: torch's own kernels where they mean the same, else a loop over the steps.

x (T, N, I), W (directions, gates H, I), R (directions, gates H, H), B (directions, 2 gates H), states (directions, N,
H); y (T, directions, N, H). With `layout` 1 the batch comes first. The gates of ONNX stand in another order than
torch's, so the rows are reordered at every call; the gradient goes through that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gossamer.training.operators.contract import Operator, Table
from gossamer.training.operators.recurrent_steps import FUNCTIONS, State, by_steps, gru_cell, lstm_cell, rnn_cell, start


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
    activations: tuple[str, ...] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory (Hochreiter and Schmidhuber, 1997): all outputs, the last output, the last cell."""
    x, h, c = _batch_second(layout, x, h, c)
    plain = lengths is None and p is None and not clip and not input_forget
    if plain and _are(activations, ("Sigmoid", "Tanh", "Tanh")):
        flat = _torch_weights(w, r, b, (0, 2, 3, 1))  # input output forget cell -> input forget cell output
        states = (start(h, x, r), start(c, x, r))
        y, last_h, last_c = _by_torch(torch.lstm, x, states, flat, direction, len(w), w.shape[1] // 4)
        return _batch_first(layout, y, last_h, last_c)
    cell = partial(lstm_cell, clip=clip, input_forget=bool(input_forget))
    functions = activations or ("Sigmoid", "Tanh", "Tanh") * len(w)
    y, (last_h, last_c) = by_steps(cell, x, (w, r, b, p), lengths, (h, c), functions, direction)
    return _batch_first(layout, y, last_h, last_c)


def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    activations: tuple[str, ...] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit (Cho et al., 2014): all outputs and the last; torch's kernel is `linear_before_reset`."""
    x, h = _batch_second(layout, x, h)
    if lengths is None and not clip and linear_before_reset and _are(activations, ("Sigmoid", "Tanh")):
        flat = _torch_weights(w, r, b, (1, 0, 2))  # update reset hidden -> reset update hidden
        y, last = _by_torch(torch.gru, x, (start(h, x, r),), flat, direction, len(w), w.shape[1] // 3)
        return _batch_first(layout, y, last)
    cell = partial(gru_cell, clip=clip, linear_before_reset=bool(linear_before_reset))
    functions = activations or ("Sigmoid", "Tanh") * len(w)
    y, (last,) = by_steps(cell, x, (w, r, b, None), lengths, (h,), functions, direction)
    return _batch_first(layout, y, last)


def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    activations: tuple[str, ...] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor]:
    """The plain recurrent layer (Elman, 1990): all outputs and the last."""
    x, h = _batch_second(layout, x, h)
    for name, kernel in (("Tanh", torch.rnn_tanh), ("Relu", torch.rnn_relu)):
        if lengths is None and not clip and _are(activations or ("Tanh",), (name,)):
            flat = _torch_weights(w, r, b, (0,))
            y, last = _by_torch(kernel, x, (start(h, x, r),), flat, direction, len(w), w.shape[1])
            return _batch_first(layout, y, last)
    functions = activations or ("Tanh",) * len(w)
    y, (last,) = by_steps(partial(rnn_cell, clip=clip), x, (w, r, b, None), lengths, (h,), functions, direction)
    return _batch_first(layout, y, last)


# --- torch's kernels


def _torch_weights(w: Tensor, r: Tensor, b: Tensor | None, order: tuple[int, ...]) -> list[Tensor]:
    """Weights and biases direction by direction, with the gates in torch's order."""

    def reordered(rows: Tensor) -> Tensor:
        parts = rows.chunk(len(order))
        return torch.cat([parts[gate] for gate in order]) if len(order) > 1 else rows

    flat = []
    for direction in range(len(w)):
        flat += [reordered(w[direction]), reordered(r[direction])]
        if b is not None:
            flat += [reordered(part) for part in b[direction].chunk(2)]
    return flat


def _by_torch(
    kernel: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: State,
    flat: list[Tensor],
    direction: str,
    directions: int,
    hidden: int,
) -> tuple[Tensor, ...]:
    """One layer; backwards is forwards over the reversed sequence."""
    x = x.flip(0) if direction == "reverse" else x
    given = states if len(states) > 1 else states[0]
    has_biases = len(flat) == 4 * directions
    y, *last = kernel(x, given, flat, has_biases, 1, 0.0, False, directions == 2, False)
    y = y.flip(0) if direction == "reverse" else y
    return (y.reshape(*y.shape[:2], directions, hidden).transpose(1, 2), *last)


# --- shapes


def _batch_second(layout: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(tensor.transpose(0, 1) if layout and tensor is not None else tensor for tensor in tensors)


def _batch_first(layout: int, y: Tensor, *lasts: Tensor) -> tuple[Any, ...]:
    """(T, directions, N, H) as (N, T, directions, H) and states with the batch first, if so asked."""
    return (y.permute(2, 0, 1, 3), *(last.transpose(0, 1) for last in lasts)) if layout else (y, *lasts)


def _are(activations: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether the functions of every direction are these; none named means the usual ones."""
    return not activations or all(
        activations[i].lower() == names[i % len(names)].lower() for i in range(len(activations))
    )


def _obstacle(node: ir.Node) -> str:
    """Functions with slopes of their own, or none of the usual ones."""
    for name in ("activation_alpha", "activation_beta"):
        if name in node.attributes and node.attributes[name].as_floats():
            return f"{name} is set; functions with their usual slopes are supported"
    named = node.attributes.get("activations")
    unknown = [] if named is None else [name for name in named.as_strings() if name not in FUNCTIONS]
    return f"activation {unknown[0]}; allowed are {', '.join(FUNCTIONS)}" if unknown else ""


TABLE: Table = {
    "GRU": Operator(gru, gives_tuple=True, obstacle=_obstacle),
    "LSTM": Operator(lstm, gives_tuple=True, obstacle=_obstacle),
    "RNN": Operator(rnn, gives_tuple=True, obstacle=_obstacle),
}
