"""Shared: the mean is nearest, and one layer alone shares nothing."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.constraints.shared import Shared
from gossamer.errors import OptionError


def test_the_mean_is_nearest() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    real = Shared().project(w).w_GOK
    assert real.dtype == np.float32 and real.shape == w.shape and Shared().contains(real)
    np.testing.assert_allclose(real[1], w.mean(axis=0), rtol=1e-5)
    assert not Shared().contains(w)


def test_one_layer_alone() -> None:
    with pytest.raises(OptionError, match="one layer alone has nothing to share; stack the weights of two or more"):
        Shared().project(np.ones((1, 2, 3), np.float32))
