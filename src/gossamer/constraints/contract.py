"""What every constraint can do, the union of all, and how one is written in a line of text.

A constraint is a frozen value, tagged in JSON with its `type`. Weights are (G, O, K), see `arith.forms`.

    project(w_GOK, k_shape=()) -> Form       the nearest point of the set, without data; the same again for a result
    contains(w_GOK, k_shape=()) -> bool      within the rounding of float32
    obstacle(shape_GOK, k_shape=()) -> str   why it cannot apply to a shape, in one line, or ""

`k_shape` is what K was made of, (I, kh, kw) for a convolution. `project` raises OptionError with the obstacle's text.

In text, a name, its main number and options, with colons between them; two that hold at once with a plus sign:

    grid:4   grid:4:group=64   grid:8:tensor   grid:4:asymmetric
    sparse:0.7   sparse:2:4   sparse:0.5:block=4x1
    codebook:16   codebook:16:channel   codebook:256:dimension=4
    low_rank:32   low_rank:0.9 (a share of the energy)   low_rank:32:tucker
    shared   sparse:0.7+grid:4   sparse:0.7+codebook:16   low_rank:32+grid:8
    grid:8:tensor:rate=1e-7   codebook:16:rate=1e-7 (noise over signal that one bit of an archive is worth)
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gossamer.constraints.codebook import Codebook
from gossamer.constraints.composed import Composed
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.shared import Shared
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError

Constraint = Grid | Sparse | Codebook | LowRank | Shared | Composed

ALLOWED = {
    "grid": "2 to 8 or 16 bits, tensor, channel, input or group=N, symmetric or asymmetric, rate=R up to 1; "
    "for instance grid:4:group=64",
    "sparse": "a ratio below 1 with or without block=ROWSxCOLUMNS, or N:M; for instance sparse:0.7 or sparse:2:4",
    "codebook": "2 to 65536 entries, tensor or channel, dimension=N, rate=R up to 1; for instance codebook:16:channel",
    "low_rank": "a rank, or a share of the energy up to 1, svd, tucker or cp; for instance low_rank:32 or low_rank:0.9",
    "shared": "no options: shared",
}

WORDS = {  # fields as people say them
    "k": "entries",
    "granularity": "the size of a group",
    "energy_ratio": "the share of the energy",
    "ratio": "the ratio",
    "rank": "the rank",
    "rate": "the rate",
    "dimension": "the dimension",
}
BOUNDS = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}


def constraint_from_text(text: str) -> Constraint:
    """Read a constraint from a line such as "grid:4:group=64"; `as_text` writes it.

    Raises:
        OptionError: the text names no constraint, or one with options that it does not have.
    """
    parts = [_single(part.strip(), text) for part in text.split("+")]
    if len(parts) == 1:
        return parts[0]
    first, then = parts[0], parts[1]
    if len(parts) == 2 and type(first) is type(then):
        raise OptionError(f"constraint {text!r}: {_contradiction(first, then)}; give the one that is meant")
    if len(parts) > 2 or not isinstance(first, Sparse | LowRank) or not isinstance(then, Grid | Codebook):
        raise OptionError(
            f"constraint {text!r}: two can be joined: sparse and then grid or codebook, or low_rank and then grid; "
            "for instance sparse:0.7+grid:4"
        )
    try:
        return Composed(first, then)
    except OptionError as error:
        raise OptionError(f"constraint {text!r}: {error}") from None


def _contradiction(first: Constraint, then: Constraint) -> str:
    """What two constraints of one kind cannot both have."""
    if isinstance(first, Sparse) and isinstance(then, Sparse):
        shares = " and ".join(f"{100 * _zeros(each):g} %" for each in (first, then))
        return f"both say which weights of a tensor are zero, {shares} of them"
    return f"a tensor cannot be {as_text(first)} and {as_text(then)} at once"


def _zeros(sparse: Sparse) -> float:
    return (sparse.ratio or 0.0) if sparse.pattern is None else 1 - sparse.pattern[0] / sparse.pattern[1]


def as_text(constraint: Constraint) -> str:
    """The constraint in a line that `constraint_from_text` reads."""
    words: list[str | int]
    match constraint:
        case Composed(first=first, then=then):
            return f"{as_text(first)}+{as_text(then)}"
        case Grid(bits=bits, symmetric=symmetric, granularity=granularity, rate=rate):
            words = ["grid", bits, "" if symmetric else "asymmetric"]
            words.append(granularity if granularity in ("tensor", "input") else "")
            words.append(f"group={granularity}" if isinstance(granularity, int) else "")
            words.append(f"rate={rate!r}" if rate else "")
        case Sparse(pattern=(n, m)):
            words = ["sparse", n, m]
        case Sparse(ratio=ratio, block=(rows, columns)):
            words = ["sparse", repr(ratio), "" if rows == columns == 1 else f"block={rows}x{columns}"]
        case Codebook(k=k, scope=scope, dimension=width, rate=rate):
            words = ["codebook", k, scope if scope == "channel" else "", f"dimension={width}" if width > 1 else ""]
            words.append(f"rate={rate!r}" if rate else "")
        case LowRank(rank=rank, energy_ratio=ratio, split=split):
            words = ["low_rank", repr(ratio) if rank is None else rank, split if split != "svd" else ""]
        case _:
            words = ["shared"]
    return ":".join(str(word) for word in words if word != "")


def rate_of(constraint: Constraint) -> float:
    """Noise over signal of the layer's output that one bit is worth; 0 where bits do not count."""
    match constraint:
        case Grid(rate=rate) | Codebook(rate=rate) | Composed(then=Grid(rate=rate) | Codebook(rate=rate)):
            return rate
        case _:
            return 0.0


