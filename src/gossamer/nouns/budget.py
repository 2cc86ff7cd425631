"""Budget: what the result must keep, and what to make small."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple, get_args

from gossamer.errors import OptionError
from gossamer.nouns.facts import Facts

Minimize = Literal["latency", "size", "download"]
UNITS = {"": 1, "b": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
LEAST_BARE = 1000  # a smaller whole number without a unit is as likely meant as a factor


@dataclass(frozen=True)
class Budget:
    """The accuracy floor, the aim, the limits, and how long to try.

    Attributes:
        max_drop: largest allowed fall of the metric, absolute (0.01 = one point of top-1).
        minimize: what the chosen candidate is best in, among those that meet the floor and the limits: latency, bytes
            on disk, or bytes of its archive (see `gossamer.pack`), which limits on bytes are about then, too.
        confident: test the floor on the confidence interval's bound instead of the point estimate.
        time_limit_s: seconds after which no candidate is begun and the best so far is verified; None for no limit.
        max_bytes: largest allowed bytes on disk; None for no limit.
        max_size_ratio: the same as a share of the original's bytes (0.25 = four times smaller).
        max_latency_ratio: largest allowed latency as a share of the original's (0.5 = twice as fast).
    """

    max_drop: float = 0.01
    minimize: Minimize = "latency"
    confident: bool = False
    time_limit_s: float | None = None
    max_bytes: int | None = None
    max_size_ratio: float | None = None
    max_latency_ratio: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_drop, (int, float)) or not 0 <= self.max_drop <= 1:
            raise OptionError(f"max_drop is {self.max_drop!r}; allowed is 0 to 1, absolute: 0.01 is one point")
        if self.minimize not in get_args(Minimize):
            raise OptionError(f"minimize is {self.minimize!r}; allowed are {', '.join(get_args(Minimize))}")
        if not isinstance(self.confident, bool):
            raise OptionError(f"confident is {self.confident!r}; allowed are True and False")
        limit = self.time_limit_s
        if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
            raise OptionError(f"time_limit_s is {limit!r}; allowed is more than 0 seconds, or None")
        if self.max_bytes is not None and not (_is_number(self.max_bytes, int) and self.max_bytes > 0):
            raise OptionError(f"max_bytes is {self.max_bytes!r}; allowed is a whole number of bytes above 0, or None")
        for name, share in (("max_size_ratio", self.max_size_ratio), ("max_latency_ratio", self.max_latency_ratio)):
            if share is not None and not (_is_number(share, (int, float)) and 0 < share <= 1):
                raise OptionError(f"{name} is {share!r}; allowed is above 0 to 1, a share of the original's, or None")
        if self.max_bytes is not None and self.max_size_ratio is not None:
            raise OptionError("max_bytes and max_size_ratio are both given; give one of them")

    def size_limit(self, original_bytes: int) -> int | None:
        """The largest allowed bytes on disk, given those of the original; None for no limit."""
        if self.max_size_ratio is not None:
            return int(self.max_size_ratio * original_bytes)
        return self.max_bytes

    def excess_ratio(self, facts: Facts) -> float:
        """How many times too large or too slow a result is, whichever is more; 1 within the limits, or without any."""
        limit_bytes, limit_ratio = self.size_limit(facts.bytes.original), self.max_latency_ratio
        too_large = 1.0 if limit_bytes is None else facts.bytes.result / limit_bytes
        too_slow = 1.0 if limit_ratio is None else 1 / (facts.latency_ms.ratio * limit_ratio)
        return max(1.0, too_large, too_slow)


class SizeLimit(NamedTuple):
    """One of the two, as `Budget` takes them."""

    max_bytes: int | None = None
    max_size_ratio: float | None = None


def check_budget(budget: object) -> None:
    """A number or text in the place of a budget is a likely slip.

    Raises:
        OptionError: it is no Budget.
    """
    if not isinstance(budget, Budget):
        raise OptionError(f"budget is {budget!r}; give a gossamer.Budget, such as Budget(max_drop=0.01)")


def size_from_text(text: str) -> SizeLimit:
    """`2MB`, `1.5 MiB`, `300000`, or a share of the original: `25%`, `1/4`, `0.25`, `4x`, `4x smaller`, `half`.

    Raises:
        OptionError: it is none of these, or out of range.
    """
    share = _share(text, "smaller")
    if share is not None:
        return SizeLimit(max_size_ratio=share)
    found = re.fullmatch(r"([\d_,]*\.?\d+)\s*([a-z]*)", text.strip().lower())
    number = float(found[1].replace(",", "").replace("_", "")) if found else 0.0
    unit = found[2] if found else ""
    size_bytes = int(number * UNITS.get(unit, 0))
    if size_bytes < 1 or (unit == "" and size_bytes < LEAST_BARE):
        raise OptionError(
            f"{text!r} is no size; write 2MB, 500kB or bytes, or of the original 25%, 1/4 or '4x smaller'"
        )
    return SizeLimit(max_bytes=size_bytes)


def latency_from_text(text: str) -> float:
    """`50%`, `1/2`, `0.5`, `2x`, `2x faster` or `half`: the share of the original's latency.

    Raises:
        OptionError: it is none of these, or out of range.
    """
    share = _share(text, "faster")
    if share is None:
        raise OptionError(f"{text!r} is no share of the original's latency; write 50%, 1/2, 0.5 or '2x faster'")
    return share


def _share(text: str, word: str) -> float | None:
    """A share above 0 and up to 1; None where the text is none."""
    plain = " ".join(text.lower().removesuffix(word).split())
    if plain == "half":
        return 0.5
    number = r"(\d+\.?\d*|\.\d+)"
    if found := re.fullmatch(rf"{number} ?%", plain):
        return _in_range(float(found[1]) / 100, text)
    if found := re.fullmatch(rf"{number} ?x", plain):
        return _in_range(1 / float(found[1]) if float(found[1]) else 0.0, text)
    if found := re.fullmatch(r"(0?\.\d+|1\.0*)", plain):
        return _in_range(float(found[1]), text)
    if found := re.fullmatch(rf"{number} ?/ ?{number}", plain):
        return _in_range(float(found[1]) / float(found[2]) if float(found[2]) else 0.0, text)
    return None


def _in_range(share: float, text: str) -> float:
    if not 0 < share <= 1:
        raise OptionError(f"{text!r} is outside 0 to 100% of the original; write 25%, 1/4, 0.25 or 4x")
    return share


def _is_number(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and isfinite(value)  # type: ignore[arg-type]
