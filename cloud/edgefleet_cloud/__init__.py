"""The edgefleet hub: train, register, sign, push, watch, retrain."""

__version__ = "0.1.0"
