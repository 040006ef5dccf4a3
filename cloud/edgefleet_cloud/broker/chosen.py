"""The broker that the settings ask for."""

from collections.abc import Callable
from typing import Protocol

from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.mosquitto import MosquittoBroker
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.trust.identity.authority import Authority


class Broker(Protocol):
    """What the hub does with a broker, whichever it is.

    Attributes:
        usable: whether the link may connect, or stay connected.
    """

    usable: bool

    def start(self) -> None:
        """Return when devices and the link may use it.

        Raises:
            BrokerError: if that does not come about.
        """

    def supervise(self) -> None:
        """Bring it into line with what the hub knows; called at every tick of the scheduler."""

    def stop(self) -> None:
        """End what the hub has to do with it."""


def open_broker(
    settings: Settings, authority: Authority, database: Database, clock: Callable[[], float]
) -> Broker:
    """Return the hub's broker, not started."""
    folder = settings.home / "broker"
    if settings.broker == "mosquitto":
        return MosquittoBroker(settings, authority, folder, database, clock)
    return EmbeddedBroker(settings, authority, folder, database, clock)
