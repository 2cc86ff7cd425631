"""The picture's axes: latency where speed is the aim, bytes on a logarithmic scale where bytes are."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from tests.report.records import sample_record

from gossamer.report.picture import figure


def drawn(minimize: str) -> dict[str, Any]:
    made = msgspec.structs.replace(sample_record(), minimize=minimize)
    return figure(made, made.candidates)


@pytest.mark.parametrize("minimize", ["size", "download"])
def test_bytes_are_the_axis_where_bytes_are_the_aim(minimize: str) -> None:
    found, made = drawn(minimize), sample_record()
    axis = found["layout"]["xaxis"]
    assert axis["type"] == "log" and axis["title"]["text"] == "bytes, % of the original's"
    (chosen,) = [trace for trace in found["data"] if trace.get("name") == "chosen"]
    facts = next(one.facts for one in made.candidates if one.plan.name == made.chosen)
    assert facts is not None
    assert chosen["x"] == [pytest.approx(100 * facts.bytes.result / made.bytes.original)]
    low, high = axis["range"]
    for trace in found["data"]:
        assert all(low <= math.log10(x) <= high for x in trace["x"])
    for note in found["layout"]["annotations"][1:]:
        assert low <= note["x"] <= high


def test_latency_is_the_axis_otherwise() -> None:
    found = drawn("latency")
    assert found["layout"]["xaxis"]["title"]["text"] == "latency, % of the original's"
    assert found["layout"]["xaxis"]["range"][0] == 0 and "type" not in found["layout"]["xaxis"]
