"""Where a command's words go, and what its exit status says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from rich.console import Console

    from gossamer.nouns.record import Record

NOT_MET = 3
BAD_INPUT = 2


class Terminal:
    """Where words go: results to standard output, progress and warnings to standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.stdout = sys.stdout
        self.out: Console = Console(file=self.stdout)
        self.progress: Console = Console(stderr=True)

    def log_line(self, text: str) -> None:
        """A line of progress."""
        self.progress.print(f"  {text}", style="dim", markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that is the result."""
        self.stdout.write(text + "\n")

    def give(self, text: bytes) -> None:
        """The one JSON object."""
        self.stdout.write(text.decode().strip() + "\n")

    def finish(self, record: Record, json: bool) -> None:
        """Show a record and leave with its exit status."""
        from gossamer.report.text import print_record

        if json:
            self.give(record.to_json())
        else:
            print_record(record, self.out)
        if not record.met:
            raise typer.Exit(NOT_MET)

    def finish_comparison(self, comparison: Any, json: bool) -> None:
        """Show a comparison and leave with its exit status."""
        import msgspec

        from gossamer.report.text import print_comparison

        if json:
            self.give(msgspec.json.encode(comparison))
        else:
            print_comparison(comparison, self.out)
        if not comparison.met:
            raise typer.Exit(NOT_MET)


@contextmanager
def reporting() -> Iterator[Terminal]:
    """Turn every error a person can mend into one line on standard error and exit status 2."""
    terminal = Terminal()
    try:
        with redirect_stdout(sys.stderr):  # a person's own metric or loader may print; ours goes through the terminal
            yield terminal
    except GossamerError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(BAD_INPUT) from None
    except OSError as error:  # a disk or file that fails where nobody expected it
        sys.stderr.write(f"error: {error.filename or 'the system'}: {error.strerror or error}\n")
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before anything was ready\n")
        raise typer.Exit(130) from None
