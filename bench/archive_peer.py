"""nncodec on integers, in an environment of its own: `python archive_peer.py INTEGERS.npz FACTS.json REPEATS`.

It is installed without what it depends on, which would bring another torch; that is only imported, never used, and
stands in here as nothing. Integers are coded as they are, parameters optimised, no dependent quantization: lossless.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np

ABSENT = (
    *("torch", "torchvision", "torchmetrics", "ptflops", "cv2", "pandas", "h5py", "sklearn", "tqdm", "flwr", "click"),
    *("tensorflow", "wandb", "hydra", "omegaconf", "transformers", "datasets", "timm", "PIL", "matplotlib", "scipy"),
    *("peft", "sentencepiece"),
)


class Nothing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every package of `ABSENT`, with nothing in it."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module  # type: ignore[return-value]  # whatever is asked of it, it has

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def main() -> None:
    """Encode, decode, compare, and write bytes and the least processor seconds."""
    sys.meta_path.append(Nothing())
    from nncodec import nnc

    source, target = map(Path, sys.argv[1:3])
    integers = {name: array.astype(np.int32) for name, array in np.load(source).items()}
    seconds = (float("inf"), float("inf"))
    for _ in range(int(sys.argv[3])):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            coded = nnc.compress(
                integers,
                bitstream_path=f"{folder}/integers.nnc",
                use_dq=False,
                param_opt=True,
                return_bitstream=True,
                verbose=False,
            )
            encoded = time.process_time()
            decoded = nnc.decompress(coded, verbose=False)
            ended = time.process_time()
        seconds = (min(seconds[0], encoded - begin), min(seconds[1], ended - encoded))
    same = all(np.array_equal(decoded[name], array) for name, array in integers.items())
    target.write_text(json.dumps({"bytes": len(coded), "seconds": seconds, "same": same}))


if __name__ == "__main__":
    main()
