"""For people who keep a loop of their own (plain torch, Lightning, the HF Trainer): a module out, a model back.

module = gossamer.to_torch("model.onnx")
... train it ...
gossamer.save(gossamer.from_torch(module), "trained.onnx")
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gossamer.errors import ModelError
from gossamer.intake.onnx_file import load
from gossamer.nouns.model import Model
from gossamer.training.lower import lower
from gossamer.training.write_back import write_back

_SOURCE = "model"  # where a module keeps the graph that it was made from


def to_torch(model: Any) -> fx.GraphModule:
    """A model as a torch module in eval mode; see `lower` for what its parameters are.

    Args:
        model: a path, or whatever else `gossamer.load` takes.

    Raises:
        ModelError: it cannot be read, or an operator has no counterpart in torch.
    """
    source = load(model)
    module = lower(source)
    module.meta[_SOURCE] = source
    return module


def from_torch(module: nn.Module) -> Model:
    """The model that a module came from, with the module's values; or from inside what wraps it, such as DDP.

    Raises:
        ModelError: no part of the module came from `to_torch`, or several did; or its values cannot be written back.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"got a {type(module).__name__}; give a module that gossamer.to_torch made")
    ours = [part for part in module.modules() if isinstance(part, fx.GraphModule) and _SOURCE in part.meta]
    if len(ours) != 1:
        found = len(ours) or "none"
        raise ModelError(
            f"a {type(module).__name__} holds {found} of the modules that to_torch makes; give the one to write back, "
            "or export another module with gossamer.load_torch"
        )
    return write_back(ours[0], ours[0].meta[_SOURCE])
