"""Training of an ONNX graph with torch: the only folder, beside the torch door of intake, that imports it."""
