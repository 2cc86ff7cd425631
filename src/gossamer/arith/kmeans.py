"""Tables of k values, or of k vectors, that stand for many at the least weighted squared error.

Values on a line are grouped by dynamic programming over at most a thousand borders (Wang and Song 2011,
"Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming"), which is optimal where there are
fewer values than borders, then by Lloyd's method (Lloyd 1982, "Least squares quantization in PCM"), whose every step
costs a few look-ups in running sums. Vectors start from seeds spread as Arthur and Vassilvitskii 2007, "k-means++: the
advantages of careful seeding", say; the draws are the same at every call. Arrays named `_T...` hold one independent
problem an entry.
"""

from __future__ import annotations

import numpy as np

BORDERS = 128  # between which values are grouped: at least so many, and four an entry
PROGRAM_LIMIT = 2e8  # steps of dynamic programming; beyond, the table starts from the density of the values
CHUNK = 1 << 22  # numbers of a temporary array
SEED_LIMIT = 512  # larger tables of vectors are seeded by a plain draw
SAMPLE = 1 << 15  # vectors to train a table on, or 64 an entry, before all are used


def scalar_tables(x_TN: np.ndarray, k: int, weight_TN: np.ndarray | None = None) -> np.ndarray:
    """Ascending tables, float64 (T, k). Where a row has k values or fewer, its table is exactly these.

    Args:
        x_TN: finite floats.
        weight_TN: not negative; a row of zeros counts as a row of ones.
    """
    order_TN = np.argsort(x_TN, axis=1, kind="stable") if weight_TN is not None else None
    ascending_TN = np.sort(x_TN, axis=1) if order_TN is None else np.take_along_axis(x_TN, order_TN, axis=1)
    sorted_TN = ascending_TN.astype(np.float64)
    few_TK, count_T = _distinct(sorted_TN, k)
    if (count_T <= k).all():
        return few_TK
    mass_TN = np.ones_like(sorted_TN)
    if weight_TN is not None and order_TN is not None:
        mass_TN = np.take_along_axis(_positive(weight_TN), order_TN, axis=1)
    sums_3TN = _running_sums(sorted_TN, mass_TN)
    positions_TM = _borders(sorted_TN, max(BORDERS, 4 * k))
    steps = float(len(x_TN)) * positions_TM.shape[1] ** 2 * k
    if steps <= PROGRAM_LIMIT:
        start = _programmed(sums_3TN, positions_TM, k)
    else:
        start = _by_density(sorted_TN, sums_3TN, positions_TM, k)
    return np.where((count_T <= k)[:, None], few_TK, _lloyd(sorted_TN, sums_3TN, start))


def nearest_entries(x_TN: np.ndarray, tables_TK: np.ndarray) -> np.ndarray:
    """The entry of an ascending table that is nearest to each value, int (T, N)."""
    middles = (tables_TK[:, 1:] + tables_TK[:, :-1]) / 2
    return count_below(middles.astype(x_TN.dtype), x_TN)


def vector_tables(x_TND: np.ndarray, k: int, weight_TND: np.ndarray | None = None) -> np.ndarray:
    """Tables of vectors, float64 (T, k, D). Where a row has k different vectors or fewer, its table is exactly these.

    Args:
        x_TND: finite floats.
        weight_TND: of each component, not negative; None counts all alike.
    """
    few_TKD, count_T = _distinct_vectors(x_TND, k)
    if (count_T <= k).all():
        return few_TKD
    x_TND = x_TND.astype(np.float32) + np.float32(0)
    weight = np.ones_like(x_TND) if weight_TND is None else _positive(weight_TND).astype(np.float32)
    random = np.random.default_rng(0)
    sample = min(x_TND.shape[1], max(SAMPLE, 64 * k))
    chosen = np.sort(random.choice(x_TND.shape[1], sample, replace=False))
    tables = _seeds(x_TND[:, chosen], weight[:, chosen], k, random)
    tables = _vector_lloyd(x_TND[:, chosen], weight[:, chosen], tables, 20)
    if sample < x_TND.shape[1]:
        tables = _vector_lloyd(x_TND, weight, tables, 2)
    return np.where((count_T <= k)[:, None, None], few_TKD, tables)


