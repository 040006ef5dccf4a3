"""Steps of conversions."""
