"""What the hub's edges (API, scheduler, broker link) hold in their hands, opened once at start."""

from collections.abc import Callable
from dataclasses import dataclass

from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.settings import Settings
from edgefleet_cloud.storage import Store
from edgefleet_cloud.trust.audit.checkpoints import Checkpoints
from edgefleet_cloud.trust.audit.keys import SigningKey
from edgefleet_cloud.trust.identity.authority import Authority
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.images import ImageRepository


@dataclass(frozen=True)
class Services:
    """The hub's parts.

    Attributes:
        audit: signs the log of decisions.
        builder: signs where a variant came from.
        clock: the time now, Unix seconds; injected so that tests can move it.
        wake: run the next round of the scheduler at once instead of after `tick_s`.
    """

    settings: Settings
    database: Database
    store: Store
    authority: Authority
    images: ImageRepository
    director: Director
    audit: Checkpoints
    builder: SigningKey
    clock: Callable[[], float]
    wake: Callable[[], None]
