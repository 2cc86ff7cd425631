"""Shared: the weights of several layers are one."""

from __future__ import annotations

import msgspec
import numpy as np

from gossamer.arith.forms import Dense
from gossamer.errors import OptionError


class Shared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="shared"):
    """The tensors of several layers, stacked along G by the caller, are forced equal."""

    def project(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> Dense:
        """The nearest equal weights: their mean over G, G times.

        Raises:
            OptionError: there is only one layer.
        """
        obstacle = self.obstacle(w_GOK.shape)
        if obstacle:
            raise OptionError(f"shared: {obstacle}")
        mean_1OK = w_GOK.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
        return Dense(mean_1OK.repeat(len(w_GOK), axis=0))

    def contains(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> bool:
        """Whether all layers have equal weights."""
        return len(w_GOK) > 1 and bool(np.allclose(w_GOK, w_GOK[:1], rtol=1e-6, atol=0.0))

    def obstacle(self, shape_GOK: tuple[int, ...], k_shape: tuple[int, ...] = ()) -> str:
        """Why the constraint cannot apply to a shape, or ""."""
        return "" if shape_GOK[0] > 1 else "one layer alone has nothing to share; stack the weights of two or more"
