"""From a file back to the root of trust: what `edgefleet verify` does, hub or no hub.

1. A manifest names the file by its digest.
2. python-tuf's own client walks from the given root to the newest one, and by timestamp, snapshot
   and targets to the role that answers for the manifest's model.
3. That role lists the manifest with this very length and digest, under a release.
4. The same listing names the statement of where the bundle came from; it has that digest, is signed
   by a builder key that the top-level targets role (or the caller) vouches for, and its subject is
   this manifest.
5. The log of decisions, where it is at hand, is verified with the key that the same role vouches
   for, and what it says of the version is shown.

Where the files are fetched from is not trusted with anything (`Mirror`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
from msgspec import Struct
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import Key
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edgefleet_cloud.errors import HubError
from edgefleet_cloud.trust.audit import provenance, verification
from edgefleet_cloud.trust.audit.artifacts import Artifact, RefusedArtifactError, names, parse
from edgefleet_cloud.trust.audit.keys import public_key
from edgefleet_cloud.values import Json
from edgefleet_protocol.errors import ProtocolError
from edgefleet_protocol.trust import FLEET_FIELD, Fleet, ImageTarget, read_custom

_ORIGIN = "mirror:///"


class NotKnownError(Exception):
    """Nothing is wrong with the file; the image repository just does not know it."""


class Mirror(Protocol):
    """Where public files of a hub are had; not trusted."""

    def metadata(self, name: str) -> bytes | None:
        """Return a file of the image repository, as `3.targets.json`; None if there is none."""

    def content(self, digest: str) -> bytes | None:
        """Return a manifest or a statement; None if it is not there."""

    def manifests_with(self, digest: str) -> Sequence[str]:
        """Return digests of manifests that may name a file."""


class RoleShown(Struct, frozen=True):
    """One signed file of the chain.

    Attributes:
        signed: ids of the keys that count, of which `threshold` were needed.
    """

    role: str
    version: int
    expires: str
    threshold: int
    signed: list[str]


class Trace(Struct, frozen=True):
    """What was verified, from the file to the root.

    Attributes:
        file, digest: what was asked about.
        manifest: digest of the manifest that names it.
        path: of the manifest in the image repository.
        chain: the role that lists it first, the newest root last.
        roots: version given, and newest.
        statement: where the bundle came from (in-toto, SLSA provenance).
        builder: id of the key that signed it.
        decisions: entries of the log about this version; None where no log was at hand.
    """

    file: str
    digest: str
    manifest: str
    path: str
    target: ImageTarget
    chain: list[RoleShown]
    roots: tuple[int, int]
    statement: Json
    builder: str
    decisions: list[Json] | None = None


def trace(
    artifact: Artifact, mirror: Mirror, root: bytes, folder: Path, builder_keys: Sequence[Key] = ()
) -> tuple[Trace, Fleet]:
    """Verify where a file came from.

    Args:
        artifact: from `artifacts.read`.
        mirror: where the rest is fetched.
        root: root metadata that the caller trusts.
        folder: an empty one, for the metadata on the way.
        builder_keys: trusted besides those that the metadata vouches for.

    Returns:
        What holds, and the fleet's signed field, whose `audit_keys` verify the log.

    Raises:
        NotKnownError: no manifest, or no role, names the file.
        RefusedArtifactError: something does not hold.
    """
    candidates = list(_candidates(artifact, mirror))
    if not candidates:
        raise NotKnownError(
            f"no manifest is known that names {artifact.name} (sha256 {artifact.digest})"
        )
    try:
        client = _Client(mirror, root, folder)
        # 2 and 3
        manifest, listing = client.find(candidates)
        target = read_custom(ImageTarget, listing.info.custom, listing.info.path)
        fleet = client.fleet()
        # 4
        keys = [*builder_keys, *(public_key(pem) for pem in fleet.builder_keys)]
        statement, builder = _statement(mirror, target, manifest, keys)
    except (RepositoryError, DownloadError, ProtocolError, HubError, ValueError) as error:
        raise RefusedArtifactError(f"{artifact.name}: {_said(error)}") from error
    held = Trace(
        file=artifact.name,
        digest=artifact.digest,
        manifest=_sha256(manifest),
        path=listing.info.path,
        target=target,
        chain=client.chain(listing.roles),
        roots=client.roots(),
        statement=statement,
        builder=builder,
    )
    return held, fleet


def decisions(lines: Iterable[bytes], fleet: Fleet, subject: str) -> list[Json]:
    """Return what a log says of a subject, once all of it is verified (step 5).

    Args:
        lines: of an exported log.
        fleet: vouches for the keys.
        subject: as `digits 3`.

    Raises:
        BrokenError: if the log does not hold.
    """
    found: list[Json] = []

    def keep(entry: Any) -> None:
        if entry.subject == subject:
            found.append(msgspec.to_builtins(entry))

    keys = [public_key(pem) for pem in fleet.audit_keys]
    verification.verify(lines, keys, each=keep)
    return found


class _Listing(Struct, frozen=True):
    """Where a manifest is listed: by the last of `roles`, each delegated by the one before."""

    info: TargetFile
    roles: list[str]


class _Client:
    """python-tuf's client over a mirror, and what its verified files say."""

    def __init__(self, mirror: Mirror, root: bytes, folder: Path) -> None:
        self._folder = folder
        self._given = Metadata[Root].from_bytes(root).signed.version
        self._updater = Updater(str(folder), _ORIGIN, fetcher=_Fetcher(mirror), bootstrap=root)
        self._updater.refresh()

    def find(self, candidates: Sequence[bytes]) -> tuple[bytes, _Listing]:
        """Return the first of the manifests that is listed, and where.

        Raises:
            NotKnownError: if none is.
        """
        for data in candidates:
            manifest = parse(data)
            assert manifest is not None
            digest = _sha256(data)
            # A name that cannot be taken: the client loads every role that may answer for it.
            probe = f"{manifest.model}/r0/{manifest.variant}.json"
            self._updater.get_targetinfo(probe)
            for path, roles in self._listed(probe, digest):
                info = self._updater.get_targetinfo(path)
                if info is not None and info.hashes.get("sha256") == digest:
                    info.verify_length_and_hashes(data)
                    return data, _Listing(info, roles)
        listed = ", ".join(_sha256(data)[:12] for data in candidates)
        raise NotKnownError(f"no role of the image repository lists the manifest {listed}")

    def _listed(self, probe: str, digest: str) -> Iterator[tuple[str, list[str]]]:
        """Give path and roles of a manifest wherever it is listed, the newest release first."""
        waiting = [[Targets.type]]
        while waiting:
            roles = waiting.pop(0)
            targets = self._load(roles[-1]).signed
            paths = [
                path for path, file in targets.targets.items() if file.hashes["sha256"] == digest
            ]
            for path in sorted(paths, key=lambda name: (len(name), name), reverse=True):
                yield path, roles
            if targets.delegations is not None:
                delegated = targets.delegations.get_roles_for_target(probe)
                waiting += [[*roles, name] for name, _ in delegated if self._has(name)]

    def fleet(self) -> Fleet:
        """Return the fleet's signed field."""
        fields = self._load(Targets.type).signed.unrecognized_fields
        fleet: Fleet = read_custom(Fleet, fields.get(FLEET_FIELD, {}), "targets role")
        return fleet

    def chain(self, roles: Sequence[str]) -> list[RoleShown]:
        """Return who signed what, from the listing role to the root."""
        root = self._load(Root.type)
        shown = []
        for above, role in pairwise(roles):
            delegator = self._load(above).signed
            shown.append(_shown(role, delegator, self._load(role)))
        shown.reverse()
        for role in (Targets.type, Snapshot.type, Timestamp.type):
            shown.append(_shown(role, root.signed, self._load(role)))
        return [*shown, _shown(Root.type, root.signed, root)]

    def roots(self) -> tuple[int, int]:
        """Return the version of the root that was given, and of the newest."""
        return self._given, self._load(Root.type).signed.version

    def _has(self, role: str) -> bool:
        return (self._folder / f"{quote(role, '')}.json").exists()

    def _load(self, role: str) -> "Metadata[Any]":
        """Return a file that the client has verified."""
        return Metadata.from_file(str(self._folder / f"{quote(role, '')}.json"))


