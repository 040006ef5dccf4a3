"""Steps of onnx_weights."""