def _single(part: str, text: str) -> Grid | Sparse | Codebook | LowRank | Shared:
    name, *words = part.split(":")
    if name not in ALLOWED:
        allowed = ", ".join(ALLOWED)
        raise OptionError(f"constraint {text!r}: there is no {name!r}; allowed are {allowed}; for instance grid:4")
    try:
        fields = {"type": name, **_fields(name, words)}
        constraint: Grid | Sparse | Codebook | LowRank | Shared = msgspec.convert(
            fields, Grid | Sparse | Codebook | LowRank | Shared
        )
    except (ValueError, OptionError) as error:  # msgspec's ValidationError is a ValueError
        raise OptionError(f"constraint {text!r}: {_in_words(str(error))}; allowed are {ALLOWED[name]}") from None
    return constraint


def _in_words(said: str) -> str:
    """What is wrong with a value, in the words that constraints are written in."""
    said = " ".join(said.split())
    wrong = re.fullmatch(r"Invalid enum value (\S+) - at `\$\.(\w+)`", said)
    if wrong:
        return f"{WORDS.get(wrong[2], wrong[2])} cannot be {wrong[1]}"
    bound = re.fullmatch(r"Expected `\w+` ([<>]=?) (\S+) - at `\$\.(\w+)`", said)
    if bound:
        return f"{WORDS.get(bound[3], bound[3])} must be {BOUNDS[bound[1]]} {bound[2].removesuffix('.0')}"
    missing = re.fullmatch(r"Object missing required field `(\w+)`", said)
    return f"it does not say how many {WORDS.get(missing[1], missing[1])}" if missing else said


def _fields(name: str, words: list[str]) -> dict[str, Any]:
    """The fields that the words behind a name stand for; values are checked by whoever builds the constraint.

    Raises:
        ValueError: a word has no meaning there, or two say the same.
    """
    if name == "sparse" and len(words) > 1 and words[0].isdigit() and words[1].isdigit():
        words = [f"{words[0]}/{words[1]}", *words[2:]]
    fields: dict[str, Any] = {}
    for at, word in enumerate(words):
        key, value = _main(name, word) if at == 0 else _option(name, word)
        if key in fields:
            raise ValueError(f"{word!r} is one word too many")
        fields[key] = value
    return fields


def _main(name: str, word: str) -> tuple[str, Any]:
    whole = int(word) if re.fullmatch(r"[0-9]+", word) else None
    match name:
        case "grid" if whole is not None:
            return "bits", whole
        case "codebook" if whole is not None:
            return "k", whole
        case "low_rank" if whole is not None:
            return "rank", whole
        case "low_rank" if _is_number(word):
            return "energy_ratio", float(word)
        case "sparse" if "/" in word:
            return "pattern", tuple(int(count) for count in word.split("/"))
        case "sparse" if _is_number(word):
            return "ratio", float(word)
        case _:
            raise ValueError(f"{word!r} is no number" if name != "shared" else f"{word!r} is one word too many")


def _option(name: str, word: str) -> tuple[str, Any]:
    match name, word.partition("="):
        case "grid", ("tensor" | "channel" | "input", "", _):
            return "granularity", word
        case "grid", ("symmetric" | "asymmetric", "", _):
            return "symmetric", word == "symmetric"
        case "grid", ("group", "=", count) if count.isdigit():
            return "granularity", int(count)
        case "sparse", ("block", "=", size) if re.fullmatch(r"[0-9]+x[0-9]+", size):
            return "block", tuple(int(count) for count in size.split("x"))
        case "codebook", ("tensor" | "channel", "", _):
            return "scope", word
        case "codebook", ("dimension", "=", count) if count.isdigit():
            return "dimension", int(count)
        case "grid" | "codebook", ("rate", "=", number) if _is_number(number):
            return "rate", float(number)
        case "low_rank", ("svd" | "tucker" | "cp", "", _):
            return "split", word
    raise ValueError(f"{word!r} is no option of {name}")


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", word) is not None
