from __future__ import annotations

import json

import pytest
from tests.report.records import constrained_record, sample_record

from gossamer.nouns.record import Record, record_from_json


@pytest.mark.parametrize("record", [sample_record(), constrained_record()])
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert record_from_json(record.to_json()) == record


def test_a_record_from_before_forecasts_is_read() -> None:
    old = json.loads(sample_record().to_json())
    del old["forecast"]
    assert record_from_json(json.dumps(old).encode()) == sample_record()
