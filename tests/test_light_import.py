"""Starting the program loads nothing heavy: a person who asks for help should not wait."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "plotly", "PIL")

IMPORT = "import gossamer"
HELP = """
import sys
sys.argv = ["gossamer", *{arguments!r}]
from gossamer.cli import main
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
"""


@pytest.mark.parametrize(
    "code",
    [IMPORT, HELP.format(arguments=["--help"]), HELP.format(arguments=["compress", "--help"])],
    ids=["import", "help", "compress-help"],
)
def test_start_loads_nothing_heavy(code: str) -> None:
    probe = f"{code}\nimport sys\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]


def test_the_public_functions_are_there() -> None:
    import gossamer

    for name in ("compress", "load", "measure", "plan", "apply", "verify"):
        assert callable(getattr(gossamer, name)), name
