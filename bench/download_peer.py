"""nncodec on a model's float tensors, in its environment: `python download_peer.py TENSORS.npz FOLDER SETTING ...`.

A setting is the JSON of options of `nnc.compress`, such as {"qp": -28}; everything else is as it is by default: trellis
quantization, parameters of the coder optimised, biases and norms at a finer step than weights. For each setting what
comes back is written to FOLDER/0.npz and so on; sizes and processor seconds go to FOLDER/facts.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from archive_peer import Nothing


def main() -> None:
    """Encode and decode at every setting."""
    sys.meta_path.append(Nothing())
    from nncodec import nnc

    folder, facts = Path(sys.argv[2]), []
    tensors = dict(np.load(sys.argv[1]))
    for place, setting in enumerate(map(json.loads, sys.argv[3:])):
        begin = time.process_time()
        coded = nnc.compress(
            tensors, bitstream_path=f"{folder}/coded.nnc", use_dq=True, return_bitstream=True, verbose=False, **setting
        )
        encoded = time.process_time()
        decoded = nnc.decompress(coded, verbose=False)
        seconds = (encoded - begin, time.process_time() - encoded)
        np.savez(folder / f"{place}.npz", **{name: array.astype(np.float32) for name, array in decoded.items()})
        facts.append({"bytes": len(coded), "seconds": seconds})
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
