"""Models stored near their entropy: `pack` writes a .goss file, `reader` gives the same bytes back."""

SUFFIX = ".goss"
