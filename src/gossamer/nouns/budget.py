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
        if not isinstance(self.confident, bool):
            raise OptionError(f"confident is {self.confident!r}; allowed are True and False")
        limit = self.time_limit_s
        if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
            raise OptionError(f"time_limit_s is {limit!r}; allowed is more than 0 seconds, or None")


def check_budget(budget: object) -> None:
    """A number or text in the place of a budget is a likely slip.

    Raises:
        OptionError: it is no Budget.
    """
    if not isinstance(budget, Budget):
        raise OptionError(f"budget is {budget!r}; give a gossamer.Budget, such as Budget(max_drop=0.01)")
