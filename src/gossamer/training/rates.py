"""Rates by name: which weights learn at which share of the learning rate, and which stay as they are.

body:0              everything but the last layer is frozen
body:0.1            everything but the last layer learns ten times as slowly
layer1*:0,layer2*:0.1
falling:0.8         each layer learns at 0.8 of the rate of the one behind it, the last one at the full rate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import fx, nn

from gossamer.errors import ModelError, OptionError
from gossamer.graph.new_head import find_head
from gossamer.nouns.model import Model
from gossamer.training.options import RatePart, rates_of
from gossamer.training.twin import readers_of

BODY, FALLING = "body", "falling"


class Named(NamedTuple):
    """A parameter and what a pattern may call it by.

    Attributes:
        names: its initializer's, and those of the nodes that read it, through quantizers or not.
        depth: layers behind it, up to the last one.
    """

    parameter: nn.Parameter
    names: tuple[str, ...]
    depth: int


def set_rates(module: fx.GraphModule, model: Model, rates: str) -> str:
    """Give parameters their shares of the learning rate; returns what that means, in a line.

    A share of 0 freezes: no gradient, and a BatchNormalization whose scale and bias are both frozen uses and keeps its
    running statistics in training, too. Shares that parameters have already (`rate_ratio`) are multiplied.

    Args:
        module: what `lower` made of the model.
        rates: see `options.rates_of`; of several parts that name a weight, the last one counts.

    Raises:
        OptionError: a part that names no weight, with the names nearest to it; or all of them are frozen.
        ModelError: body, and the last layer is not found.
    """
    parts = rates_of(rates)
    if not parts:
        return ""
    named = _parameters(module, model)
    shares = _shares(parts, named, model)
    for path, share in shares.items():
        parameter = named[path].parameter
        if share == 0:
            parameter.requires_grad_(False)
        elif share != 1:
            parameter.rate_ratio = share * getattr(parameter, "rate_ratio", 1.0)  # type: ignore[attr-defined]
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise OptionError(f"rates {rates} freezes all weights of {model.name}; leave one part above 0")
    held = _hold_statistics(module, {path for path, share in shares.items() if share == 0})
    return _told(shares, held)


def _shares(parts: Sequence[RatePart], named: Mapping[str, Named], model: Model) -> dict[str, float]:
    """Each parameter's share, by path."""
    shares = dict.fromkeys(named, 1.0)
    for pattern, share in parts:
        if pattern == FALLING:
            shares.update({path: share**one.depth for path, one in named.items()})
            continue
        chosen = _body(named, model) if pattern == BODY else _matching(pattern, named, model.name)
        shares.update(dict.fromkeys(chosen, share))
    return shares


def _body(named: Mapping[str, Named], model: Model) -> list[str]:
    """All but the last layer's."""
    try:
        head = {node.name for node in find_head(model).nodes}
    except ModelError as error:
        raise ModelError(f"rates body: {error}") from error
    return [path for path, one in named.items() if head.isdisjoint(one.names)]


def _matching(pattern: str, named: Mapping[str, Named], where: str) -> list[str]:
    found = [path for path, one in named.items() if any(fnmatchcase(name, pattern) for name in one.names)]
    if not found:
        near = get_close_matches(pattern, [name for one in named.values() for name in one.names], 1)
        hint = f"; did you mean {near[0]}?" if near else "; `gossamer inspect` lists the names"
        raise OptionError(
            f"rates: {pattern!r} names no weight or layer with weights of {where}{hint}; "
            f"allowed are patterns such as 'layer1*', {BODY} (all but the last layer) and {FALLING}"
        )
    return found


def _parameters(module: fx.GraphModule, model: Model) -> dict[str, Named]:
    """The module's parameters by path; those of subgraphs are called by their path."""
    graph, initializers = model.ir.graph, module.meta["initializers"]
    place = {node: index for index, node in enumerate(graph)}
    readers = {path: readers_of(graph.initializers[name]) for path, name in initializers.items()}
    first = {path: min((place[node] for node in nodes if node in place), default=-1) for path, nodes in readers.items()}
    parameters = dict(module.named_parameters())
    layers = {first.get(path, -1) for path, parameter in parameters.items() if parameter.ndim > 1}
    return {
        path: Named(
            parameter,
            (str(initializers.get(path, path)), *(str(node.name) for node in readers.get(path, ()))),
            sum(layer > first.get(path, -1) for layer in layers),
        )
        for path, parameter in parameters.items()
    }


def _hold_statistics(module: fx.GraphModule, frozen: set[str]) -> int:
    """Let norms whose parameters are all frozen be as they are in use; returns how many."""
    parameters = {path for path, _ in module.named_parameters()}
    held = 0
    for node in module.graph.nodes:
        own = {source.target for source in node.all_input_nodes if source.op == "get_attr"} & parameters
        if node.op == "call_function" and "training" in node.kwargs and own and own <= frozen:
            node.update_kwarg("training", False)
            held += 1
    if held:
        module.recompile()
    return held


def _told(shares: Mapping[str, float], held: int) -> str:
    """How many weights learn at which share."""
    counts = Counter(shares.values())
    words = [f"{counts[share]} at {share:g} of the rate" for share in sorted(counts, reverse=True) if share]
    frozen = f"; {counts[0.0]} are frozen" if counts[0.0] else ""
    norms = f", with the statistics of {held} norms" if held else ""
    return f"of {len(shares)} weights and biases {', '.join(words)}{frozen}{norms}"
