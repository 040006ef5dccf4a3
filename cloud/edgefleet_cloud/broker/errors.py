"""Errors of the hub's brokers."""

from edgefleet_cloud.errors import HubError


class BrokerError(HubError):
    """The broker does not run, cannot be reached, or does not do as it should."""


class LeakError(BrokerError):
    """The broker lets through what it has to forbid; it must not be used."""
