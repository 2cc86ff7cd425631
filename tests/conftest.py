"""Settings for every test: one thread each, and the same examples on every run."""

from __future__ import annotations

import os

from hypothesis import settings

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when numpy and torch load; the runner already uses every core

# derandomize: a failure seen once is seen again; no deadline: the machine is shared, and slow is not wrong
settings.register_profile("gossamer", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("gossamer")
