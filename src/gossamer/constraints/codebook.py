"""Codebook: few values, or few vectors, that all weights share."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np

from gossamer.arith.forms import Indexed
from gossamer.arith.kmeans import nearest_entries, nearest_vectors, scalar_tables, vector_tables
from gossamer.errors import OptionError


class Codebook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="codebook"):
    """Every weight is one of k values of a table; with a dimension d above 1, every d consecutive weights along K are
    one of its k vectors (product quantization, Jégou et al. 2011, "Product quantization for nearest neighbor search").

    Attributes:
        k: entries of a table, 2 to 65,536; fewer are stored where a table has fewer weights to stand for.
        scope: one table for the tensor, or one for every output channel.
        dimension: of an entry.
        rate: see `Grid`.
    """

    k: Annotated[int, msgspec.Meta(ge=2, le=65536)]
    scope: Literal["tensor", "channel"] = "tensor"
    dimension: Annotated[int, msgspec.Meta(ge=1)] = 1
    rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def project(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = (), kept_GOV: np.ndarray | None = None) -> Indexed:
        """The nearest shared values: k-means, optimal or close to it for d = 1. Shared values stay exactly as they are.

        Args:
            w_GOK: finite floats (G, O, K); K is a multiple of d, see `obstacle`.
            kept_GOV: which vectors may differ from zero. If given, every table has an entry that is zero.

        Raises:
            OptionError: the constraint cannot apply to this shape, see `obstacle`.
        """
        return self.weighted(w_GOK, None, kept_GOV)

    def weighted(self, w_GOK: np.ndarray, weight_GOK: np.ndarray | None, kept_GOV: np.ndarray | None = None) -> Indexed:
        """As `project`, with the squared error of every weight counted so many times, not less than 0."""
        obstacle = self.obstacle(w_GOK.shape)
        if obstacle:
            raise OptionError(f"codebook: {obstacle}")
        vectors = self._rows(np.asarray(w_GOK, np.float32))
        weight = None if weight_GOK is None else self._rows(weight_GOK)
        kept_TV = None if kept_GOV is None else kept_GOV.reshape(vectors.shape[:2])
        k = min(self.k, vectors.shape[1] + (kept_TV is not None))
        if kept_TV is None:
            tables = _tables(vectors, k, weight)
        else:
            tables = _tables_and_zero(vectors, k, weight, kept_TV)
        if self.dimension == 1:
            indices = nearest_entries(vectors[:, :, 0].astype(np.float64), tables[:, :, 0].astype(np.float64))
        else:
            indices = nearest_vectors(vectors, tables, weight)
        if kept_TV is not None:
            zero_T1 = np.abs(tables).sum(axis=2).argmin(axis=1)[:, None]
            indices = np.where(kept_TV, indices, zero_T1)
        return Indexed(self.stored_indices(indices.reshape(*w_GOK.shape[:2], -1)), tables)

    def contains(self, w_GOK: np.ndarray, k_shape: tuple[int, ...] = ()) -> bool:
        """Whether no table needs more than k entries."""
        if self.obstacle(w_GOK.shape, k_shape):
            return False
        real = np.asarray(w_GOK, np.float32)
        found = self.project(real).real()
        return bool(np.array_equal(found, real))

    def obstacle(self, shape_GOK: tuple[int, ...], k_shape: tuple[int, ...] = ()) -> str:
        """One line why weights of this shape cannot be shared so; "" if they can."""
        width = shape_GOK[2]
        if 0 in shape_GOK:
            return f"shape {tuple(shape_GOK)} holds no weights"
        if width % self.dimension:
            return f"a codebook of {self.dimension}-vectors needs rows that are a multiple of that, not {width} wide"
        return ""

    def _rows(self, w_GOK: np.ndarray) -> np.ndarray:
        """The vectors that share a table, (T, V, d)."""
        tables = w_GOK.shape[0] * w_GOK.shape[1] if self.scope == "channel" else 1
        return np.ascontiguousarray(w_GOK).reshape(tables, -1, self.dimension)

    def stored_indices(self, indices_GOV: np.ndarray) -> np.ndarray:
        """Indices in the type that they are stored in: uint8 up to 256 entries, else uint16."""
        return indices_GOV.astype(np.uint8 if self.k <= 256 else np.uint16)


def _tables(vectors_TVD: np.ndarray, k: int, weight: np.ndarray | None) -> np.ndarray:
    if vectors_TVD.shape[2] > 1:
        return vector_tables(vectors_TVD, k, weight).astype(np.float32)
    weight_TV = None if weight is None else weight[:, :, 0]
    return scalar_tables(vectors_TVD[:, :, 0], k, weight_TV)[:, :, None].astype(np.float32)


def _tables_and_zero(vectors_TVD: np.ndarray, k: int, weight: np.ndarray | None, kept_TV: np.ndarray) -> np.ndarray:
    """Tables of k - 1 entries for the kept vectors, and zero. The others count for nothing, and stand as copies."""
    kept_TV = kept_TV & vectors_TVD.any(axis=2)  # those that are zero need no entry but that one
    first_T11 = kept_TV.argmax(axis=1)[:, None, None]
    filled = np.where(kept_TV[:, :, None], vectors_TVD, np.take_along_axis(vectors_TVD, first_T11, axis=1))
    none_T = ~kept_TV.any(axis=1)
    filled[none_T] = 0
    counted = np.where(kept_TV[:, :, None], 1.0 if weight is None else weight, 0.0)
    tables = _tables(filled, k - 1, np.broadcast_to(counted, vectors_TVD.shape))
    tables = np.concatenate([tables, np.zeros_like(tables[:, :1])], axis=1)
    return np.sort(tables, axis=1) if tables.shape[2] == 1 else tables
