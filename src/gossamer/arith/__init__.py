"""Numpy only, no I/O: the single source of scales, rounding and histograms."""
