"""Content-addressed files: a name is the SHA-256 digest of the content."""

from edgefleet_cloud.storage.store import Store

__all__ = ["Store"]
