"""Little timing, for tests in which which candidate is faster by a few percent decides nothing."""

from __future__ import annotations

import pytest

from gossamer import blame, comparison, search, trials
from gossamer.measuring.latency import Timing


def time_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rounds for every race."""
    monkeypatch.setattr(trials, "TRIAL", Timing(budget_s=0.1, precision=0.05))
    monkeypatch.setattr(trials, "PROOF", Timing(budget_s=0.2, precision=0.02))
    monkeypatch.setattr(comparison, "PROOF", Timing(budget_s=0.2, precision=0.02))
    monkeypatch.setattr(trials, "FINAL", Timing(budget_s=0.3, precision=0.02))
    monkeypatch.setattr(blame, "RACE_S", 0.3)


def first_round_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No candidate that refines another."""
    monkeypatch.setattr(search, "refine", lambda *_: ())
    monkeypatch.setattr(search, "mend_by_rounding", lambda *_: ())
    monkeypatch.setattr(search, "round_by_loss", lambda *_: ())
    monkeypatch.setattr(search, "correct_in_order", lambda *_: ())
