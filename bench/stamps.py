"""Tux Paint's stamps as network inputs: photo-like pictures, of which 150 carry the numbers of ImageNet classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import fetch

if TYPE_CHECKING:
    from PIL import Image

SIDE = 224
NOT_PHOTOS = ("cartoon", "plastic", "toys", "symbols", "alphabets")

# the end of a picture's path : the classes it shows, any of which counts as right
CLASSES = """
frog-1:30,31,32 frog:30,31,32 chicken_profile:7,8 birds/hen:8 rooster:7 crowned_crane:134 drake:97 birds/duck:97
gander:99 ostrich:9 birds/peacock:84 pelican:144 birds/penguin:145 magellanic_penguin:145 little-penguin:145
pink_flamingo:130 rainbow-lorikeet:90 tucan:96 vulture:23 magpie:18 birds/owl:24
bee:309 insects/fly:308 hoverfly:308 grasshopper:311 mantis:315 Brown_slug:114 Woodlouse:126 iguana:39 clownfish:393
lionfish:396 lobster:122,123
chimp:367 gorilla:366 orca:148 aquatic/whale:147 otter:360 sea_lion:150 badger:362 bears/bear:294,295
european-bear:294 bison:347 bovines/bull:345 bovines/cow:345 cow_white:345 zebu:345 bovines/ram:348
bovines/sheep:348 camel/camel:354 dromedary:354 cats/lion:291 lion-2:291 cats/tiger:292 tiger_sumatran:292 dingo:273
dogs/fox:277,278 echidna:102 mammals/elephant:101,385,386 equines/horse:339 zebra:340 ferret:358,359
hippopotamus:344 mammals/pig:341 pig_golden:341 pig_golden2:341 wildboar:342 rabbit_little:330,331,332
rodents/rabbit:330,331,332 rabbit-2:330,331,332 beaver:337 marmot:336 squirrel:335 kangaroo:104 koala:105 wombat:106
sombrero:808 t_sock:806 t_tshirt:610 Strawberry2:949 fruit/strawberry:949 apple_granny_smith:948 apple_green:948
fruit/banana:954 cherimoya:956 fruit/lemon:951 fruit/orange:950 mandarine:950 orange_seville:950 sliced_orange:950
fruit/pineapple:953 pomegranate:957 broccoli:937 vegetables/corn:987,998 vegetables/pepper:945 yellowpepper:945
vegetables/mushroom:947 food/pizza:963
binoculars:447 camera_35mm:759 brass/trumpet:513 drumkit:541 drum_tomtom_floor:541 cello:486 guitar2:402,546
guitar_classical:402 guitar_electric:546 guitar_electric_bass:546 violin:889 bassoon:432
dishes/mug:504,968 pitcher_small:725 teapot:849 household/toilet:861 tools/hammer:587 paintbrush_large:696
garbagecan:412 wheelie_bin:412 tools/spade:792 candle:470 bandage_adhesive:419 stethoscope:823 syringe:845
old_naval_shell:744 paratrooper:701 vehicles/bradley:847 bradley_mirror:847 f22_raptor:895 cep:997 cep-1:997
cep-2:997 christmas/stocking:496 jackolantern_mean:607
basketball:430 soccer:805 tennis_ball:852 tennis_racket:752 uk_post_box:637 usps_mailbox:637 stoplight_01_red:920
stoplight_02_yellow:920 stoplight_03_green:920 garbagetruck:569 indycar:751 firetruck:555 balloon360:417
planes/747:404 sportscar2:817 wheel_tractor:866 7spoke256:479 pink_tricycle:870
"""


class Pictures(NamedTuple):
    """Inputs (N, 3, 224, 224) float32; `classes` has the right ones of each, none for a picture without a label."""

    inputs: np.ndarray
    classes: list[tuple[int, ...]]

    def take(self, rows: np.ndarray) -> Pictures:
        """The pictures at these positions."""
        return Pictures(self.inputs[rows], [self.classes[row] for row in rows])


def load() -> tuple[Pictures, Pictures]:
    """Those without a label, which calibrate, and the 150 with one, which judge."""
    found = _found()
    pictures = Pictures(np.stack([_input(path) for path in found]), list(found.values()))
    labelled = np.array([bool(classes) for classes in pictures.classes])
    return pictures.take(np.flatnonzero(~labelled)), pictures.take(np.flatnonzero(labelled))


def unlabelled() -> list[Image.Image]:
    """The cut-outs without a label, in the order of `load`, transparent where they show nothing, and not beyond."""
    return [_cut(path) for path, classes in _found().items() if not classes]


def label_matrix(pictures: Pictures) -> np.ndarray:
    """The right classes of each picture (N, most), -1 where it has fewer: any of them counts."""
    most = max(map(len, pictures.classes))
    return np.array([(*classes, *[-1] * (most - len(classes))) for classes in pictures.classes], np.int64)


def _found() -> dict[Path, tuple[int, ...]]:
    """The pictures that are no drawings, and the right classes of each."""
    root = fetch.stamps()
    known = {key: tuple(int(number) for number in ids.split(",")) for key, ids in map(_entry, CLASSES.split())}
    paths = sorted(path for path in root.rglob("*.png") if not _drawn(path.relative_to(root)))
    return {path: _classes(path, root, known) for path in paths}


def _entry(text: str) -> tuple[str, str]:
    key, _, ids = text.partition(":")
    return key, ids


def _drawn(path: Path) -> bool:
    return any(word in path.as_posix().lower() for word in NOT_PHOTOS)


def _classes(path: Path, root: Path, known: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The classes of the longest entry that the path ends with, whole components only."""
    parts = path.relative_to(root).with_suffix("").parts
    for start in range(len(parts)):
        if (classes := known.get("/".join(parts[start:]))) is not None:
            return classes
    return ()


def _input(path: Path) -> np.ndarray:
    """Pasted on a white square 1.15 times as long as the cut-out, resized, scaled as EfficientNet-Lite wants it."""
    from PIL import Image

    stamp = _cut(path)
    side = round(1.15 * max(stamp.size))
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2), stamp)
    return as_input(canvas.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def as_input(picture: Image.Image) -> np.ndarray:
    """A picture of 224 x 224 in RGB as (3, 224, 224), scaled as EfficientNet-Lite wants it."""
    pixels_HWC = np.asarray(picture, np.float32)
    return np.ascontiguousarray(((pixels_HWC - 127) / 128).transpose(2, 0, 1))


def _cut(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as file:
        stamp = file.convert("RGBA")
    return stamp.crop(stamp.getchannel("A").getbbox())
