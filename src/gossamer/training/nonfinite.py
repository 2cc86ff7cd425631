"""Where a number stopped being finite: the first layer whose output is NaN or infinite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from gossamer.training.lessons import Piece


def first_nonfinite(student: nn.Module, piece: Piece) -> str:
    """The name of the first layer whose output is not finite on this piece; empty if all are."""
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if not _finite(parameter):
                return f"weight {name}"
        return _in_graph(student, piece) if isinstance(student, fx.GraphModule) else _in_modules(student, piece)


class _Watching(fx.Interpreter):
    """Runs a graph node by node, and notes the first whose output is not finite."""

    found = ""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if not self.found and n.op != "placeholder" and not _finite(result):
            self.found = n.name
        return result


def _in_graph(student: fx.GraphModule, piece: Piece) -> str:
    watching = _Watching(student)
    watching.run(*piece.inputs)
    return f"layer {watching.found}" if watching.found else ""


def _in_modules(student: nn.Module, piece: Piece) -> str:
    found: list[str] = []

    def look(name: str, result: Any) -> None:
        if not _finite(result):
            found.append(name)

    leaves = [(name, part) for name, part in student.named_modules() if not list(part.children())]
    hooks = [part.register_forward_hook(lambda _m, _i, out, name=name: look(name, out)) for name, part in leaves]
    try:
        student(*piece.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return f"layer {found[0]}" if found else ""


def _finite(result: Any) -> bool:
    if isinstance(result, Tensor):
        return not result.is_floating_point() or bool(torch.isfinite(result).all())
    return all(map(_finite, result)) if isinstance(result, (tuple, list)) else True
