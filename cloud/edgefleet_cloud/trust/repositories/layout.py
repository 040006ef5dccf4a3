"""How the two repositories are laid out: who signs what, and for how long (docs/adr/0009).

| role | signed by | lives |
|---|---|---|
| both roots, top-level targets | people, offline, by threshold | 3 years |
| `owner-NAME`: bundles of the models that NAME owns | that owner, offline, by threshold | 3 years |
| `releases`: bundles of all other models | the hub | 30 days |
| snapshot, timestamp of the image repository | the hub | 7 days |
| targets, snapshot, timestamp of a device's director | the hub | `assignment_ttl_s` |

A file that people sign is a *draft* until enough have signed; its name is one of this module's.
"""

import re

from tuf.api.metadata import Snapshot, Targets, Timestamp

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.trust.repositories.signing import DAY_S
from edgefleet_protocol.identifiers import model_name

OFFLINE_LIFE_S = 3 * 365 * DAY_S
RELEASES_LIFE_S = 30 * DAY_S
SNAPSHOT_LIFE_S = 7 * DAY_S
TIMESTAMP_LIFE_S = 7 * DAY_S
# What is offline is asked for when so much of its life is left: the time to find its holders.
RENEWAL_DUE_S = OFFLINE_LIFE_S / 4

RELEASES = "releases"
OWNER_PREFIX = "owner-"
ANY_PATH = "*/*/*"

IMAGE, DIRECTOR = "image", "director"
IMAGE_ROOT, DIRECTOR_ROOT, TARGETS = "image.root", "director.root", "image.targets"
# The roles that the hub signs by itself, and the repository that names their keys.
ONLINE_ROLES = (
    f"{IMAGE}.{Snapshot.type}",
    f"{IMAGE}.{Timestamp.type}",
    f"{IMAGE}.{RELEASES}",
    f"{DIRECTOR}.{Targets.type}",
    f"{DIRECTOR}.{Snapshot.type}",
    f"{DIRECTOR}.{Timestamp.type}",
)

_OWNER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def owner_role(owner: str) -> str:
    """Return the role of a model owner.

    Raises:
        InvalidError: if the name has not the allowed form.
    """
    if not _OWNER.fullmatch(owner):
        raise InvalidError(
            f"{owner!r} is no owner name: expected 1 to 40 lower-case letters, digits, '_', '-'"
        )
    return OWNER_PREFIX + owner


def is_owner_role(role: str) -> bool:
    """Tell whether a role is one of a model owner."""
    return role.startswith(OWNER_PREFIX)


def draft_of(role: str) -> str:
    """Return the name of the draft of an owner's role."""
    return f"{IMAGE}.{role}"


def role_of(draft: str) -> str:
    """Return the role of a draft, without its repository."""
    return draft.partition(".")[2]


def pattern_of(model: str) -> str:
    """Return the path pattern of all bundles of a model."""
    return f"{model_name(model)}/*/*"


def model_of(path: str) -> str:
    """Return the model of a target path or of a pattern of `pattern_of`."""
    return path.partition("/")[0]
