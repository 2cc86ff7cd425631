"""A constraint in one line of text: it comes back, and a wrong line says what is allowed."""

from __future__ import annotations

import msgspec
import pytest

from gossamer.constraints.contract import Constraint, as_text, constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.low_rank import LowRank
from gossamer.constraints.sparse import Sparse
from gossamer.errors import OptionError

LINES = (
    "grid:4 grid:16:group=64 grid:8:tensor grid:4:asymmetric:input grid:4:asymmetric grid:2:asymmetric:group=32 "
    "sparse:0.7 sparse:2:4 sparse:0.0 "
    "sparse:1e-05 sparse:0.5:block=4x1 codebook:16 codebook:16:channel codebook:256:channel:dimension=4 "
    "low_rank:32 low_rank:0.9 low_rank:1.0 low_rank:32:tucker low_rank:4:cp shared sparse:0.7+grid:4 "
    "sparse:2:4+codebook:16 low_rank:32+grid:8:group=16"
).split()


@pytest.mark.parametrize("line", LINES)
def test_text_and_json_come_back(line: str) -> None:
    constraint = constraint_from_text(line)
    assert as_text(constraint) == line
    assert msgspec.json.decode(msgspec.json.encode(constraint), type=Constraint) == constraint


def test_words_mean_what_they_say() -> None:
    assert constraint_from_text("grid:4:asymmetric:group=64") == Grid(4, False, 64)
    assert constraint_from_text("grid:4:channel:symmetric") == Grid(4)
    assert constraint_from_text("sparse:0.5:block=4x1") == Sparse(0.5, block=(4, 1))
    assert constraint_from_text("low_rank:1") == LowRank(rank=1)
    assert constraint_from_text("low_rank:1.0") == LowRank(energy_ratio=1.0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gird:4", "there is no 'gird'; allowed are grid, sparse, codebook, low_rank, shared; for instance grid:4"),
        ("", "there is no ''"),
        ("grid", "it does not say how many bits; allowed are 2 to 8 or 16 bits"),
        ("grid:9", "bits cannot be 9; allowed are 2 to 8 or 16 bits, .* for instance grid:4:group=64"),
        ("grid:4:group=1", "the size of a group must be at least 2"),
        ("grid:-4", "'-4' is no number"),
        ("grid:4:grp=64", "'grp=64' is no option of grid"),
        ("grid:4:tensor:channel", "'channel' is one word too many"),
        ("sparse", "a ratio or a pattern"),
        ("sparse:1", "the ratio must be below 1"),
        ("sparse:4:2", "4:2 keeps 4 of 2 weights"),
        ("sparse:0.5:block=0x1", "rows and columns must be 1 or more"),
        ("codebook:1", "entries must be at least 2; allowed are 2 to 65536 entries"),
        ("low_rank:1.5", "the share of the energy must be at most 1"),
        ("low_rank:32:0.9", "'0.9' is no option of low_rank"),
        ("shared:3", "'3' is one word too many"),
        ("grid:4+sparse:0.5", "sparse and then grid or codebook, or low_rank and then grid; for instance sparse:0.7"),
        ("sparse:0.5+grid:4+grid:8", "two can be joined"),
        (
            "sparse:2:4+sparse:0.95",
            "both say which weights of a tensor are zero, 50 % and 95 % of them; give the one that is meant",
        ),
        ("grid:4+grid:8", "a tensor cannot be grid:4 and grid:8 at once; give the one that is meant"),
        ("low_rank:4+codebook:4", "'low_rank:4.codebook:4': low_rank goes with a grid"),
        ("sparse:0.5+grid:9", "bits cannot be 9; allowed are 2 to 8 or 16 bits"),
    ],
)
def test_a_wrong_line_says_what_is_allowed(line: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        constraint_from_text(line)
    assert "\n" not in str(caught.value) and line in str(caught.value)
