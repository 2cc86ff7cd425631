"""Reading and editing ONNX graphs: constants, layers, and where quantizers go."""
