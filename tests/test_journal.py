"""A run that was killed at any moment goes on where it was, and repeats nothing that was finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest

from gossamer.errors import OutputError
from gossamer.journal import JOURNAL, WORK, Entry, Run, open_journal, workshop
from gossamer.nouns.plan import Plan, Step
from gossamer.nouns.record import Candidate
from gossamer.nouns.target import Target

RUN = Run("original", "calibrate", "select", "top1", Target(), {"onnxruntime": "1"})


def entry(name: str, sha256: str = "") -> Entry:
    return Entry(Candidate(Plan(name, (Step("fold_constants"),)), error="planted", seconds=1.5), sha256)


def test_what_was_added_is_recalled_by_the_same_run_only(tmp_path: Path) -> None:
    open_journal(tmp_path, RUN).add(entry("a"))
    again = open_journal(tmp_path, RUN)
    assert again.recall(entry("a").candidate.plan) == entry("a")
    assert again.recall(entry("b").candidate.plan) is None
    other = open_journal(tmp_path, Run("another", "calibrate", "select", "top1", Target(), {}))
    assert other.recall(entry("a").candidate.plan) is None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_costs_only_itself(tmp_path: Path, cut: int) -> None:
    journal = open_journal(tmp_path, RUN)
    journal.add(entry("a"))
    journal.add(entry("b"))
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole[:-cut])
    torn = open_journal(tmp_path, RUN)
    assert torn.recall(entry("a").candidate.plan) == entry("a")
    assert (torn.recall(entry("b").candidate.plan) is None) == (cut > 1)  # the last byte is the line's end
    torn.add(entry("c"))
    assert open_journal(tmp_path, RUN).recall(entry("c").candidate.plan) == entry("c")


def test_a_candidate_whose_file_is_gone_or_changed_is_measured_again(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, RUN)
    plan = entry("a").candidate.plan
    journal.file_of(plan).write_bytes(b"model")
    journal.add(entry("a", "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"))
    assert open_journal(tmp_path, RUN).recall(plan) is not None
    journal.file_of(plan).write_bytes(b"mode1")
    assert open_journal(tmp_path, RUN).recall(plan) is None
    journal.file_of(plan).unlink()
    assert open_journal(tmp_path, RUN).recall(plan) is None


def test_the_workshop_goes_unless_something_was_finished_in_it(tmp_path: Path) -> None:
    with workshop(tmp_path) as work:
        open_journal(work, RUN).add(entry("a"))
    assert not (tmp_path / WORK).exists()
    with pytest.raises(ZeroDivisionError), workshop(tmp_path) as work:
        open_journal(work, RUN)
        raise ZeroDivisionError
    assert not (tmp_path / WORK).exists()
    with pytest.raises(ZeroDivisionError), workshop(tmp_path) as work:
        open_journal(work, RUN).add(entry("a"))
        raise ZeroDivisionError
    assert (tmp_path / WORK / JOURNAL).exists()
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"), workshop(tmp_path / "taken"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL does not exist there")
def test_killed_at_random_moments_it_ends_all_the_same_and_repeats_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(files("gossamer.demo").joinpath("original.onnx").read_bytes())
    with files("gossamer.demo").joinpath("data.npz").open("rb") as file:
        data = np.load(file)
        np.savez(tmp_path / "data.npz", image=data["image"][:90], labels=data["labels"][:90])
    short = (
        "from gossamer import cli, trials; from gossamer.measuring.latency import Timing; "
        "trials.TRIAL = trials.PROOF = Timing(budget_s=0.05); cli.main()"
    )
    words = ["compress", "net.onnx", "--data", "data.npz", "-o", "out", "--max-drop", "20%"]
    command = [sys.executable, "-c", short, *words]
    journal = tmp_path / "out" / WORK / JOURNAL
    draw, seen = random.Random(0), 0
    for _ in range(4):
        child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.monotonic()  # kill it some time after it has written another line
        while child.poll() is None and time.monotonic() - begin < 60 and lines(journal) <= seen:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        for path in (tmp_path / "out").glob("*.onnx"):
            assert onnx.load(path).graph.node  # what has a final name is whole
        seen = max(seen, lines(journal))
    finished = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]] if journal.exists() else []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/record.json").read_text())
    tried = {candidate["plan"]["name"]: candidate for candidate in record["candidates"]}
    for one in finished:  # measured once: the very seconds of the killed run
        assert tried[one["candidate"]["plan"]["name"]]["seconds"] == one["candidate"]["seconds"]
    assert len(tried) >= 4
    assert not os.path.exists(tmp_path / "out" / WORK)


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
