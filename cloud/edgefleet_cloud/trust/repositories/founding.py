"""The first keys and roots of a fleet (`edgefleet trust init`, or the first `edgefleet up`).

Rules:

1. The first roots of both repositories and the first top-level targets are drafts until enough
   holders have signed. Then they are put in place, the image root last: as long as it is missing
   nothing was given to any device, and founding may begin again.
2. The same people hold the roots of both repositories: who may say who signs is one circle.
3. The offline keys are needed only until the first versions are signed. Where the hub makes them
   itself (`by_hub`), they lie in one folder of its home, encrypted, and it never reads them
   afterwards: whoever runs the hub takes the folder away.
"""

import datetime
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgefleet_cloud.errors import ConflictError, InvalidError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories import drafts, keyfiles, layout
from edgefleet_cloud.trust.repositories.drafts import DraftFolder, File, Held
from edgefleet_cloud.trust.repositories.online import OnlineKeys
from edgefleet_cloud.trust.repositories.signing import moment
from edgefleet_cloud.values import Json
from edgefleet_protocol.trust import FLEET_FIELD

ROOT_KEYS, ROOT_THRESHOLD = 3, 2
TARGETS_KEYS, TARGETS_THRESHOLD = 3, 2
OFFLINE_KEYS = "offline-keys"
PASSPHRASE_FILE = "PASSPHRASE"  # noqa: S105  # the name of a file
FOUNDING = "founding"


@dataclass(frozen=True)
class Holders:
    """Who signs a role offline.

    Attributes:
        keys: public halves.
        threshold: how many of them have to sign.
    """

    keys: Sequence[SSlibKey]
    threshold: int

    def check(self, what: str) -> None:
        """Refuse a circle that could never sign, or whose keys are not distinct.

        Raises:
            InvalidError: if so.
        """
        distinct = len({key.keyid for key in self.keys})
        if distinct != len(self.keys) or not 1 <= self.threshold <= distinct:
            raise InvalidError(
                f"{what}: {self.threshold} of {distinct} different keys cannot sign; expected a"
                " threshold of 1 to the number of keys, and no key twice"
            )


@dataclass(frozen=True)
class Plan:
    """What a fleet is founded with.

    Attributes:
        root: holders of both roots.
        targets: holders of the top-level targets role of the image repository.
        fleet: signed field of the top-level targets, see `protocol.trust.Fleet`.
        online: role of `layout.ONLINE_ROLES` → key that lies elsewhere; the hub makes the others.
    """

    root: Holders
    targets: Holders
    fleet: Json = field(default_factory=dict)
    online: dict[str, SSlibKey] = field(default_factory=dict)


def is_founded(home: Path) -> bool:
    """Tell whether the first roots are in place."""
    return (home / "images" / "1.root.json").exists()


def begun(home: Path) -> dict[str, File]:
    """Return the first files that people are signing, empty if there are none."""
    return DraftFolder(home / FOUNDING / "drafts").read()


def first(home: Path, plan: Plan, now: float) -> dict[str, File]:
    """Make the hub's online keys, and return the first files unsigned, as drafts by name.

    Args:
        home: of the hub.
        plan: who signs what.
        now: the time.

    Raises:
        ConflictError: if the fleet is founded already.
        InvalidError: if the plan could never be signed.
    """
    if is_founded(home):
        raise ConflictError(f"the fleet in {home} is founded already; see `edgefleet trust status`")
    plan.root.check("root")
    plan.targets.check("targets")
    keys = _online_keys(home, plan)
    expires = moment(now + layout.OFFLINE_LIFE_S)
    top = Targets(
        1,
        expires=expires,
        delegations=_delegations(keys[f"{layout.IMAGE}.{layout.RELEASES}"]),
        unrecognized_fields={FLEET_FIELD: plan.fleet} if plan.fleet else {},
    )
    return {
        layout.DIRECTOR_ROOT: Metadata(_root(plan, layout.DIRECTOR, keys, expires)),
        layout.IMAGE_ROOT: Metadata(_root(plan, layout.IMAGE, keys, expires)),
        layout.TARGETS: Metadata(top),
    }


