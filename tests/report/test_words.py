"""Limits in words: what was promised, and which limit a result exceeds."""

from __future__ import annotations

import pytest
from tests.report.records import changed, sample_record

from gossamer.report import words


def test_limits_are_part_of_the_promise() -> None:
    record = changed(sample_record(), max_bytes=2_000_000, max_latency_ratio=0.5)
    assert words.floor_words(record).endswith("lower, at most 2.00 MB, at most 50.0 % of the latency")


@pytest.mark.parametrize("limit", ["max_bytes", "max_latency_ratio"])
def test_a_result_over_a_limit_says_so(limit: str) -> None:
    record = changed(sample_record(), met=False, **{limit: 1000 if limit == "max_bytes" else 0.01})
    told = words.headline(record)
    assert told.startswith("Limit not met: the result ") and "allowed" in told
    assert words.headline(changed(sample_record(), met=False)).startswith("Floor not met")
