"""Budget: what the result must keep, and what to make small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gossamer.errors import OptionError

Minimize = Literal["latency", "size"]


@dataclass(frozen=True)
class Budget:
    """The accuracy floor, the aim, and how long to try.

    Attributes:
        max_drop: largest allowed fall of the metric, absolute (0.01 = one point of top-1).
        minimize: what the chosen candidate is best in, among those that meet the floor.
        confident: test the floor on the confidence interval's bound instead of the point estimate.
        time_limit_s: seconds after which no candidate is begun and the best so far is verified; None for no limit.
    """

    max_drop: float = 0.01
    minimize: Minimize = "latency"
    confident: bool = False
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_drop, (int, float)) or not 0 <= self.max_drop <= 1:
            raise OptionError(f"max_drop is {self.max_drop!r}; allowed is 0 to 1, absolute: 0.01 is one point")
        if self.minimize not in ("latency", "size"):
            raise OptionError(f"minimize is {self.minimize!r}; allowed are latency, size")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise OptionError(f"time_limit_s is {self.time_limit_s}; allowed is more than 0 seconds, or None")
