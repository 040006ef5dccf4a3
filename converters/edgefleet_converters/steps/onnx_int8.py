"""Steps of onnx_int8."""
