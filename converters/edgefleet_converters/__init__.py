"""Convert, compress and verify models for small devices."""

__version__ = "0.1.0"
