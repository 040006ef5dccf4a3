"""Steps of float16."""
