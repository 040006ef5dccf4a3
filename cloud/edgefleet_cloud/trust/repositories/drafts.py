"""Metadata that people sign, until enough of them have.

`Held` is what is in force of it, a draft is the next version of one file. These are values: the hub
decides with them what it may publish, and a person's own machine what there is to sign. Rules:

1. A draft of a root needs enough keys of the root in force and enough of its own. Any other draft
   needs enough keys of the file above it, as that will be.
2. Files go into force together or not at all: after it, every file is signed as the one above it
   demands. A draft that has all its signatures can so wait for another one.
3. A model that gets an owner keeps its bundles: the delegation waits until the owner's file lists
   everything that the hub's own role listed for the model.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from edgefleet_cloud.errors import ConflictError, DamagedError
from edgefleet_cloud.trust import durable
from edgefleet_cloud.trust.repositories import layout
from edgefleet_cloud.trust.repositories.signing import canonical_of, moment, with_signatures

Signed = Root | Targets
# Of one of the roles that people sign.
File = Metadata[Root] | Metadata[Targets]
Drafts = Mapping[str, File]


@dataclass(frozen=True)
class Held:
    """What is in force; everything is absent before the first root.

    Attributes:
        owners: role → its file.
        released: the hub's own role `releases`.
    """

    image_root: Metadata[Root] | None = None
    director_root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None
    owners: Mapping[str, Metadata[Targets]] = field(default_factory=dict)
    released: Metadata[Targets] | None = None

    def of(self, name: str) -> File | None:
        """Return what is in force of a draft's file."""
        fixed: dict[str, File | None] = {
            layout.IMAGE_ROOT: self.image_root,
            layout.DIRECTOR_ROOT: self.director_root,
            layout.TARGETS: self.targets,
        }
        return fixed[name] if name in fixed else self.owners.get(layout.role_of(name))


@dataclass(frozen=True)
class Quorum:
    """Which keys have to sign a draft, on whose word.

    Attributes:
        by: the file that says so.
        threshold: how many of them.
        signed: key id → key of those that have.
        unsigned: of those that have not.
    """

    by: str
    threshold: int
    signed: Mapping[str, Key]
    unsigned: Mapping[str, Key]

    @property
    def missing(self) -> int:
        """How many signatures it still takes."""
        return max(0, self.threshold - len(self.signed))


def quorums(name: str, drafts: Drafts, held: Held) -> list[Quorum]:
    """Return what it takes to sign a draft (rule 1).

    Raises:
        DamagedError: if nothing says who signs it.
    """
    draft = drafts[name]
    if name in (layout.IMAGE_ROOT, layout.DIRECTOR_ROOT):
        before = held.of(name)
        above = [before] if before is not None else []
        role, above = Root.type, [*above, draft]
    elif name == layout.TARGETS:
        role, above = Targets.type, _newest(layout.IMAGE_ROOT, drafts, held)
    else:
        role, above = layout.role_of(name), _newest(layout.TARGETS, drafts, held)
    found = [_quorum(role, above_file, draft) for above_file in above]
    if not found:
        raise DamagedError(f"nothing says who signs {name}")
    return found


def keys_of(name: str, drafts: Drafts, held: Held) -> dict[str, Key]:
    """Return every key whose signature counts for a draft."""
    return {
        keyid: key
        for quorum in quorums(name, drafts, held)
        for keyid, key in (*quorum.signed.items(), *quorum.unsigned.items())
    }


def is_signed(name: str, drafts: Drafts, held: Held) -> bool:
    """Tell whether a draft has all its signatures."""
    return all(quorum.missing == 0 for quorum in quorums(name, drafts, held))


