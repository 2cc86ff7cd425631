from __future__ import annotations

import pytest

from gossamer.errors import OptionError
from gossamer.nouns.budget import Budget


@pytest.mark.parametrize("drop", [-0.01, 1.5, float("nan")])
def test_a_drop_outside_0_to_1_is_refused(drop: float) -> None:
    with pytest.raises(OptionError, match="allowed is 0 to 1"):
        Budget(max_drop=drop)


def test_an_unknown_aim_is_refused() -> None:
    with pytest.raises(OptionError, match="allowed are latency, size"):
        Budget(minimize="beauty")  # type: ignore[arg-type]