def put_in_place(home: Path, first_files: Mapping[str, File]) -> None:
    """Found the fleet with signed first files.

    Raises:
        ConflictError: if one is missing, or signatures are; says whose.
    """
    missing = {layout.DIRECTOR_ROOT, layout.IMAGE_ROOT, layout.TARGETS} - set(first_files)
    if missing:
        raise ConflictError(f"no fleet was founded in {home}; run `edgefleet trust init`")
    waiting = {
        f"{name}: {quorum.missing} of {', '.join(map(keyfiles.name_of, quorum.unsigned.values()))}"
        for name in first_files
        for quorum in drafts.quorums(name, first_files, Held())
        if quorum.missing
    }
    if waiting:
        raise ConflictError(
            f"the founding of the fleet waits for signatures: {'; '.join(sorted(waiting))}."
            f" Sign with `edgefleet trust sign --from {home / FOUNDING} --key KEY`"
        )
    for name, path in (
        (layout.DIRECTOR_ROOT, home / "director" / "1.root.json"),
        (layout.TARGETS, home / "images" / "targets.json"),
        (layout.IMAGE_ROOT, home / "images" / "1.root.json"),
    ):
        durable.write(path, drafts.payload_of(first_files[name]), mode=durable.PUBLIC)


def by_hub(home: Path, fleet: Json, now: float) -> Path:
    """Found a fleet whose offline keys the hub makes; return the folder that they lie in."""
    folder = home / OFFLINE_KEYS
    signers = make_offline_keys(folder, {Root.type: ROOT_KEYS, Targets.type: TARGETS_KEYS})
    plan = Plan(
        Holders([signer.public_key for signer in signers[Root.type]], ROOT_THRESHOLD),
        Holders([signer.public_key for signer in signers[Targets.type]], TARGETS_THRESHOLD),
        fleet=fleet,
    )
    files = first(home, plan, now)
    drafts.sign(files, Held(), [*signers[Root.type], *signers[Targets.type]])
    put_in_place(home, files)
    return folder


def make_offline_keys(
    folder: Path, counts: Mapping[str, int], passphrase: str | None = None
) -> dict[str, list[CryptoSigner]]:
    """Make encrypted key files in one folder, with their passphrase beside them.

    Args:
        folder: new, or left by a founding that was not completed.
        counts: role → number of keys.
        passphrase: of all of them; a random one by default.

    Returns:
        Role → its signers.
    """
    _clear(folder)
    chosen = passphrase or secrets.token_urlsafe(32)
    durable.write(folder / PASSPHRASE_FILE, chosen.encode() + b"\n", mode=durable.PRIVATE)
    return {
        role: [
            keyfiles.make(
                folder / f"{role}-{number}.pem",
                f"{role}-{number}",
                chosen,
                is_random=passphrase is None,
            )
            for number in range(1, count + 1)
        ]
        for role, count in counts.items()
    }


def _clear(folder: Path) -> None:
    """Remove keys that a founding which was not completed has left."""
    for left in (*folder.glob("*.pem"), *folder.glob("*.pub")):
        left.unlink()


def _online_keys(home: Path, plan: Plan) -> dict[str, SSlibKey]:
    folders = {layout.IMAGE: home / "images" / "keys", layout.DIRECTOR: home / "director" / "keys"}
    for folder in folders.values():
        _clear(folder)
    makers = {name: OnlineKeys.open(folder) for name, folder in folders.items()}
    keys = dict(plan.online)
    for role in layout.ONLINE_ROLES:
        if role not in keys:
            keys[role] = makers[role.partition(".")[0]].make(role)
    return keys


def _root(
    plan: Plan, repository: str, keys: dict[str, SSlibKey], expires: datetime.datetime
) -> Root:
    # A director's files travel together in one message, so there is nothing to keep consistent.
    root = Root(1, expires=expires, consistent_snapshot=repository == layout.IMAGE)
    for key in plan.root.keys:
        root.add_key(key, Root.type)
    root.roles[Root.type].threshold = plan.root.threshold
    for role in (Snapshot.type, Timestamp.type):
        root.add_key(keys[f"{repository}.{role}"], role)
    if repository == layout.DIRECTOR:
        root.add_key(keys[f"{repository}.{Targets.type}"], Targets.type)
        return root
    for key in plan.targets.keys:
        root.add_key(key, Targets.type)
    root.roles[Targets.type].threshold = plan.targets.threshold
    return root


def _delegations(releases: SSlibKey) -> Delegations:
    role = DelegatedRole(
        layout.RELEASES, [releases.keyid], 1, terminating=True, paths=[layout.ANY_PATH]
    )
    return Delegations({releases.keyid: releases}, {layout.RELEASES: role})
