"""What takes minutes: every operator's gradient, and whole networks. `make test-operators` runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("GOSSAMER_OPERATORS"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-operators"))
