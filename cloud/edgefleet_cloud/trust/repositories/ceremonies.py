"""Changing who signs what: drafts made by the hub, signed by people, put into force by the hub.

Rules:

1. Nothing here signs for people. A ceremony leaves drafts; whoever holds a key signs them on a
   machine of their own, one after another, and hands the signatures in.
2. A signature is taken only over the very draft that the hub has now, by a key that counts for it.
3. What has all its signatures goes into force by itself (`drafts.choose`).
4. Revoking one online key replaces all online keys of its repository: they lie side by side, and a
   client forgets a thief's versions only if snapshot and timestamp key both change (TUF 5.3.11).
5. Each step is in the log of decisions.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from securesystemslib.signer import Key, SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Role, Root, Targets

from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import ConflictError, InvalidError, NotFoundError
from edgefleet_cloud.trust.audit import log as audit
from edgefleet_cloud.trust.repositories import drafts, keyfiles, layout
from edgefleet_cloud.trust.repositories.director import Director
from edgefleet_cloud.trust.repositories.drafts import File, Held, Signed
from edgefleet_cloud.trust.repositories.founding import Holders
from edgefleet_cloud.trust.repositories.images import ImageRepository
from edgefleet_cloud.trust.repositories.signing import canonical_of
from edgefleet_cloud.values import Json
from edgefleet_protocol.trust import FLEET_FIELD

MAX_OWNERS = 64


class Ceremonies:
    """What can be done with the keys of both repositories."""

    def __init__(
        self,
        images: ImageRepository,
        director: Director,
        database: Database,
        clock: Callable[[], float],
    ) -> None:
        self._images = images
        self._director = director
        self._database = database
        self._clock = clock

    def drafts(self) -> dict[str, File]:
        """Return all drafts by name."""
        return self._director.drafts() | self._images.drafts()

    def held(self) -> Held:
        """Return what is in force of the files that people sign."""
        return replace(self._images.held(), director_root=self._director.held().director_root)

    def models_of(self, role: str) -> list[str]:
        """Return the models of an owner's role, as they will be; empty if there is no such role."""
        delegated = _delegations(self._future(layout.TARGETS).signed).roles or {}
        paths = delegated[role].paths if role in delegated else None
        return [layout.model_of(path) for path in paths or ()]

    def delegate(
        self, owner: str, models: Iterable[str], keys: Sequence[SSlibKey], threshold: int
    ) -> None:
        """Draft that an owner signs the bundles of some models, instead of the hub.

        Args:
            owner: name; one that exists already is given these models and keys instead of its own.
            models: names; need not exist yet.
            keys: public halves of the owner's keys.
            threshold: how many of them have to sign.

        Raises:
            InvalidError: if a name has not the allowed form, or the keys could never sign.
            ConflictError: if a model has another owner, or there are too many owners.
        """
        role = layout.owner_role(owner)
        patterns = [layout.pattern_of(model) for model in dict.fromkeys(models)]
        if not patterns:
            raise InvalidError(f"{owner}: name at least one model")
        Holders(keys, threshold).check(role)
        delegated = DelegatedRole(role, [], threshold, terminating=True, paths=patterns)

        def change(targets: Signed) -> None:
            roles = _delegations(targets).roles or {}
            for name, other in roles.items():
                taken = set(patterns) & set(other.paths or ())
                if taken and name != role:
                    model = layout.model_of(min(taken))
                    raise ConflictError(f"the model {model!r} belongs to {name} already")
            if len({*roles, role}) > MAX_OWNERS + 1:
                raise ConflictError(f"there are {MAX_OWNERS} owners already; no more are followed")
            _drop_owner(targets, role)
            # Owners are asked first: the hub's own role is for what is left.
            _delegations(targets).roles = {role: delegated, **roles}
            for key in keys:
                targets.add_key(key, role)

        self._draft_targets(change)
        self._record("owner.delegate", role, after={"paths": patterns, "threshold": threshold})

    def undelegate(self, owner: str) -> None:
        """Draft that the hub signs the bundles of an owner's models again.

        Raises:
            NotFoundError: if there is no such owner.
        """
        role = layout.owner_role(owner)

        def change(targets: Signed) -> None:
            if not _drop_owner(targets, role):
                raise NotFoundError("owner", owner)

        self._draft_targets(change)
        self._record("owner.undelegate", role)

    def rotate(self, what: str, new: SSlibKey | None = None) -> list[str]:
        """Draft that another key signs in place of a present one.

        Args:
            what: an online role (`layout.ONLINE_ROLES`), all of a repository (`image.online`,
                `director.online`), or a key: its id, the beginning of it, or its name.
            new: public half of the new key. The hub makes one for an online role; for a key of a
                person it has to be given.

        Returns:
            The names of the drafts that are to be signed.

        Raises:
            NotFoundError: if there is no such role or key.
            InvalidError: if a key of a person has no successor, or a key would sign twice.
        """
        roles = _online_roles(what)
        if not roles:
            keyid = self._find_key(what)
            roles = [role for role, held in self._online_keyids().items() if held == keyid]
            if not roles:
                return self._replace_offline(keyid, new)
        if new is not None and len(roles) > 1:
            raise InvalidError(f"{what} is {len(roles)} roles; give each its own key")
        touched = {name for role in roles for name in self._replace_online(role, new)}
        self._record("key.rotate", what, after={"roles": roles})
        return sorted(touched)

    def replace_lost(self) -> list[str]:
        """Draft that new keys sign in place of online keys that the hub does not hold any more.

        Returns:
            The names of the drafts that are to be signed; empty if no key is lost.
        """
        touched = set()
        for role, keyid in self._online_keyids().items():
            repository = self._images if role.startswith(layout.IMAGE) else self._director
            if not repository.online.holds([keyid]):
                touched.update(self._replace_online(role, None))
                self._record("key.rotate", keyid, after={"roles": [role], "lost": True})
        return sorted(touched)

    def revoke(self, what: str) -> list[str]:
        """Draft that a key signs nothing any more.

        A key of a person is taken out of every role; there have to remain enough others. For an
        online key see rule 4.

        Args:
            what: the key: its id, the beginning of it, or its name.

        Returns:
            The names of the drafts that are to be signed.

        Raises:
            NotFoundError: if there is no such key.
            ConflictError: if too few keys would remain: rotate it instead.
        """
        keyid = self._find_key(what)
        online = [role for role, held in self._online_keyids().items() if held == keyid]
        if online:
            repositories = {role.partition(".")[0] for role in online}
            roles = [role for role in layout.ONLINE_ROLES if role.partition(".")[0] in repositories]
            touched = {name for role in roles for name in self._replace_online(role, None)}
        else:
            touched = set(self._swap(keyid, None))
        self._record("key.revoke", keyid)
        return sorted(touched)

    def renew(self, name: str) -> None:
        """Draft the next version of a file, for a longer life.

        Raises:
            NotFoundError: if there is no such file.
        """
        if self.held().of(name) is None:
            raise NotFoundError("signed file", name)
        self._of(name).draft(name, lambda _signed: None)
        self._record("metadata.renew", name)

    def set_fleet(self, fields: Json) -> None:
        """Draft other content of the fleet's field in the top-level targets.

        Args:
            fields: of `protocol.trust.Fleet`; those that are not named stay.
        """

        def change(targets: Signed) -> None:
            held = targets.unrecognized_fields.get(FLEET_FIELD, {})
            targets.unrecognized_fields[FLEET_FIELD] = held | fields

        self._draft_targets(change)
        self._record("fleet.change", layout.TARGETS, after={"fields": sorted(fields)})

    def sign(self, name: str, file: bytes) -> bool:
        """Take the signatures of an uploaded draft (rule 2).

        Args:
            name: of the draft.
            file: the draft as it was exported, with more signatures.

        Returns:
            Whether anything went into force by it.

        Raises:
            NotFoundError: if there is no such draft.
            InvalidError: if the file cannot be read, or has no new signature that counts.
            ConflictError: if the draft has changed since it was exported.
        """
        present, held = self.drafts(), self.held()
        if name not in present:
            raise NotFoundError("draft", name)
        draft = present[name]
        try:
            given = drafts.parse(file)
        except ValueError as error:
            raise InvalidError(f"the signed draft of {name} cannot be read: {error}") from error
        if canonical_of(given.signed) != canonical_of(draft.signed):
            raise ConflictError(
                f"the draft of {name} has changed since it was exported; export and sign it again"
            )
        signers = _add_signatures(name, draft, given, present, held)
        if not signers:
            raise InvalidError(f"{name}: no new valid signature by a key that counts for it")
        in_force = self._of(name).take(name, draft)
        after: Json = {"version": draft.signed.version, "signed_by": signers, "in_force": in_force}
        self._record("metadata.sign", name, after=after)
        return in_force

    def discard(self, name: str) -> None:
        """Forget a draft.

        Raises:
            NotFoundError: if there is no such draft.
        """
        if name not in self.drafts():
            raise NotFoundError("draft", name)
        self._of(name).discard(name)
        self._record("metadata.discard", name)

    # --- keys -------------------------------------------------------------------------------------

    def _future(self, name: str) -> File:
        """Return a file as it will be: its draft, or what is in force."""
        found = self.drafts().get(name) or self.held().of(name)
        assert found is not None  # only asked for the roots and the top-level targets
        return found

    def _all_keys(self) -> dict[str, Key]:
        found: dict[str, Key] = {}
        for name in (layout.IMAGE_ROOT, layout.DIRECTOR_ROOT, layout.TARGETS):
            signed = self._future(name).signed
            keys = signed.keys if isinstance(signed, Root) else _delegations(signed).keys
            found.update(keys)
        return found

    def _find_key(self, what: str) -> str:
        known = self._all_keys()
        named = [i for i, key in known.items() if what in (i, keyfiles.name_of(key))]
        found = named or [i for i in known if len(what) >= 8 and i.startswith(what)]
        if not found:
            raise NotFoundError("role or key", what)
        if len(found) > 1:
            raise InvalidError(f"{len(found)} keys are called {what!r}; give the id of one")
        return found[0]

    def _online_keyids(self) -> dict[str, str]:
        """Return online role → the id of its key, as it will be."""
        return {
            role: _roles(self._future(_naming(role)).signed)[layout.role_of(role)].keyids[0]
            for role in layout.ONLINE_ROLES
        }

    def _replace_online(self, role: str, new: SSlibKey | None) -> list[str]:
        repository = self._images if role.startswith(layout.IMAGE) else self._director
        online = repository.online
        key = online.make(role) if new is None else online.public(new.keyid)
        old = self._online_keyids()[role]
        name = _naming(role)
        self._of(name).draft(name, lambda signed: _swap(signed, [layout.role_of(role)], old, key))
        return [name]

    def _replace_offline(self, keyid: str, new: SSlibKey | None) -> list[str]:
        if new is None:
            raise InvalidError(
                f"{keyid[:16]} is the key of a person: give the public file of the one that follows"
                " it (--new KEY.pub), or revoke it"
            )
        if new.keyid in self._all_keys():
            raise InvalidError(f"the new key {new.keyid[:16]} signs already")
        touched = self._swap(keyid, new)
        self._record("key.rotate", keyid, after={"keyid": new.keyid})
        return touched

    def _swap(self, keyid: str, new: SSlibKey | None) -> list[str]:
        """Replace a key wherever it signs, or take it away."""
        touched = []
        for name in (layout.IMAGE_ROOT, layout.DIRECTOR_ROOT, layout.TARGETS):
            roles = _roles(self._future(name).signed)
            using = [role for role, held in roles.items() if keyid in held.keyids]
            for role in using if new is None else ():
                if len(roles[role].keyids) <= roles[role].threshold:
                    raise ConflictError(
                        f"{role} needs {roles[role].threshold} keys, and too few remain without"
                        " this one; rotate it to a new key instead"
                    )
            if using:
                self._of(name).draft(
                    name, functools.partial(_swap, roles=using, old=keyid, new=new)
                )
                touched.append(name)
        return touched

    # --- drafting ---------------------------------------------------------------------------------

    def _of(self, name: str) -> ImageRepository | Director:
        return self._director if name == layout.DIRECTOR_ROOT else self._images

    def _draft_targets(self, change: Callable[[Signed], None]) -> None:
        self._images.draft(layout.TARGETS, change)

    def _record(self, action: str, subject: str, after: Json | None = None) -> None:
        with self._database.write() as session:
            audit.record(session, action, subject, self._clock(), after=after)


