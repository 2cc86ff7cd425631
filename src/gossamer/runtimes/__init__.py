"""One file a runtime: open, run, what it fuses, what it supports."""
