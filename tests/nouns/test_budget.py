from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import OptionError
from gossamer.nouns.budget import Budget, SizeLimit, latency_from_text, size_from_text


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


@pytest.mark.parametrize("size", [0, -5, 2.5, "2MB", True])
def test_a_limit_that_is_no_number_of_bytes_is_refused(size: object) -> None:
    with pytest.raises(OptionError, match="allowed is a whole number of bytes above 0"):
        Budget(max_bytes=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_size_ratio", "max_latency_ratio"])
@pytest.mark.parametrize("share", [0, 1.5, float("nan"), "25%", True])
def test_a_share_outside_0_to_1_is_refused(name: str, share: object) -> None:
    with pytest.raises(OptionError, match=f"{name} is .* allowed is above 0 to 1"):
        Budget(**{name: share})  # type: ignore[arg-type]


def test_two_limits_on_size_are_refused() -> None:
    with pytest.raises(OptionError, match="both given; give one"):
        Budget(max_bytes=1000, max_size_ratio=0.5)


@given(st.integers(1, 10**12), st.floats(0.01, 1))
def test_a_budget_comes_back_from_json(size: int, share: float) -> None:
    for budget in (Budget(max_bytes=size, max_latency_ratio=share), Budget(minimize="size", max_size_ratio=share)):
        assert msgspec.json.decode(msgspec.json.encode(budget), type=Budget) == budget


def test_the_limit_in_bytes_follows_from_the_original() -> None:
    assert Budget().size_limit(1000) is None
    assert Budget(max_bytes=300).size_limit(1000) == 300
    assert Budget(max_size_ratio=0.25).size_limit(1001) == 250


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("2MB", SizeLimit(2_000_000)),
        ("1.5 MiB", SizeLimit(1_572_864)),
        ("10 KB", SizeLimit(10_000)),
        ("300000", SizeLimit(300_000)),
        ("1,200 bytes", SizeLimit(1200)),
        ("25%", SizeLimit(None, 0.25)),
        ("1/4", SizeLimit(None, 0.25)),
        ("0.25", SizeLimit(None, 0.25)),
        ("4x smaller", SizeLimit(None, 0.25)),
        ("4X", SizeLimit(None, 0.25)),
        ("half", SizeLimit(None, 0.5)),
    ],
)
def test_sizes_in_text(text: str, limit: SizeLimit) -> None:
    assert size_from_text(text) == limit


@pytest.mark.parametrize("text", ["", "big", "4", "2 XB", "-2MB", "0MB", "1/4 MB", "nan", "1e400MB"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is no size; write 2MB"):
        size_from_text(text)


@pytest.mark.parametrize("text", ["150%", "0%", "0.5x", "5/4", "1/0"])
def test_a_share_of_more_than_all_or_of_nothing_is_refused(text: str) -> None:
    for read in (size_from_text, latency_from_text):
        with pytest.raises(OptionError, match="outside 0 to 100% of the original"):
            read(text)


@pytest.mark.parametrize(
    ("text", "share"), [("50%", 0.5), ("1/2", 0.5), (".5", 0.5), ("2x faster", 0.5), ("Half", 0.5)]
)
def test_latencies_in_text(text: str, share: float) -> None:
    assert latency_from_text(text) == share


@pytest.mark.parametrize("text", ["5 ms", "fast", "2MB", "3"])
def test_a_text_that_is_no_share_of_latency_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is no share of the original's latency; write 50%"):
        latency_from_text(text)
