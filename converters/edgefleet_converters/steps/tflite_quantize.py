"""Steps of tflite_quantize."""
