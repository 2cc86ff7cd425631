"""The two tasks as data, drawn from a seed: lines of digits of very different contrast, and ledgers to add up."""

from __future__ import annotations

import numpy as np

GLYPHS = (  # 5 x 7 pixels, one row a number
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (30, 1, 1, 14, 1, 1, 30),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)
HEIGHT, WIDTH, MOST_DIGITS = 12, 44, 5
SMALL, TALL = np.arange(7), np.array([0, 1, 1, 2, 3, 3, 4, 5, 5, 6])  # the rows of a glyph, some of them twice
FAINTEST = 0.03  # contrast of the faintest line, the strongest being 1
STEPS, FEATURES = 60, 3
BIN, BINS = 0.4, 16


def draw_lines(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N,1,H,W) float32 of 2 to 5 digits and the digits (N,5), filled up with -1.

    Contrast is drawn evenly on a logarithmic scale, so a faint line is a thirtieth of a strong one. Noise goes with it.
    """
    glyphs_DHW = np.array([[[row >> (4 - x) & 1 for x in range(5)] for row in glyph] for glyph in GLYPHS], np.float32)
    pictures = np.zeros((count, 1, HEIGHT, WIDTH), np.float32)
    digits = np.full((count, MOST_DIGITS), -1, np.int64)
    for picture, line in zip(pictures[:, 0], digits, strict=True):
        length = rng.integers(2, MOST_DIGITS + 1)
        line[:length] = rng.integers(0, 10, length)
        left = rng.integers(0, WIDTH - 8 * length + 2)
        for digit in line[:length]:
            glyph_HW = glyphs_DHW[digit][TALL if rng.random() < 0.3 else SMALL]
            top = rng.integers(0, HEIGHT - len(glyph_HW) + 1)
            area = picture[top : top + len(glyph_HW), left : left + 5]
            np.maximum(area, glyph_HW * rng.uniform(0.6, 1.0), out=area)
            left += rng.integers(6, 9)
    noisy = np.clip(np.rint((pictures + rng.normal(0, 0.12, pictures.shape)) * 16), -8, 24) / 16
    contrast = np.exp2(np.rint(8 * rng.uniform(np.log2(FAINTEST), 0, (count, 1, 1, 1))) / 8)
    return (noisy * contrast).astype(np.float32), digits


def draw_ledgers(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ledgers (N,T,3) float32 and the bin (N,) of their total.

    A step holds an amount, a sign and a word that has no meaning. With the sign 1 the amount is added, with -1 taken
    away, with 0 it is to be ignored, which is so three times in five. Totals lie away from the edges of the bins.
    """
    kept_x: list[np.ndarray] = []
    kept_y: list[np.ndarray] = []
    while sum(map(len, kept_y)) < count:
        amount = np.rint(rng.uniform(0, 1, (count, STEPS)) * 64) / 64
        sign = rng.choice([-1.0, 0.0, 1.0], (count, STEPS), p=[0.2, 0.6, 0.2])
        word = np.rint(rng.normal(0, 0.5, (count, STEPS)) * 8) / 8
        position = (amount * sign).sum(1) / BIN + BINS / 2
        good = (position >= 0) & (position < BINS) & (np.abs(position % 1 - 0.5) < 0.35)
        kept_x.append(np.stack([amount, sign, word], axis=2)[good].astype(np.float32))
        kept_y.append(np.floor(position[good]).astype(np.int64))
    return np.concatenate(kept_x)[:count], np.concatenate(kept_y)[:count]


def exact_lines(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> np.ndarray:
    """A metric for `gossamer compress`: 1 for a line read without a fault, else 0, of scores (N,T,11), blank last."""
    if labels is None:
        raise ValueError("give the digits as labels")
    read_NT = outputs["scores"].argmax(2)
    right = [line[line >= 0].tolist() == collapse(read_T) for line, read_T in zip(labels, read_NT, strict=True)]
    return np.array(right, np.float64)


def collapse(read_T: np.ndarray) -> list[int]:
    """What greedy decoding makes of one symbol a step: repeats are one, blanks are nothing."""
    fresh = np.concatenate([[True], read_T[1:] != read_T[:-1]])
    return [int(symbol) for symbol in read_T[fresh] if symbol != 10]
