"""If, Loop and Scan: Python control flow over modules of their subgraphs.

A subgraph comes as its module and what it reads of the graph around it: (module, captured). `torch.compile` breaks its
graph where a condition is computed; the steps of a loop whose count is a constant are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Branch = tuple[nn.Module, tuple[Any, ...]]


def if_(condition: Tensor, then_branch: Branch, else_branch: Branch) -> tuple[Tensor, ...]:
    """What one of two branches gives."""
    module, captured = then_branch if condition else else_branch
    results: tuple[Tensor, ...] = module(*captured)
    return results


def loop(count: Tensor | None, condition: Tensor | None, *states: Tensor, body: Branch) -> tuple[Tensor, ...]:
    """States carried from step to step, then what every step gave, stacked.

    It ends after `count` steps, or when the condition, which each step computes anew, does not hold.
    """
    module, captured = body
    current, gathered, step = tuple(states), [], 0
    last = None if count is None else int(count)
    device = states[0].device if states else None
    going = condition if condition is not None else torch.tensor(True, device=device)
    while (last is None or step < last) and bool(going):
        going, *results = module(torch.tensor(step, device=device), going, *current, *captured)
        current = tuple(results[: len(states)])
        gathered.append(results[len(states) :])
        step += 1
    return (*current, *(torch.stack(parts) for parts in zip(*gathered, strict=True)))


def scan(
    *inputs: Tensor,
    body: Branch,
    num_scan_inputs: int,
    scan_input_axes: tuple[int, ...] = (),
    scan_input_directions: tuple[int, ...] = (),
    scan_output_axes: tuple[int, ...] = (),
    scan_output_directions: tuple[int, ...] = (),
) -> tuple[Tensor, ...]:
    """States carried over the slices of inputs along their axes, then what every step gave, stacked."""
    module, captured = body
    kept = len(inputs) - num_scan_inputs
    current, scanned = inputs[:kept], inputs[kept:]
    axes, backwards = scan_input_axes or (0,) * num_scan_inputs, scan_input_directions or (0,) * num_scan_inputs
    sequences = [
        x.flip(axis).unbind(axis) if back else x.unbind(axis)
        for x, axis, back in zip(scanned, axes, backwards, strict=True)
    ]
    gathered = []
    for slices in zip(*sequences, strict=True):
        results = module(*current, *slices, *captured)
        current = results[:kept]
        gathered.append(results[kept:])
    outputs = []
    for index, parts in enumerate(zip(*gathered, strict=True)):
        back = bool(scan_output_directions) and scan_output_directions[index]
        outputs.append(torch.stack(parts[::-1] if back else parts, scan_output_axes[index] if scan_output_axes else 0))
    return (*current, *outputs)


CONTROLS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"If": if_, "Loop": loop, "Scan": scan}
