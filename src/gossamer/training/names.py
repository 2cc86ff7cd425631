"""Names of initializers as attributes: `stem.conv.weight` stays as it is, `onnx::Conv_12` becomes `onnx__Conv_12`."""

from __future__ import annotations

import keyword
import re
from itertools import chain, count

import torch
from torch import nn


def attribute_path(name: str, module: nn.Module) -> str:
    """Where an initializer, or a subgraph, of this name goes in a module: a dotted path that is free.

    Dots part modules, as in the names that torch's exporter keeps; other signs become `_`. Parts that a module or
    Python uses itself get a `_` behind them.
    """
    parts = [_part(part) for part in name.split(".") if part] or ["value"]
    flat = "_".join(parts)
    paths = chain((".".join(parts), flat), (f"{flat}_{number}" for number in count(1)))
    return next(path for path in paths if _is_free(path, module))


def attach(module: nn.Module, path: str, value: nn.Module | torch.Tensor) -> None:
    """Put a parameter, a buffer or a module at a path, with empty modules on the way."""
    *way, last = path.split(".")
    for part in way:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(value, (nn.Module, nn.Parameter)):
        setattr(module, last, value)
    else:
        module.register_buffer(last, value)


def _part(part: str) -> str:
    part = re.sub(r"\W", "_", part, flags=re.ASCII)
    return f"{part}_" if keyword.iskeyword(part) or hasattr(torch.fx.GraphModule, part) or part in _OWN else part


_OWN = frozenset((*vars(nn.Module()), "graph", "code", "meta"))  # set in every module


def _is_free(path: str, module: nn.Module) -> bool:
    """Whether nothing is there yet, and nothing but modules on the way."""
    *way, last = path.split(".")
    for part in way:
        if not hasattr(module, part):
            return True
        module = getattr(module, part)
        if not isinstance(module, nn.Module) or isinstance(module, torch.fx.GraphModule):
            return False
    return not hasattr(module, last)
