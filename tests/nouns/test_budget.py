from __future__ import annotations

import pytest

from gossamer.errors import OptionError
from gossamer.nouns.budget import Budget


@pytest.mark.parametrize("drop", [-0.01, 1.5, float("nan")])
def test_a_drop_outside_0_to_1_is_refused(drop: float) -> None:
    with pytest.raises(OptionError, match="allowed is 0 to 1"):
        Budget(max_drop=drop)


@pytest.mark.parametrize("limit", [0, -1.0, "5s"])
def test_a_time_limit_that_is_no_time_is_refused(limit: object) -> None:
    with pytest.raises(OptionError, match="allowed is more than 0 seconds"):
        Budget(time_limit_s=limit)  # type: ignore[arg-type]


def test_an_unknown_aim_is_refused() -> None:
    with pytest.raises(OptionError, match="allowed are latency, size"):
        Budget(minimize="beauty")  # type: ignore[arg-type]
