"""The edgefleet agent: runs models on a device and keeps them right."""

__version__ = "0.1.0"
