"""Zeros that appear while weights are trained, in one run; see `contract`."""
