"""What each ONNX operator is in torch, by theme; `table.py` has them all, `contract.py` says how one is described."""
