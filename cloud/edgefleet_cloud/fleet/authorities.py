"""Replacing the hub's certificate authority while devices are out in the field (docs/adr/0012).

Rules:

1. A new authority issues at once: servers send what the older ones have signed of it, so a device
   that trusts any of them goes on connecting.
2. Devices trust it when the top-level targets list it, which people sign. Until that is in force
   there is no second rotation: rotating again only drafts the same list once more.
3. An older authority is retired only when every enrolled device has sworn that it trusts the newest
   one, and none is left whose certificates are all of the old one; or by force.
"""

from collections.abc import Mapping
from typing import Any

from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.fleet import identities
from edgefleet_cloud.services import Services
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.identity import certificates
from edgefleet_cloud.trust.repositories.ceremonies import Ceremonies
from edgefleet_cloud.trust.repositories.drafts import Held
from edgefleet_protocol.trust import FLEET_FIELD

NAMED_AT_MOST = 10

Row = dict[str, Any]


def listing(services: Services) -> list[Row]:
    """Return the authorities that the hub trusts, newest first, and who does not know them yet."""
    signed = _signed(services.images.held())
    with services.database.read() as session:
        return [
            {
                "fingerprint": one.fingerprint,
                "issues": one is services.authority.held[-1],
                "expires_at": one.certificate.not_valid_after_utc.timestamp(),
                "in_force": pem in signed,
                "unknown_to": identities.without_authority(session, one.fingerprint),
                "needed_by": certificates.still_needed(session, one.fingerprint, services.clock()),
            }
            for one, pem in zip(
                reversed(services.authority.held), services.authority.authorities, strict=True
            )
        ]


def rotate(services: Services) -> list[Row]:
    """Make a new authority, and draft the list that tells devices to trust it.

    Raises:
        ConflictError: if there are too many authorities; retire an old one first.
    """
    newest = services.authority.authorities[0]
    if newest in _signed(services.images.held()):
        before = services.authority.fingerprint
        after = services.authority.rotate()
        with services.database.write() as session:
            audit.record(
                session,
                "authority.rotate",
                after,
                services.clock(),
                before={"issues": before},
                after={"issues": after},
            )
    _draft(services)
    services.wake()
    return listing(services)


def retire(services: Services, fingerprint: str, *, force: bool) -> list[Row]:
    """Stop trusting an older authority.

    Args:
        services: of the hub.
        fingerprint: of the authority.
        force: although devices depend on it; they have to be enrolled again.

    Raises:
        NotFoundError: if there is none of that fingerprint.
        ConflictError: if it issues certificates, or if devices depend on it.
    """
    now = services.clock()
    with services.database.read() as session:
        unknown = set(identities.without_authority(session, services.authority.fingerprint))
        depending = sorted(unknown | set(certificates.still_needed(session, fingerprint, now)))
    if depending and not force:
        named = ", ".join(depending[:NAMED_AT_MOST])
        raise ConflictError(
            f"{len(depending)} enrolled devices depend on this authority ({named}): they have not"
            " said that they trust the new one, or have no certificate of it yet. Wait for them,"
            " revoke them, or use force and enrol them again"
        )
    services.authority.retire(fingerprint)
    with services.database.write() as session:
        after = {"trusted": services.authority.fingerprints, "depending": depending}
        audit.record(session, "authority.retire", fingerprint, now, after=after)
    _draft(services)
    services.wake()
    return listing(services)


def _draft(services: Services) -> None:
    ceremonies = Ceremonies(services.images, services.director, services.database, services.clock)
    ceremonies.set_fleet({"authorities": services.authority.authorities})


def _signed(held: Held) -> list[str]:
    """Return the authorities that the top-level targets in force list."""
    if held.targets is None:
        return []
    field: Mapping[str, Any] = held.targets.signed.unrecognized_fields.get(FLEET_FIELD, {})
    return list(field.get("authorities", []))