class _Fetcher(FetcherInterface):
    def __init__(self, mirror: Mirror) -> None:
        super().__init__()
        self._mirror = mirror

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_ORIGIN)
        data = self._mirror.metadata(name)
        if data is None:
            raise DownloadHTTPError(f"there is no {name}", 404)
        yield data


def _candidates(artifact: Artifact, mirror: Mirror) -> Iterator[bytes]:
    """Give the manifests that name the file (step 1)."""
    if artifact.manifests:
        yield from artifact.manifests
        return
    for digest in mirror.manifests_with(artifact.digest):
        data = mirror.content(digest)
        if data is not None and _sha256(data) == digest and names(data, artifact.digest):
            yield data


def _statement(
    mirror: Mirror, target: ImageTarget, manifest: bytes, keys: Sequence[Key]
) -> tuple[Json, str]:
    """Return the verified statement of where the bundle came from, and by which key (step 4)."""
    if not target.provenance:
        raise RefusedArtifactError("the listing names no statement of where the bundle came from")
    data = mirror.content(target.provenance)
    if data is None or _sha256(data) != target.provenance:
        raise RefusedArtifactError(
            f"the statement {target.provenance[:12]} of where the bundle came from is"
            + (" missing" if data is None else " another than the one that is listed")
        )
    try:
        envelope = Envelope.from_dict(json.loads(data))
        accepted = envelope.verify(list(keys), 1)
        statement = json.loads(envelope.payload)
        subjects = {item["digest"]["sha256"] for item in statement["subject"]}
        said = envelope.payload_type, statement["_type"], statement["predicateType"]
    except (SigningError, ValueError, KeyError, TypeError) as error:
        raise RefusedArtifactError(
            f"the statement of where the bundle came from does not hold: {error}"
        ) from error
    if said != (provenance.PAYLOAD_TYPE, provenance.STATEMENT, provenance.PREDICATE):
        raise RefusedArtifactError(f"the statement is of another kind: {', '.join(map(str, said))}")
    if _sha256(manifest) not in subjects:
        raise RefusedArtifactError("the statement is about another bundle")
    return statement, next(iter(accepted))


def _shown(role: str, delegator: Any, file: "Metadata[Any]") -> RoleShown:
    result = delegator.get_verification_result(role, file.signed_bytes, file.signatures)
    return RoleShown(
        role=role,
        version=file.signed.version,
        expires=file.signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        threshold=result.threshold,
        signed=sorted(result.signed),
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
