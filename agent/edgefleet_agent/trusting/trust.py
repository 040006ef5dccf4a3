"""Which assignment this device believes: TUF twice, then the rules of `protocol.trust`.

The image repository's roles arrive one by one on topics, the director's all in one message. Both
go through python-tuf's client, in a child process (`refresh`). Rules:

1. A set of image roles whose version numbers do not fit one another *yet* is waited for: parts of
   one publication arrive in any order. Only a set that fits is judged, or one that still does not
   fit after `SETTLE_S`. The version numbers are read before any signature is checked, so they
   decide nothing but when to look.
2. An assignment whose target the image repository does not list *yet* is waited for in the same
   way; afterwards it is refused.
3. An assignment is accepted as a whole or not at all: no partial bundle installation.
4. The highest accepted sequence is kept in a file of our own, written before the assignment is
   acted on. python-tuf does not fsync: with its `timestamp.json` and `snapshot.json` truncated by
   a power cut it would accept a replay. The file has two generations. If both are lost, what serves
   goes on, and no assignment is accepted: an old one could not be told from a new one.
5. Expired metadata is refused like any other; what is serving goes on, and so does listening.
6. What has been verified in this process is not verified again: the same assignment comes with
   every reconnection, and each verification is a process.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from edgefleet_agent import files
from edgefleet_agent.errors import StoreError
from edgefleet_agent.trusting import refresh
from edgefleet_agent.updating.journal import Assigned, Order, key_of
from edgefleet_protocol import codec, trust
from edgefleet_protocol.errors import MalformedError, RefusedError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Assignment, Slot
from edgefleet_protocol.trust import DirectorTarget, ImageTarget, Instructions

log = logging.getLogger(__name__)

# Parts of one publication are seconds apart at most; a hub that restarts needs some more.
SETTLE_S = 60.0
IMAGE_ROLES = ("timestamp", "snapshot", "targets")
MAX_ROOTS = 256
# As python-tuf bounds the targets role, the largest of them.
MAX_ROLE_BYTES = 5_000_000
ASSIGNMENT, IMAGE_METADATA = "assignment", "image metadata"
COUNTERS = "counters.json"


class Accepted(Struct, frozen=True):
    """A verified assignment: everything that this device is to run."""

    sequence: int
    targets: list[Assigned]


class Waiting(Struct, frozen=True):
    """Nothing to act on yet, and what is missing."""

    reason: str


class MetadataRefusedError(RefusedError):
    """A refusal that knows which message it is about.

    Attributes:
        what: `assignment` or `image metadata`.
        digest: of the message, so that the same one is reported once.
    """

    def __init__(self, what: str, reason: str, text: str, digest: str) -> None:
        super().__init__(reason, text)
        self.what = what
        self.digest = digest


class _Counters(Struct, frozen=True):
    sequence: int
    format: int = 1


class _Target(Struct, frozen=True):
    """A target of a verified targets role."""

    length: int
    hashes: dict[str, str]
    custom: object = None


class _Targets(Struct, frozen=True):
    """What is used of a verified targets role."""

    targets: dict[str, _Target]
    delegations: object = None
    instructions: object = field(default=None, name=trust.INSTRUCTIONS_FIELD)


class _SignedTargets(Struct, frozen=True):
    signed: _Targets


class _RefreshError(Exception):
    """The TUF client does not take what has arrived.

    Attributes:
        fault: see `refresh.Outcome`.
    """

    def __init__(self, fault: refresh.Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class Trust:
    """The trust state of one device. Used by one thread."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        board: str,
        image_root: bytes,
        director_root: bytes,
        run_client: refresh.Refresh = refresh.in_child,
    ) -> None:
        """Open the trust state in `folder`.

        Args:
            folder: `trust` in the store.
            device: this device's id.
            board: its board.
            image_root: version 1 of the image repository's root, from enrolment.
            director_root: likewise of the director's.
            run_client: runs the TUF client over what has arrived.

        Raises:
            StoreError: if the folders cannot be made.
        """
        self._device = device
        self._board = board
        self._run_client = run_client
        self._folders = {name: folder / name for name in ("image", "director")}
        self._roots = {"image": image_root, "director": director_root}
        self._counters_path = folder / COUNTERS
        try:
            for path in self._folders.values():
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"trust state in {folder} cannot be used: {error}") from error
        self._clear_leftovers()
        self._counters, self._lost = self._read_counters()
        self._image_parts: dict[str, bytes] = {}
        self._image_changed = False
        self._image: _Targets | None = None
        self._director: _Targets | None = None
        self._assignment: Assignment | None = None
        self._assignment_digest = ""
        self._waiting_since: float | None = None

    @property
    def sequence(self) -> int:
        """Sequence of the newest accepted assignment, 0 for none."""
        return self._counters.sequence

    def take_assignment(self, payload: bytes) -> None:
        """Keep an assignment message for `judge`.

        Raises:
            MetadataRefusedError: `malformed`, if it cannot be read.
        """
        digest = digest_of(payload)
        try:
            assignment = codec.decode(payload, Assignment)
        except MalformedError as error:
            raise MetadataRefusedError(ASSIGNMENT, "malformed", str(error), digest) from error
        if digest != self._assignment_digest:
            self._waiting_since = None
            self._director = None
        self._assignment, self._assignment_digest = assignment, digest

    def take_image_role(self, role: str, payload: bytes) -> None:
        """Keep one file of the image repository for `judge`; a role that is not used is left out.

        Raises:
            MetadataRefusedError: `too-large`.
        """
        is_root = role.startswith("root-") and role[5:].isdigit() and int(role[5:]) <= MAX_ROOTS
        if role not in IMAGE_ROLES and not is_root:
            return
        if len(payload) > MAX_ROLE_BYTES:
            raise MetadataRefusedError(
                IMAGE_METADATA,
                "too-large",
                f"image role {role} has {len(payload)} bytes; at most {MAX_ROLE_BYTES}",
                digest_of(payload),
            )
        name = f"{int(role[5:])}.root.json" if is_root else f"{role}.json"
        if self._image_parts.get(name) != payload:
            self._image_parts[name] = payload
            self._image_changed = True
            self._waiting_since = None

    def judge(self, now: float, floors: Mapping[str, int]) -> Accepted | Waiting | None:
        """Look at everything that has arrived.

        Args:
            now: monotonic seconds.
            floors: key of a lane → highest confirmed release.

        Returns:
            None if nothing has arrived that could be judged.

        Raises:
            MetadataRefusedError: if the image metadata or the assignment is refused.
            StoreError: if the trust state cannot be written.
        """
        try:
            verdict = self._judge_image(now) or self._judge_assignment(now, floors)
        except OSError as error:
            raise StoreError(f"trust state cannot be written: {error}") from error
        if isinstance(verdict, Waiting):
            if self._waiting_since is None:
                self._waiting_since = now
        else:
            self._waiting_since = None
        return verdict

    def _settled(self, now: float) -> bool:
        return self._waiting_since is not None and now - self._waiting_since >= SETTLE_S

    def _judge_image(self, now: float) -> Waiting | None:
        if not self._image_changed:
            return None
        missing = [role for role in IMAGE_ROLES if f"{role}.json" not in self._image_parts]
        if missing:
            return Waiting(f"the image roles {', '.join(missing)} have not arrived")
        if not _fit(self._image_parts) and not self._settled(now):
            return Waiting("the image roles that have arrived are of different publications")
        try:
            self._image = self._refresh("image", self._image_parts)
        except _RefreshError as error:
            new_keys = error.fault == "unsigned" and self._signer_is_unknown()
            if new_keys and not self._settled(now):
                return Waiting("the image timestamp is signed by keys of a root not here yet")
            raise self._image_refusal(error) from error
        self._image_changed = False
        return None

    def _image_refusal(self, error: _RefreshError) -> MetadataRefusedError:
        parts = self._image_parts
        digest = digest_of(b"".join(parts[name] for name in sorted(parts)))
        # The last good set stays in force; what was refused is not looked at again.
        self._image_parts = {}
        self._image_changed = False
        self._waiting_since = None
        reason = _reason(error, parts, self._folders["image"])
        text = f"image metadata refused: {error}"
        return MetadataRefusedError(IMAGE_METADATA, reason, text, digest)

    def _judge_assignment(self, now: float, floors: Mapping[str, int]) -> Accepted | Waiting | None:
        assignment, image = self._assignment, self._image
        if assignment is None:
            return None
        if self._lost:
            raise self._assignment_refusal(
                "counters-lost",
                f"the highest accepted assignment is not known any more ({self._lost}), so an old"
                " one could be replayed; enrol this device again with --force",
            )
        if image is None:
            return Waiting("no image metadata has arrived")
        parts = {
            "timestamp.json": assignment.timestamp,
            "snapshot.json": assignment.snapshot,
            "targets.json": assignment.targets,
            **{f"{n}.root.json": data for n, data in enumerate(assignment.roots, start=1)},
        }
        try:
            if self._director is None:
                self._director = self._refresh("director", parts)
            accepted = self._cross_check(self._director, image, floors)
        except _RefreshError as error:
            reason = _reason(error, parts, self._folders["director"])
            raise self._assignment_refusal(reason, f"assignment refused: {error}") from error
        except RefusedError as error:
            raise self._assignment_refusal(error.reason, str(error)) from error
        except MalformedError as error:
            raise self._assignment_refusal("malformed", str(error)) from error
        except _NotListedError as error:
            if not self._settled(now):
                return Waiting(str(error))
            raise self._assignment_refusal("mix-and-match", str(error)) from error
        if accepted.sequence > self._counters.sequence:
            counters = _Counters(accepted.sequence)
            files.write_kept(self._counters_path, msgspec.json.encode(counters))
            self._counters = counters
        return accepted

    def _assignment_refusal(self, reason: str, text: str) -> MetadataRefusedError:
        self._assignment = self._director = None
        self._waiting_since = None
        return MetadataRefusedError(ASSIGNMENT, reason, text, self._assignment_digest)

    def _cross_check(
        self, director: _Targets, image: _Targets, floors: Mapping[str, int]
    ) -> Accepted:
        instructions: Instructions = trust.read_custom(
            Instructions, director.instructions, "assignment"
        )
        trust.check_instructions(instructions, self._device, self._counters.sequence)
        if director.delegations is not None:
            raise MalformedError("assignment: the director must not delegate")
        targets = [
            self._check_target(path, ordered, image.targets.get(path), floors)
            for path, ordered in sorted(director.targets.items())
        ]
        keys = [target.key for target in targets]
        if len(set(keys)) != len(keys):
            raise MalformedError(f"assignment lists a model twice in one lane: {keys}")
        return Accepted(instructions.sequence, targets)

    def _check_target(
        self,
        path: str,
        ordered: _Target,
        vouched: _Target | None,
        floors: Mapping[str, int],
    ) -> Assigned:
        order: DirectorTarget = trust.read_custom(DirectorTarget, ordered.custom, path)
        if path != trust.target_path(order.model, order.release, order.variant):
            raise MalformedError(f"target {path} is of {order.model} release {order.release}")
        if vouched is None:
            raise _NotListedError(f"{path}: the image repository does not list it")
        running = Order(
            order.window_rows,
            order.confirm_rows,
            order.confirm_deadline_s,
            order.samples,
            order.role,
            order.share_percent,
            order.max_bytes,
            order.urgent,
        )
        trust.cross_check(
            path=path,
            director=order,
            director_length=ordered.length,
            director_hashes=ordered.hashes,
            image=trust.read_custom(ImageTarget, vouched.custom, path),
            image_length=vouched.length,
            image_hashes=vouched.hashes,
            board=self._board,
            release_floor=floors.get(key_of(order.model, running.lane), 0),
        )
        slot = Slot(
            order.model, order.version, order.release, order.variant, ordered.hashes["sha256"]
        )
        return Assigned(slot, order.runtime, ordered.length, order.attempt, running)

    def _refresh(self, name: str, parts: dict[str, bytes]) -> _Targets:
        """Run the TUF client and return the top-level targets role that it verified."""
        folder = self._folders[name]
        outcome = self._run_client(refresh.Request(str(folder), self._roots[name], parts))
        if outcome.store_fault:
            raise StoreError(f"trust state cannot be written: {outcome.store_fault}")
        if outcome.fault:
            raise _RefreshError(outcome.fault, outcome.text)
        data = (folder / "targets.json").read_bytes()
        try:
            return msgspec.json.decode(data, type=_SignedTargets).signed
        except msgspec.DecodeError as error:
            # Signed, and yet not as the format says.
            raise _RefreshError("other", f"the targets role cannot be read: {error}") from error

    def _signer_is_unknown(self) -> bool:
        root = json.loads((self._folders["image"] / "root.json").read_bytes())
        known = set(root["signed"]["roles"]["timestamp"]["keyids"])
        look = _look(self._image_parts.get("timestamp.json", b""))
        signatures = look.get("signatures") if look else None
        if not isinstance(signatures, list):
            return False
        signers = {item.get("keyid") for item in signatures if isinstance(item, dict)}
        return not signers & known

    def _read_counters(self) -> tuple[_Counters, str]:
        """Return the counters, and why they are lost if they are."""
        counters, complaint = files.read_kept(self._counters_path, _decode_counters)
        if counters is not None:
            if complaint:
                log.error("trust state: %s; the generation before is used", complaint)
            return counters, ""
        if not complaint and (self._folders["director"] / "timestamp.json").exists():
            complaint = f"{COUNTERS} is gone"
        if complaint:
            log.critical("trust state: %s; no assignment is accepted", complaint)
            return _Counters(0), complaint
        # Written before any assignment can be, so that "none yet" is never taken for "lost".
        with contextlib.suppress(OSError):
            files.write_kept(self._counters_path, msgspec.json.encode(_Counters(0)))
        return _Counters(0), ""

    def _clear_leftovers(self) -> None:
        """Delete what python-tuf was writing when the process died."""
        for folder in self._folders.values():
            for path in folder.glob("tmp*"):
                with contextlib.suppress(OSError):
                    path.unlink()


