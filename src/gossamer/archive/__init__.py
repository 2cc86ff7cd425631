"""Models stored near their entropy: `pack` writes a .goss file, `reader` gives the same bytes back."""

from __future__ import annotations

from pathlib import Path

from gossamer.archive.reader import MAGIC

SUFFIX = ".goss"


def is_archive(path: Path) -> bool:
    """By its name, or by how it begins."""
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # whoever reads the file says why
        return False