def nearest_vectors(x_TND: np.ndarray, tables_TKD: np.ndarray, weight_TND: np.ndarray | None = None) -> np.ndarray:
    """The entry that is nearest to each vector, the first of equal ones, int (T, N)."""
    return _vector_distances(x_TND, tables_TKD, weight_TND)[0]


def _positive(weight: np.ndarray) -> np.ndarray:
    """Weights with a floor far below their largest, so that nothing is left without a say; float64."""
    weight = np.asarray(weight, np.float64)
    largest = weight.max(axis=tuple(range(1, weight.ndim)), keepdims=True, initial=0.0)
    return np.asarray(np.where(largest > 0, np.maximum(weight, 1e-9 * largest), 1.0))


def _distinct(sorted_TN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k different values of every ascending row, the last repeated to fill it, and how many there are."""
    new_TN = np.ones(sorted_TN.shape, bool)
    new_TN[:, 1:] = sorted_TN[:, 1:] != sorted_TN[:, :-1]
    count_T = new_TN.sum(axis=1)
    rank_TN = np.cumsum(new_TN, axis=1) - 1
    rows, columns = np.nonzero(new_TN & (rank_TN < k))
    table_TK = np.repeat(sorted_TN[:, -1:], k, axis=1)
    table_TK[rows, rank_TN[rows, columns]] = sorted_TN[rows, columns]
    return table_TK, count_T


def _distinct_vectors(x_TND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_distinct`, of vectors; a hash of 64 bits tells them apart. A look at the first few spares most the rest."""
    first = _hashes(x_TND[:, : 8 * k + 64])
    count_T = 1 + (np.diff(np.sort(first, axis=1), axis=1) != 0).sum(axis=1)
    if (count_T > k).all():
        return np.zeros((len(x_TND), k, x_TND.shape[2])), count_T
    hashes_TN = _hashes(x_TND)
    order_TN = np.argsort(hashes_TN, axis=1, kind="stable")
    sorted_TN = np.take_along_axis(hashes_TN, order_TN, axis=1)
    new_TN = np.ones(sorted_TN.shape, bool)
    new_TN[:, 1:] = sorted_TN[:, 1:] != sorted_TN[:, :-1]
    rank_TN = np.cumsum(new_TN, axis=1) - 1
    rows, columns = np.nonzero(new_TN & (rank_TN < k))
    table = np.repeat(np.take_along_axis(x_TND, order_TN[:, -1:, None], axis=1), k, axis=1).astype(np.float64)
    table[rows, rank_TN[rows, columns]] = x_TND[rows, order_TN[rows, columns]]
    return table, new_TN.sum(axis=1)


def _hashes(x_TND: np.ndarray) -> np.ndarray:
    """64 bits of every vector's float32 bits (0 and -0 are one), mixed as in splitmix64; uint64 (T, N)."""
    bits = np.ascontiguousarray(x_TND.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    hashes = np.zeros(bits.shape[:2], np.uint64)
    for component in range(bits.shape[2]):
        hashes = (hashes ^ bits[:, :, component]) * np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _running_sums(sorted_TN: np.ndarray, mass_TN: np.ndarray) -> np.ndarray:
    """Mass, first and second moment of all values before each: float64 (3, T, N + 1)."""
    sums = np.zeros((3, len(sorted_TN), sorted_TN.shape[1] + 1))
    for power in range(3):
        np.cumsum(mass_TN * sorted_TN**power, axis=1, out=sums[power, :, 1:])
    return sums


def _borders(sorted_TN: np.ndarray, most: int) -> np.ndarray:
    """Where groups may begin and end: everywhere, or half spread by count and half by value; int (T, M + 1)."""
    size = sorted_TN.shape[1]
    if size <= most:
        return np.tile(np.arange(size + 1), (len(sorted_TN), 1))
    by_count = np.tile(np.linspace(0, size, most // 2 + 1).astype(np.intp), (len(sorted_TN), 1))
    share = np.linspace(0, 1, most - most // 2 + 1)[1:-1]
    low_T1, high_T1 = sorted_TN[:, :1], sorted_TN[:, -1:]
    by_value = count_below(sorted_TN, low_T1 + (high_T1 - low_T1) * share)
    return np.sort(np.concatenate([by_count, by_value], axis=1), axis=1)


def count_below(sorted_TN: np.ndarray, x_TM: np.ndarray) -> np.ndarray:
    """How many entries of each ascending row are less than each of its values, int (T, M)."""
    if len(sorted_TN) == 1:
        return np.searchsorted(sorted_TN[0], x_TM.ravel()).reshape(x_TM.shape)
    rows, size = sorted_TN.shape
    flat, base = sorted_TN.reshape(-1), (np.arange(rows) * size)[:, None]
    found = np.zeros(x_TM.shape, np.intp)
    step = 1 << max(size.bit_length() - 1, 0) if size else 0
    while step:
        ahead = found + step
        inside = ahead <= size
        less = flat[base + np.minimum(ahead, size) - 1] < x_TM
        found = np.where(inside & less, ahead, found)
        step >>= 1
    return found


def _programmed(sums_3TN: np.ndarray, positions_TM: np.ndarray, k: int) -> np.ndarray:
    """The best k groups between borders: their borders, int (T, k + 1)."""
    rows = max(1, CHUNK // positions_TM.shape[1] ** 2)
    parts = [
        _programmed_part(sums_3TN[:, at : at + rows], positions_TM[at : at + rows], k)
        for at in range(0, len(positions_TM), rows)
    ]
    return np.concatenate(parts)


def _programmed_part(sums_3TN: np.ndarray, positions_TM: np.ndarray, k: int) -> np.ndarray:
    mass, first, second = (np.take_along_axis(sums_TN, positions_TM, axis=1) for sums_TN in sums_3TN)
    mass_TMM = mass[:, None, :] - mass[:, :, None]  # of the group from border m to border i
    first_TMM = first[:, None, :] - first[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = second[:, None, :] - second[:, :, None] - np.where(mass_TMM > 0, first_TMM**2 / mass_TMM, 0.0)
    cost = np.where(np.tri(mass.shape[1], k=-1, dtype=bool), np.inf, np.maximum(cost, 0.0))
    least_TM, came_from = cost[:, 0, :], []
    for _ in range(k - 1):
        total = least_TM[:, :, None] + cost
        came_from.append(np.argmin(total, axis=1))
        least_TM = np.take_along_axis(total, came_from[-1][:, None], axis=1)[:, 0]
    borders = [np.full((len(mass), 1), mass.shape[1] - 1)]
    for source in reversed(came_from):
        borders.append(np.take_along_axis(source, borders[-1], axis=1))
    borders.append(np.zeros_like(borders[0]))
    return np.take_along_axis(positions_TM, np.concatenate(borders[::-1], axis=1), axis=1)


def _by_density(sorted_TN: np.ndarray, sums_3TN: np.ndarray, positions_TM: np.ndarray, k: int) -> np.ndarray:
    """Borders as dense as the cube root of the values' density (Panter and Dite 1951): int (T, k + 1)."""
    mass = np.diff(np.take_along_axis(sums_3TN[0], positions_TM, axis=1), axis=1)
    at = np.take_along_axis(sorted_TN, np.minimum(positions_TM, sorted_TN.shape[1] - 1), axis=1)
    share = np.zeros(positions_TM.shape)
    np.cumsum(np.cbrt(mass * np.diff(at, axis=1) ** 2), axis=1, out=share[:, 1:])
    wanted = share[:, -1:] * np.linspace(0, 1, k + 1)
    found = np.minimum(count_below(share, wanted), positions_TM.shape[1] - 1)
    borders = np.take_along_axis(positions_TM, found, axis=1)
    borders[:, 0], borders[:, -1] = 0, positions_TM[:, -1]
    return borders


def _lloyd(sorted_TN: np.ndarray, sums_3TN: np.ndarray, borders_TK: np.ndarray) -> np.ndarray:
    tables = np.take_along_axis(sorted_TN, np.minimum(borders_TK[:, :-1], sorted_TN.shape[1] - 1), axis=1)
    tables = _means(sums_3TN, borders_TK, tables)
    for _ in range(100):
        inner = count_below(sorted_TN, (tables[:, 1:] + tables[:, :-1]) / 2)
        moved = np.concatenate([borders_TK[:, :1], inner, borders_TK[:, -1:]], axis=1)
        if np.array_equal(moved, borders_TK):
            break
        borders_TK, tables = moved, _means(sums_3TN, moved, tables)
    return np.sort(tables, axis=1)


def _means(sums_3TN: np.ndarray, borders_TK: np.ndarray, empty_TK: np.ndarray) -> np.ndarray:
    mass, first = (np.diff(np.take_along_axis(sums_TN, borders_TK, axis=1), axis=1) for sums_TN in sums_3TN[:2])
    return np.where(mass > 0, first / np.where(mass > 0, mass, 1.0), empty_TK)


def _seeds(x_TND: np.ndarray, weight_TND: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    rows, size, _ = x_TND.shape
    each = np.arange(rows)
    if k > SEED_LIMIT:
        return x_TND[:, random.choice(size, k, replace=size < k)].astype(np.float64)
    picked = [np.full(rows, random.integers(size))]
    apart_TN = np.full((rows, size), np.inf)
    for _ in range(k - 1):
        away = x_TND - x_TND[each, picked[-1]][:, None]
        apart_TN = np.minimum(apart_TN, np.einsum("tnd,tnd,tnd->tn", away, away, weight_TND))
        running = np.cumsum(apart_TN, axis=1)
        drawn = random.random() * running[:, -1:]
        picked.append(np.minimum((running <= drawn).sum(axis=1), size - 1))
    return x_TND[each[:, None], np.stack(picked, axis=1)].astype(np.float64)


def _vector_lloyd(x_TND: np.ndarray, weight_TND: np.ndarray, tables: np.ndarray, rounds: int) -> np.ndarray:
    before = np.inf
    for _ in range(rounds):
        nearest_TN, apart_TN = _vector_distances(x_TND, tables, weight_TND)
        total = float(apart_TN.sum(dtype=np.float64))
        if total >= before * (1 - 1e-4):
            break
        before = total
        tables = _vector_means(x_TND, weight_TND, tables, nearest_TN, apart_TN)
    return tables


def _vector_means(
    x_TND: np.ndarray, weight_TND: np.ndarray, tables: np.ndarray, nearest_TN: np.ndarray, apart_TN: np.ndarray
) -> np.ndarray:
    """Each entry's weighted mean; entries without a vector move to those that lie farthest from theirs."""
    rows, k, dimension = tables.shape
    flat = (nearest_TN + np.arange(rows)[:, None] * k).ravel()
    means = tables.copy()
    for component in range(dimension):
        mass_N = weight_TND[:, :, component].ravel()
        sums = np.bincount(flat, mass_N * x_TND[:, :, component].ravel(), rows * k)
        mass = np.bincount(flat, mass_N, rows * k)
        means[:, :, component] = np.where(
            mass > 0, sums / np.where(mass > 0, mass, 1.0), means[:, :, component].ravel()
        ).reshape(rows, k)
    empty_TK = np.bincount(flat, minlength=rows * k).reshape(rows, k) == 0
    if empty_TK.any():
        most = min(int(empty_TK.sum(axis=1).max()), x_TND.shape[1])
        farthest = np.argsort(-apart_TN, axis=1, kind="stable")[:, :most]
        at_row, at_entry = np.nonzero(empty_TK)
        rank = np.minimum((np.cumsum(empty_TK, axis=1) - 1)[at_row, at_entry], most - 1)
        means[at_row, at_entry] = x_TND[at_row, farthest[at_row, rank]]
    return np.asarray(means)


def _vector_distances(
    x_TND: np.ndarray, tables_TKD: np.ndarray, weight_TND: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entry and its weighted squared distance, (T, N) each."""
    rows, size, _ = x_TND.shape
    weight = np.ones_like(x_TND) if weight_TND is None else np.asarray(weight_TND, x_TND.dtype)
    table = tables_TKD.astype(x_TND.dtype)
    sides = np.concatenate([-2 * table, table * table], axis=2).transpose(0, 2, 1)
    nearest, apart = np.empty((rows, size), np.intp), np.empty((rows, size), x_TND.dtype)
    step = max(1, CHUNK // (rows * table.shape[1]))
    for at in range(0, size, step):
        x, w = x_TND[:, at : at + step], weight[:, at : at + step]
        score = np.concatenate([w * x, w], axis=2) @ sides
        nearest[:, at : at + step] = np.argmin(score, axis=2)
        least = np.take_along_axis(score, nearest[:, at : at + step, None], axis=2)[:, :, 0]
        apart[:, at : at + step] = np.maximum(least + (w * x * x).sum(axis=2), 0)
    return nearest, apart
