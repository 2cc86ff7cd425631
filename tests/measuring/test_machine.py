"""The machine: every field is filled, on any system."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import gossamer
from gossamer.measuring import machine
from gossamer.nouns.record import Machine


def test_describe_survives_json() -> None:
    found = machine.describe()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Machine) == found


def test_describe_tells_what_is_installed() -> None:
    found = machine.describe()
    assert found.cores >= 1
    assert found.processor
    assert found.versions["numpy"] == np.__version__
    assert found.versions["onnxruntime"] == onnxruntime.__version__
    assert found.versions["gossamer"] == gossamer.__version__


def test_instruction_sets_are_read_by_whole_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = "processor : 0\nmodel name : Some CPU @ 2 GHz\nflags : fpu avx2 avx512_vnni amx_int8x\n"
    text = f"{first}\nprocessor : 1\nflags : fma\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = machine.describe()
    assert found.processor == "Some CPU @ 2 GHz"
    assert found.instruction_sets == ("avx2", "avx512_vnni")


def test_without_cpuinfo_the_lists_are_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")
    assert machine.describe().instruction_sets == ()
    assert machine.describe().processor


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_peak_memory_is_in_bytes() -> None:
    block = np.ones(50_000_000, np.uint8)
    assert len(block) < machine.peak_rss_bytes() < 100_000_000_000
