"""Firmware CI: run models in an exact runtime version, on emulated ARM and on boards, and judge."""

from importlib import metadata

__version__ = metadata.version("edgefleet-hardware-tests")