def is_valid(key: Key, signature: Signature, draft: File) -> bool:
    """Tell whether a signature over a draft is the key's."""
    try:
        key.verify_signature(signature, draft.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def sign(drafts: Drafts, held: Held, signers: Sequence[Signer]) -> list[tuple[str, Key]]:
    """Let each signer sign the drafts that its signature counts for and that lack it.

    Returns:
        What was signed, and by which key.
    """
    done = []
    for name, draft in drafts.items():
        counting = keys_of(name, drafts, held)
        for signer in signers:
            keyid = signer.public_key.keyid
            if keyid in counting and keyid not in draft.signatures:
                draft.sign(signer, append=True)
                done.append((name, counting[keyid]))
    return done


def choose(held: Held, drafts: Drafts) -> Held | None:
    """Return the newest files of the image repository that fit together (rules 2 and 3).

    Args:
        held: what is in force, or what a crash has left of it.
        drafts: also those that are not signed.

    Returns:
        `held` itself if no draft can go into force; None if not even that fits together.
    """
    for root, targets in itertools.product(
        _roots(drafts.get(layout.IMAGE_ROOT), held.image_root),
        targets_files(drafts.get(layout.TARGETS), held.targets),
    ):
        candidate = replace(held, image_root=root, targets=targets, owners={})
        if _root_follows(held.image_root, root) and vouches(root, Targets.type, targets):
            owners = _owners(candidate, drafts, held)
            if owners is not None:
                same = root is held.image_root and targets is held.targets
                same = same and all(file is held.owners.get(r) for r, file in owners.items())
                return held if same else replace(candidate, owners=owners)
    return None


def next_version(name: str, drafts: Drafts, held: Held, now: float) -> File:
    """Return a draft to alter: the present one without its signatures, or the next version."""
    present, in_force = drafts.get(name), held.of(name)
    base = present or in_force
    assert base is not None  # every file but an owner's first one is in force
    copy = parse(payload_of(base))
    copy.signatures.clear()
    copy.signed.version = base.signed.version + (present is None)
    copy.signed.expires = moment(now + layout.OFFLINE_LIFE_S)
    return copy


def vouches(above: File, role: str, file: File) -> bool:
    """Tell whether a file has the signatures that the one above it demands."""
    try:
        result = above.signed.get_verification_result(role, file.signed_bytes, file.signatures)
    except ValueError:  # it does not delegate to the role
        return False
    return result.verified


def owner_roles(targets: Metadata[Targets] | None) -> dict[str, list[str]]:
    """Return the owners' roles that a top-level targets file delegates to, with their models."""
    if targets is None or targets.signed.delegations is None:
        return {}
    roles = targets.signed.delegations.roles or {}
    return {
        name: [layout.model_of(path) for path in role.paths or ()]
        for name, role in roles.items()
        if layout.is_owner_role(name)
    }


def _newest(name: str, drafts: Drafts, held: Held) -> list[File]:
    above = drafts.get(name) or held.of(name)
    return [above] if above is not None else []


def _quorum(role: str, above: File, draft: File) -> Quorum:
    try:
        result = above.signed.get_verification_result(role, draft.signed_bytes, draft.signatures)
    except ValueError as error:
        raise DamagedError(f"nothing says who signs {role}: {error}") from error
    by = f"{above.signed.type} {above.signed.version}"
    return Quorum(by, result.threshold, result.signed, result.unsigned)


def targets_files(*files: File | None) -> list[Metadata[Targets]]:
    """Return those of the files that are there and list targets or delegations."""
    found: list[Any] = [file for file in files if file and isinstance(file.signed, Targets)]
    return found


def _roots(*files: File | None) -> list[Metadata[Root]]:
    found: list[Any] = [file for file in files if file and isinstance(file.signed, Root)]
    return found


def _root_follows(before: Metadata[Root] | None, root: Metadata[Root]) -> bool:
    if before is root:
        return True
    return (before is None or vouches(before, Root.type, root)) and vouches(root, Root.type, root)


def _owners(candidate: Held, drafts: Drafts, held: Held) -> dict[str, Metadata[Targets]] | None:
    """Return the files of the owners that the candidate delegates to; None if one lacks."""
    assert candidate.targets is not None  # a candidate has one
    chosen = {}
    for role, models in owner_roles(candidate.targets).items():
        kept = _listed(held, models)
        for file in targets_files(drafts.get(layout.draft_of(role)), held.owners.get(role)):
            if vouches(candidate.targets, role, file) and kept <= file.signed.targets.keys():
                chosen[role] = file
                break
        else:
            return None
    return chosen


def _listed(held: Held, models: list[str]) -> set[str]:
    """Return the paths that the hub's own role lists for these models."""
    if held.released is None:
        return set()
    return {path for path in held.released.signed.targets if layout.model_of(path) in models}


def merged(name: str, present: Drafts, draft: File) -> File:
    """Return a draft with the signatures that others have handed in meanwhile.

    Raises:
        ConflictError: if the draft is another by now, or gone.
    """
    held = present.get(name)
    if held is None or canonical_of(held.signed) != canonical_of(draft.signed):
        raise ConflictError(f"the draft of {name} has just changed; export and sign it again")
    draft.signatures.update(held.signatures)
    return draft


def payload_of(draft: File) -> bytes:
    """Return a draft as a file, with the signatures that it has."""
    return with_signatures(draft.signed, draft.signatures.values())


class DraftFolder:
    """Drafts as files: `{name}.json`, each replaced durably.

    Attributes:
        revision: grows with every change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.revision = 0

    def read(self) -> dict[str, File]:
        """Return all drafts by name.

        Raises:
            DamagedError: if one cannot be read.
        """
        return {path.stem: read_draft(path) for path in sorted(self._folder.glob("*.json"))}

    def put(self, name: str, draft: File) -> None:
        """Keep a draft, in place of an older one of its name."""
        self.revision += 1
        durable.write(self._folder / f"{name}.json", payload_of(draft), mode=durable.PUBLIC)

    def drop(self, name: str) -> None:
        """Forget a draft; one that is gone already stays so."""
        path = self._folder / f"{name}.json"
        if path.exists():
            self.revision += 1
            path.unlink()
            handle = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def read_draft(path: Path) -> File:
    """Return the draft in a file.

    Raises:
        DamagedError: if it cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(
            f"the draft {path} cannot be read ({error}); remove it and draft it again"
        ) from error


def parse(data: bytes) -> File:
    """Return a file of a role that people sign.

    Raises:
        ValueError: if it is none.
    """
    try:
        file: Metadata[Any] = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise ValueError(str(error)) from error
    if not isinstance(file.signed, Root | Targets):
        raise ValueError(f"{file.signed.type} is signed by the hub alone")
    return file