def _add_signatures(
    name: str,
    draft: File,
    given: File,
    present: Mapping[str, File],
    held: Held,
) -> list[str]:
    """Add the valid new signatures to `draft`; return the ids of their keys."""
    added = []
    for keyid, key in drafts.keys_of(name, present, held).items():
        signature = given.signatures.get(keyid)
        if signature is None or keyid in draft.signatures:
            continue
        if drafts.is_valid(key, signature, draft):
            draft.signatures[keyid] = signature
            added.append(keyid)
    return added


def _roles(signed: Signed) -> Mapping[str, Role]:
    """Return the roles whose keys a file names."""
    return signed.roles if isinstance(signed, Root) else _delegations(signed).roles or {}


def _delegations(signed: Signed) -> Delegations:
    assert isinstance(signed, Targets)  # asked of the top level only
    assert signed.delegations is not None  # which always has some
    return signed.delegations


def _drop_owner(targets: Signed, role: str) -> bool:
    """Take an owner's delegation away; return whether there was one."""
    roles = _delegations(targets).roles or {}
    if role not in roles:
        return False
    for keyid in list(roles[role].keyids):
        targets.revoke_key(keyid, role)
    del roles[role]
    return True


def _swap(signed: Signed, roles: Iterable[str], old: str, new: Key | None) -> None:
    for role in roles:
        signed.revoke_key(old, role)
        if new is not None:
            signed.add_key(new, role)


def _online_roles(what: str) -> list[str]:
    if what in layout.ONLINE_ROLES:
        return [what]
    repository, _, rest = what.partition(".")
    if rest != "online":
        return []
    return [role for role in layout.ONLINE_ROLES if role.startswith(f"{repository}.")]


def _naming(role: str) -> str:
    """Return the file that names the key of an online role."""
    if role.startswith(f"{layout.DIRECTOR}."):
        return layout.DIRECTOR_ROOT
    return layout.TARGETS if layout.role_of(role) == layout.RELEASES else layout.IMAGE_ROOT
