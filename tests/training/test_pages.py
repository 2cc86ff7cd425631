"""Freed memory is kept while training, and given back behind it."""

from __future__ import annotations

import resource
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from gossamer.training.pages import kept_pages  # noqa: E402


def faults() -> int:
    """Of pages, that 30 tensors of 4 MB cost, made and let go of in turns."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(30):
        torch.zeros(1_000_000).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no glibc")
def test_the_same_memory_is_used_again() -> None:
    with kept_pages():
        faults()  # what is kept must first be had
        assert faults() < 500  # 30,000 if every page were new


def test_what_goes_wrong_inside_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="inside"), kept_pages():
        raise ValueError("inside")
