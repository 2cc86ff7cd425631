"""Pictures for training without labels: cut-outs put together anew, each from the seed, none twice.

A good teacher is patient and consistent (Beyer et al. 2022): it is asked about each picture as it was made. Half are
like those that are judged, one cut-out on white; the others have several, of any size, and anything behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from stamps import SIDE

MOST_PIXELS = 400  # of a cut-out's longer side
PLAIN_SHARE = 0.5  # of the pictures
Rng = np.random.Generator


def scenes(cutouts: Sequence[Image.Image], count: int, seed: int) -> list[Image.Image]:
    """So many pictures (224 x 224, RGB), in which each cut-out is the main one equally often."""
    rng = np.random.default_rng(seed)
    small = [_shrunk(cutout) for cutout in cutouts]
    turns = (place for _ in range(-(-count // len(small))) for place in rng.permutation(len(small)))
    return [
        _plain(small[at], rng) if rng.random() < PLAIN_SHARE else _wild(small, at, rng) for at in islice(turns, count)
    ]


def _plain(cutout: Image.Image, rng: Rng) -> Image.Image:
    """On white, about as large and where it is when it is judged."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    degrees = 15 if rng.random() < 0.5 else 0
    _put(canvas, _recoloured(cutout, rng, 0.2), rng, rng.uniform(0.62, 1.05), degrees, 0.06)
    return canvas


def _wild(cutouts: Sequence[Image.Image], main: int, rng: Rng) -> Image.Image:
    """Before something, with up to two others behind it."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white") if rng.random() < 0.35 else _background(cutouts, rng)
    for _ in range(int(rng.integers(3))):
        other = cutouts[rng.integers(len(cutouts))]
        _put(canvas, _recoloured(other, rng, 0.4), rng, rng.uniform(0.2, 0.8), 40, 0.5)
    _put(canvas, _recoloured(cutouts[main], rng, 0.4), rng, rng.uniform(0.4, 1.4), 40, 0.2)
    return canvas


def _put(canvas: Image.Image, cutout: Image.Image, rng: Rng, share: float, degrees: float, off: float) -> None:
    """Mirrored or not, squeezed by up to 15 %, turned and moved; `share` of the canvas is its longer side."""
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ratio = share * SIDE / max(cutout.size)
    size = ratio * cutout.width, ratio * cutout.height * np.exp(rng.uniform(-0.15, 0.15))
    cutout = cutout.resize((max(2, round(size[0])), max(2, round(size[1]))), Image.Resampling.BICUBIC)
    if degrees:
        cutout = cutout.rotate(rng.uniform(-degrees, degrees), Image.Resampling.BICUBIC, expand=True)
    x, y = (SIDE * (0.5 + rng.uniform(-off, off, 2)) - np.array(cutout.size) / 2).round().astype(int)
    canvas.paste(cutout, (int(x), int(y)), cutout)


def _recoloured(cutout: Image.Image, rng: Rng, strength: float) -> Image.Image:
    """Brightness, contrast, saturation, and at times the hue."""
    picture = cutout.convert("RGB")
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(float(np.exp(rng.uniform(-strength, strength))))
    if rng.random() < strength:
        turn = int(rng.integers(-20, 21))  # of a circle of 256 steps
        hue, *others = picture.convert("HSV").split()
        picture = Image.merge("HSV", [hue.point([(step + turn) % 256 for step in range(256)]), *others]).convert("RGB")
    picture.putalpha(cutout.getchannel("A"))
    return picture


def _background(cutouts: Sequence[Image.Image], rng: Rng) -> Image.Image:
    """One colour, four that blend, noise of some grain, or a part of a cut-out."""
    whole = (SIDE, SIDE)
    match rng.integers(4):
        case 0:
            return Image.new("RGB", whole, _colour(rng))
        case 1:
            return Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).resize(whole, Image.Resampling.BICUBIC)
        case 2:
            grain, mean, spread = int(rng.choice([4, 8, 16, 32, 64])), rng.integers(40, 216, 3), rng.uniform(10, 60)
            noise_HWC = np.clip(mean + rng.normal(0, spread, (grain, grain, 3)), 0, 255).astype(np.uint8)
            return Image.fromarray(noise_HWC).resize(whole, Image.Resampling.BICUBIC)
        case _:
            return _texture(cutouts[rng.integers(len(cutouts))], rng)


def _texture(cutout: Image.Image, rng: Rng) -> Image.Image:
    """The middle of a cut-out, enlarged, mostly blurred."""
    side = max(16, int(min(cutout.size) * rng.uniform(0.3, 0.7)))
    canvas = Image.new("RGB", (side, side), _colour(rng))
    canvas.paste(cutout, ((side - cutout.width) // 2, (side - cutout.height) // 2), cutout)
    enlarged = canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return enlarged.filter(ImageFilter.GaussianBlur(rng.uniform(0, 6))) if rng.random() < 0.7 else enlarged


def _colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _shrunk(cutout: Image.Image) -> Image.Image:
    small = cutout.copy()
    small.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.BICUBIC)
    return small
