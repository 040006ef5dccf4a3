"""How the trust of the fleet stands: who signs what, who has signed, what is due.

A value for people and programs, made from what is in force, the drafts, and the clock.
"""

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from edgefleet_cloud.trust.repositories import differences, drafts, layout
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.drafts import Drafts, File, Held
from edgefleet_cloud.trust.repositories.founding import OFFLINE_KEYS
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_cloud.trust.repositories.keyfiles import name_of
from edgefleet_cloud.trust.repositories.signing import DAY_S


@dataclass(frozen=True)
class KeyStatus:
    """A key that may sign a role.

    Attributes:
        signed: whether its signature is on the file in force; None where the hub signs.
    """

    keyid: str
    name: str
    signed: bool | None = None


@dataclass(frozen=True)
class RoleStatus:
    """A role in force.

    Attributes:
        online: whether the hub signs it by itself.
        version, expires_at: None for the director's online roles: each device has its own.
        models: of an owner's role.
    """

    name: str
    online: bool
    threshold: int
    keys: list[KeyStatus]
    version: int | None = None
    expires_at: float | None = None
    models: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class QuorumStatus:
    """Signatures that a draft has and lacks, as one file above it counts them."""

    by: str
    threshold: int
    signed: list[str]
    unsigned: list[str]
    missing: int


@dataclass(frozen=True)
class DraftStatus:
    """A file that people are to sign.

    Attributes:
        changes: sentences.
        waits: what it waits for; empty if nothing.
    """

    name: str
    version: int
    changes: list[str]
    quorums: list[QuorumStatus]
    waits: str


@dataclass(frozen=True)
class Status:
    """Everything.

    Attributes:
        warnings: what somebody should do.
    """

    roles: list[RoleStatus]
    drafts: list[DraftStatus]
    warnings: list[str]


def status(images: ImageRepository, director: Director, home: Path, now: float) -> Status:
    """Return how trust stands.

    Args:
        images: the image repository.
        director: the director.
        home: of the hub; only looked at for keys that should not be there.
        now: the time.
    """
    held = replace(images.held(), director_root=director.held().director_root)
    present = director.drafts() | images.drafts()
    roles = [*_offline(held), *_online(images, held)]
    listed = [draft_status(name, present, held) for name in sorted(present)]
    return Status(roles, listed, [*_due(roles, present, now), *offline_keys_here(home)])


def due(images: ImageRepository, director: Director, now: float) -> list[str]:
    """Return what people have signed and have to sign again soon, in sentences."""
    held = replace(images.held(), director_root=director.held().director_root)
    return list(_due(_offline(held), director.drafts() | images.drafts(), now))


def draft_status(name: str, present: Drafts, held: Held) -> DraftStatus:
    """Return how one draft stands."""
    quorums = [
        QuorumStatus(
            quorum.by,
            quorum.threshold,
            sorted(name_of(key) for key in quorum.signed.values()),
            sorted(name_of(key) for key in quorum.unsigned.values()),
            quorum.missing,
        )
        for quorum in drafts.quorums(name, present, held)
    ]
    lacking = [f"{q.missing} of {', '.join(q.unsigned)}" for q in quorums if q.missing]
    waits = "; ".join(dict.fromkeys(lacking)) or "what has to go into force together with it"
    draft = present[name]
    changes = differences.changes(draft, held.of(name))
    return DraftStatus(name, draft.signed.version, changes, quorums, waits)


def offline_keys_here(home: Path) -> list[str]:
    """Return a warning if the keys of people lie on the hub's machine."""
    folder = home / OFFLINE_KEYS
    if not folder.exists():
        return []
    text = (
        f"the offline keys are still in {folder}: whoever takes over this machine can sign for the"
        " owner of the fleet; move the folder away, and its PASSPHRASE to another place"
    )
    return [text]


def _offline(held: Held) -> Iterable[RoleStatus]:
    for name in (layout.IMAGE_ROOT, layout.DIRECTOR_ROOT):
        root = held.of(name)
        assert root is not None  # of a founded fleet
        yield _role(name, root, root, Root.type)
    assert held.image_root is not None and held.targets is not None  # noqa: PT018  # as above
    yield _role(layout.TARGETS, held.image_root, held.targets, Targets.type)
    for role, models in drafts.owner_roles(held.targets).items():
        yield _role(layout.draft_of(role), held.targets, held.owners[role], role, models)


def _role(
    name: str,
    above: File,
    file: File,
    role: str,
    models: list[str] | None = None,
) -> RoleStatus:
    result = above.signed.get_verification_result(role, file.signed_bytes, file.signatures)
    keys = [KeyStatus(keyid, name_of(key), True) for keyid, key in result.signed.items()]
    keys += [KeyStatus(keyid, name_of(key), False) for keyid, key in result.unsigned.items()]
    expires_at = file.signed.expires.timestamp()
    return RoleStatus(
        name, False, result.threshold, keys, file.signed.version, expires_at, models or []
    )


def _online(images: ImageRepository, held: Held) -> Iterable[RoleStatus]:
    lives = images.lives()
    for name in layout.ONLINE_ROLES:
        repository, _, role = name.partition(".")
        above: File | None = (
            held.director_root if repository == layout.DIRECTOR else held.image_root
        )
        if role == layout.RELEASES:
            above = held.targets
        assert above is not None  # of a founded fleet
        signing = above.signed.get_delegated_role(role)
        keys = [_key(above.signed.get_key(keyid)) for keyid in signing.keyids]
        version, expires_at = lives.get(name, (None, None))
        yield RoleStatus(name, True, signing.threshold, keys, version, expires_at)


def _key(key: Key) -> KeyStatus:
    return KeyStatus(key.keyid, name_of(key))


def _due(roles: Iterable[RoleStatus], present: Mapping[str, File], now: float) -> Iterable[str]:
    for role in roles:
        if role.online or role.expires_at is None:
            continue
        left_s = role.expires_at - now
        if left_s > layout.RENEWAL_DUE_S or role.name in present:
            continue
        day = datetime.datetime.fromtimestamp(role.expires_at, datetime.UTC).strftime("%Y-%m-%d")
        when = f"ends on {day}, in {left_s / DAY_S:.0f} days" if left_s > 0 else f"ended on {day}"
        yield f"{role.name} {when}: run `edgefleet trust renew {role.name}` and have it signed"
