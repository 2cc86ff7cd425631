"""Penalties as they are spelled."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from tests.training.small_nets import net

from gossamer.errors import OptionError
from gossamer.training.penalties.chosen import build, parse


def test_what_is_spelled_is_built() -> None:
    wanted = parse(["lasso:1e-4", "group_lasso:0.5", "mixture:1e-3:components=8"])
    assert [(one.name, one.strength, one.components) for one in wanted] == [
        ("lasso", 1e-4, 16),
        ("group_lasso", 0.5, 16),
        ("mixture", 1e-3, 8),
    ]
    built = build(wanted, net().layers)
    assert built is not None and built.described() == "lasso:1e-4, group_lasso:0.5, mixture:1e-3:components=8"
    assert [type(one).__name__ for one in built.each] == ["Lasso", "GroupLasso", "Mixture"]
    assert build((), net().layers) is None


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        (
            ["laso:1"],
            "penalty 'laso' is unknown, did you mean lasso. allowed are lasso, group_lasso, mixture, rate, such",
        ),
        (["lasso"], "penalty lasso has no strength; allowed is a number above 0, up to 1000, such as lasso:0.1"),
        (["lasso:-1"], "penalty lasso has the strength '-1'; allowed is a number above 0"),
        (["lasso:0"], "penalty lasso has the strength '0'"),
        (["lasso:much"], "penalty lasso has the strength 'much'"),
        (["lasso:nan"], "penalty lasso has the strength 'nan'"),
        (["lasso:inf"], "penalty lasso has the strength 'inf'"),
        (["lasso:1e9"], r"penalty lasso has the strength '1e9'.*\(with 1, all weights together cost about as much as"),
        (["lasso:1", "mixture:1", "lasso:2"], "penalty lasso comes twice; give it once"),
        (["lasso:1:components=4"], "'components=4' is no option of penalty lasso; it takes a strength alone"),
        (["mixture:1:parts=4"], "'parts=4' is no option of penalty mixture; allowed is components=16"),
        (["mixture:1:components=1"], "penalty mixture has components=1; allowed is a whole number from 2 to 256"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(spelled: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        parse(spelled)
    assert "\n" not in str(caught.value)


def test_no_layers_and_no_integers_are_said() -> None:
    with pytest.raises(OptionError, match=r"penalty lasso:1: no layer has weights of its own that it could act on"):
        build(parse(["lasso:1"]), ())
    with pytest.raises(OptionError, match="penalty rate is of integers, and no weight has any; add a grid"):
        build(parse(["rate:1"]), net().layers)
