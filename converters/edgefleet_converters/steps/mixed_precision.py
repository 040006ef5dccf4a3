"""Steps of mixed_precision."""
