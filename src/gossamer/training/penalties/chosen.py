"""The penalties that were asked for by name, made for the layers at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from gossamer.errors import OptionError
from gossamer.training.layer_weights import LayerWeight
from gossamer.training.penalties.contract import Penalty
from gossamer.training.penalties.group_lasso import GroupLasso
from gossamer.training.penalties.lasso import Lasso
from gossamer.training.penalties.mixture import Mixture
from gossamer.training.penalties.rate import Rate
from gossamer.training.penalties.weighted import Penalties, WeightedPenalty

PENALTIES = ("lasso", "group_lasso", "mixture", "rate")
OF_INTEGERS = ("rate",)  # the others are of floats and of integers
STRONGEST = 1000.0  # with 1, all weights together are worth as much as one nat of a cross-entropy
COMPONENTS = 16  # of a mixture
FEWEST, MOST = 2, 256


class Wanted(NamedTuple):
    """A penalty by name, its strength, and of a mixture how many components."""

    name: str
    strength: float
    components: int
    text: str


def parse(penalties: Sequence[str]) -> tuple[Wanted, ...]:
    """Penalties as they are spelled: `name:strength`, and `mixture:strength:components=16`.

    Raises:
        OptionError: an unknown name, one that comes twice, a strength that makes no sense, an option it has not.
    """
    wanted = tuple(_parse(spelled) for spelled in penalties)
    for index, one in enumerate(wanted):
        if any(one.name == other.name for other in wanted[:index]):
            raise OptionError(f"penalty {one.name} comes twice; give it once, with the strength that it is to have")
    return wanted


def build(wanted: Sequence[Wanted], layers: Sequence[LayerWeight]) -> Penalties | None:
    """The penalties of these layers; None if none was asked for.

    Raises:
        OptionError: there are no layers for them, or a penalty of integers finds none.
    """
    if not wanted:
        return None
    if not layers:
        names = ", ".join(one.text for one in wanted)
        raise OptionError(
            f"penalty {names}: no layer has weights of its own that it could act on (values of a codebook are shared "
            "already); leave it out, or train the float model"
        )
    return Penalties([WeightedPenalty(_made(one, layers), one.strength, one.text) for one in wanted], layers)


def _made(wanted: Wanted, layers: Sequence[LayerWeight]) -> Penalty:
    match wanted.name:
        case "lasso":
            return Lasso(layers)
        case "group_lasso":
            return GroupLasso(layers)
        case "rate":
            return Rate(layers)
        case _:
            return Mixture(layers, wanted.components)


def _parse(spelled: str) -> Wanted:
    name, *words = (part.strip() for part in spelled.split(":"))
    if name not in PENALTIES:
        near = get_close_matches(name, PENALTIES, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise OptionError(f"penalty {name!r} is unknown{hint} allowed are {', '.join(PENALTIES)}, such as lasso:0.1")
    strength = _number(words[0]) if words else math.nan
    if not 0 < strength <= STRONGEST:
        got = f"has the strength {words[0]!r}" if words else "has no strength"
        raise OptionError(
            f"penalty {name} {got}; allowed is a number above 0, up to {STRONGEST:g}, such as {name}:0.1 (with 1, all "
            "weights together cost about as much as one nat of a loss)"
        )
    components = COMPONENTS
    for word in words[1:]:
        components = _components(name, word)
    return Wanted(name, strength, components, ":".join((name, *words)))


def _components(name: str, word: str) -> int:
    key, _, text = word.partition("=")
    if name != "mixture" or key != "components":
        allowed = "; allowed is components=16" if name == "mixture" else "; it takes a strength alone"
        raise OptionError(f"{word!r} is no option of penalty {name}{allowed}")
    if not text.isdigit() or not FEWEST <= int(text) <= MOST:
        raise OptionError(f"penalty mixture has components={text}; allowed is a whole number from {FEWEST} to {MOST}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
