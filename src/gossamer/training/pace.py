"""How fast a twin is trained: rates relative to how large numbers are, as everything there differs in size."""

from __future__ import annotations

import msgspec
from torch import fx

from gossamer.nouns.model import Model
from gossamer.training.operators.fake_quantize import DOMAIN
from gossamer.training.options import Options

RATE = 1e-3  # of weights in steps of their grid; a range test fails, as a twin begins at the bottom of the loss
LOG_SLOT = 3  # of a FakeQuantize: the logarithm of its step
STEP_SHARE = 0.1  # of the learning rate: steps that run ahead of their integers harm
RATE_FOR_BITS, STEP_SHARE_FOR_BITS = 1e-2, 3.0  # where bits are paid for: integers have far to go, and steps farther
LEAST_MEAN = 1e-3  # of biases that begin at zero
FLOAT_SHARE = 0.5  # of a float weight's mean size: about what a step is to weights of 4 bits


def at_pace(module: fx.GraphModule, graph: Model, options: Options, for_bits: bool) -> Options:
    """Let what a twin has in float move by as small a share of itself as what is in integers; steps have a share, too.

    A model all in float stays as it is.

    Args:
        module: what `lower` made of the graph; its parameters get a `rate_ratio`.
        for_bits: whether a penalty makes integers pay for their bits.

    Returns:
        The options with the usual rate, if they had none.
    """
    if not any(node.domain == DOMAIN for node in graph.ir.graph):
        return options
    parameters = dict(module.named_parameters())
    for path, name in module.meta["initializers"].items():
        uses = graph.ir.graph.initializers[name].uses()
        if path in parameters and any(node.op_type == "FakeQuantize" and slot == LOG_SLOT for node, slot in uses):
            parameters[path].rate_ratio = STEP_SHARE_FOR_BITS if for_bits else STEP_SHARE  # type: ignore[attr-defined]
        elif path in parameters and not any(node.domain == DOMAIN for node, _ in uses):
            mean = float(parameters[path].detach().abs().mean())
            parameters[path].rate_ratio = FLOAT_SHARE * max(mean, LEAST_MEAN)  # type: ignore[attr-defined]
    if options.rate is not None:
        return options
    return msgspec.structs.replace(options, rate=RATE_FOR_BITS if for_bits else RATE)
