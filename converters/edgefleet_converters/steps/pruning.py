"""Steps of pruning."""
