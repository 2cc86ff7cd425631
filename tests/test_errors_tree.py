"""The errors are one tree, the tree its docstring draws, and the package raises no others."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from gossamer import errors

SOURCE = Path(inspect.getfile(errors)).parent
# what Python's and typer's own protocols ask for (leaving the program, a missing attribute of a module, a bad option),
# and ValueError for a call that only our own code can make
ALLOWED = {"SystemExit", "AttributeError", "KeyboardInterrupt", "Exit", "BadParameter", "ValueError"}
CLASSES = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


def drawn_tree() -> dict[str, str]:
    """Class -> parent, as drawn by indentation in the module's docstring."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        words = line.split()
        if not line.startswith("    ") and not (words and words[0] in CLASSES):
            continue
        indent = len(line) - len(line.lstrip())
        above = [(depth, name) for depth, name in above if depth < indent]
        parents[words[0]] = above[-1][1] if above else "Exception"
        above.append((indent, words[0]))
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn_tree() == {name: value.__mro__[1].__name__ for name, value in CLASSES.items()}


def test_every_error_says_what_it_is_for() -> None:
    assert all(value.__doc__ for value in CLASSES.values())


def raised_names(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            target = node.exc.func
            names.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_errors_of_the_tree_are_raised(path: Path) -> None:
    classes = {name for name in raised_names(path.read_text()) if name[:1].isupper()}
    assert classes <= set(CLASSES) | ALLOWED
