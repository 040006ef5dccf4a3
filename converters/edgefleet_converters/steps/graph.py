"""Steps of graph."""