def _decode_counters(data: bytes) -> _Counters:
    return msgspec.json.decode(data, type=_Counters)


class _NotListedError(Exception):
    """The image repository does not list an assigned target."""


def _reason(error: _RefreshError, parts: Mapping[str, bytes], folder: Path) -> str:
    if error.fault == "unsigned":
        return "bad-signature"
    if error.fault == "expired":
        return "expired"
    if error.fault == "length-or-hash":
        return "mix-and-match"
    if error.fault == "version":
        held, sent = folder / "timestamp.json", parts.get("timestamp.json", b"")
        older = held.exists() and _version(sent) < _version(held.read_bytes())
        return "rollback" if older or _fit(parts) else "mix-and-match"
    return "malformed"


def _fit(parts: Mapping[str, bytes]) -> bool:
    """Tell whether the roles name one another's versions. Unreadable ones count as fitting.

    They are untrusted here: this only decides whether to judge now (rule 1).
    """
    looks = {role: _look(parts[f"{role}.json"]) for role in IMAGE_ROLES}
    for above, below in (("timestamp", "snapshot"), ("snapshot", "targets")):
        upper, lower = looks[above], looks[below]
        try:
            named = upper["signed"]["meta"][f"{below}.json"]["version"] if upper else None
            held = lower["signed"]["version"] if lower else None
        except (KeyError, TypeError):
            continue
        if named is not None and held is not None and named != held:
            return False
    return True


def _version(role: bytes) -> int:
    look = _look(role)
    signed = look.get("signed") if look else None
    version = signed.get("version") if isinstance(signed, dict) else None
    return version if isinstance(version, int) else 0


def _look(data: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
