"""Which assignment this device believes: TUF twice, then the rules of `protocol.trust`.

The image repository's roles arrive one by one on topics, the director's all in one message. Both
go through python-tuf's client, in one child process (`refresh`). Rules:

1. A set of image roles that is not whole *yet* is waited for: parts of one publication arrive in
   any order (`parts`). Only a whole set is judged, or one to which nothing was added for
   `bounds.SETTLE_S`, or one that is not whole after `bounds.WHOLE_S`, whatever was added.
2. Of the image repository, the paths that the director assigns are looked up, through delegations.
   A path that nobody lists *yet*, or whose role is not here yet, is waited for in the same way;
   afterwards the assignment is refused.
3. An assignment is accepted as a whole or not at all: no partial bundle installation.
4. Which assignments are too old is kept in a file of our own (`counters`), written before the
   assignment is acted on. python-tuf does not fsync: with its `timestamp.json` and `snapshot.json`
   truncated by a power cut it would accept a replay.
5. Nothing is judged before the time is attested (`timekeeping`): by any other clock what expired
   while the device was off might look fresh, or what is fresh expired. That costs nothing: who can
   keep the answer back can keep the assignment back as well. Expired metadata is refused like any
   other; what is serving goes on, and so does listening.
6. What has been verified in this process is not verified again: the same assignment comes with
   every reconnection, and each verification is a process.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from edgefleet_agent.errors import StoreError
from edgefleet_agent.trusting import bounds, parts, refresh
from edgefleet_agent.trusting.counters import CounterFile, floor_of
from edgefleet_agent.trusting.refresh import Found, Repository, Target, Verified
from edgefleet_agent.trusting.timekeeping import Instant
from edgefleet_agent.updating.journal import Assigned, Order, key_of
from edgefleet_protocol import codec, trust
from edgefleet_protocol.errors import MalformedError, RefusedError, TooLargeError
from edgefleet_protocol.identifiers import digest_of
from edgefleet_protocol.messages import Assignment, Slot
from edgefleet_protocol.trust import DirectorTarget, Fleet, ImageTarget, Instructions

ASSIGNMENT, IMAGE_METADATA = "assignment", "image metadata"
SETTLE_S = bounds.SETTLE_S


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


class _NotListedError(Exception):
    """An assigned target cannot be found in the image repository, as far as it has arrived."""


_NOT_WAITING: tuple[Waiting | None, bool] = (None, False)


def _system_time() -> Instant:
    return Instant(time.time(), attested=True)


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
        instant: Callable[[], Instant] = _system_time,
    ) -> None:
        """Open the trust state in `folder`.

        Args:
            folder: `trust` in the store.
            device: this device's id.
            board: its board.
            image_root: version 1 of the image repository's root, from enrolment.
            director_root: likewise of the director's.
            run_client: runs the TUF client over what has arrived.
            instant: the time by which metadata expires, and whether the hub has attested it.

        Raises:
            StoreError: if the folders cannot be made.
        """
        self._device = device
        self._board = board
        self._run_client = run_client
        self._instant = instant
        self._folders = {name: folder / name for name in ("image", "director")}
        self._roots = {"image": image_root, "director": director_root}
        try:
            for path in self._folders.values():
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"trust state in {folder} cannot be used: {error}") from error
        self._clear_leftovers()
        known = (self._folders["director"] / "timestamp.json").exists()
        self._counters = CounterFile(folder, expected=known)
        self._parts = parts.Parts()
        self._image: Verified | None = None
        self._fleet: Fleet | None = None
        self._found: dict[str, Found] = {}
        self._director: Verified | None = None
        self._assignment: Assignment | None = None
        self._assignment_digest = ""
        self._patience = bounds.Patience()
        self._offline = False
        # What is waited for, and whether by an attested time; none if something has come since.
        self._waiting: tuple[Waiting | None, bool] = _NOT_WAITING

    @property
    def sequence(self) -> int:
        """Sequence of the newest accepted assignment, 0 for none."""
        return self._counters.counters.sequence

    @property
    def fleet(self) -> Fleet | None:
        """What the newest verified image repository says to all devices, None if nothing yet."""
        return self._fleet

    @property
    def authorities(self) -> list[str]:
        """PEM certificates of the hub's CAs in `fleet`; empty if it says nothing of them."""
        return self._fleet.authorities if self._fleet else []

    @property
    def director_roots(self) -> list[bytes]:
        """Roots of the director as the newest assignment brought them, from version 1 on."""
        return self._assignment.roots if self._assignment else []

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
        if digest != self._assignment_digest or self._assignment is None:
            self._arrived()
            self._director = None
        self._assignment, self._assignment_digest = assignment, digest

    def take_image_role(self, role: str, payload: bytes) -> None:
        """Keep one file of the image repository for `judge`; a role that is not used is left out.

        Raises:
            MetadataRefusedError: `too-large`.
        """
        try:
            if self._parts.take(role, payload):
                self._arrived()
        except TooLargeError as error:
            raise MetadataRefusedError(
                IMAGE_METADATA, "too-large", str(error), digest_of(payload)
            ) from error

    def interrupted(self) -> None:
        """Note that nothing can arrive: nobody is late while the device is not connected."""
        self._settled()
        self._offline = True

    def resumed(self) -> None:
        """Note that the device is connected again; what is waited for has all of its time."""
        self._settled()
        self._offline = False

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
        at = self._instant()
        stalled = self._patience.stalled(now)
        waiting, by = self._waiting
        if waiting and by == at.attested and not stalled:
            return waiting  # nothing has changed since
        try:
            verdict = self._judge(now, at, floors)
        except OSError as error:
            raise StoreError(f"trust state cannot be written: {error}") from error
        if isinstance(verdict, Waiting):
            if not self._offline:
                self._patience.waits(now)
            self._waiting = (verdict, at.attested)
        else:
            self._settled()
        return verdict

    def _arrived(self) -> None:
        self._patience.progressed()
        self._waiting = _NOT_WAITING

    def _settled(self) -> None:
        self._patience.ends()
        self._waiting = _NOT_WAITING

    def _judge(
        self, now: float, at: Instant, floors: Mapping[str, int]
    ) -> Accepted | Waiting | None:
        # 1. Is there anything to judge, and is it whole?
        if self._assignment is None and not self._parts.changed:
            return None
        waiting = self._unattested(now, at)
        if waiting:
            return waiting
        lacking = self._lacking(now)
        if lacking:
            return Waiting(lacking)
        # 2. Signatures, versions and expiry, by the TUF client.
        waiting = self._verify(now, at)
        if waiting or self._assignment is None:
            return waiting
        # 3. Do both repositories agree, and is it for this device, and new enough?
        try:
            return self._accept(floors)
        except RefusedError as error:
            raise self._assignment_refused(error.reason, str(error)) from error
        except MalformedError as error:
            raise self._assignment_refused("malformed", str(error)) from error
        except _NotListedError as error:
            if not self._patience.stalled(now):
                return Waiting(str(error))
            raise self._assignment_refused("mix-and-match", str(error)) from error

    def _unattested(self, now: float, at: Instant) -> Waiting | None:
        """Wait for the attested time (rule 5)."""
        if at.attested:
            return None
        if self._assignment is None or not self._patience.stalled(now):
            return Waiting("the hub has not attested the time yet")
        text = f"the hub has not attested the time within {bounds.SETTLE_S:.0f} s"
        raise self._assignment_refused("time-not-attested", f"assignment not judged: {text}")

    def _lacking(self, now: float) -> str:
        """Say what of the image repository is waited for; empty if it can be judged (rule 1)."""
        missing = self._parts.missing_top()
        if missing and self._parts.changed and self._patience.overdue(now):
            text = f"{missing}, within {bounds.WHOLE_S:.0f} s of the first"
            raise self._image_refused("slow-retrieval", text)
        if missing or not self._parts.changed or self._patience.stalled(now):
            return missing
        return self._parts.lacking()

    def _verify(self, now: float, at: Instant) -> Waiting | None:
        """Run the TUF client over what it has not verified yet, and keep what it says."""
        known = set(self._director.targets) if self._director else set()
        assignment = self._assignment if self._director is None else None
        if self._counters.lost:
            assignment = None  # refused whatever it is
        if assignment is None and not self._parts.changed and known <= set(self._found):
            return None
        sent = None if assignment is None else self._sent(assignment)
        outcome = self._run_client(
            refresh.Request(
                at.at,
                None if sent is None else self._repository("director", sent.all()),
                self._repository("image", self._parts.all()),
                sorted(known),
            )
        )
        if outcome.store_fault:
            raise StoreError(f"trust state cannot be written: {outcome.store_fault}")
        director, image = outcome.director, outcome.image
        if director and not director.fault:
            self._director = director
        waiting = self._take_image(image, now) if image else None
        if waiting or sent is None or director is None or not director.fault:
            return waiting
        reason = self._reason(director, "director", sent)
        raise self._assignment_refused(reason, f"assignment refused: {director.text}")

    def _sent(self, assignment: Assignment) -> parts.Parts:
        """Return the roles of an assignment."""
        sent = parts.Parts()
        try:
            for number, root in enumerate(assignment.roots, start=1):
                sent.take(f"root-{number}", root)
            for role in parts.TOP_ROLES:
                sent.take(role, getattr(assignment, role))
        except TooLargeError as error:
            raise self._assignment_refused("too-large", f"assignment: {error}") from error
        return sent

    def _repository(self, name: str, roles: dict[str, bytes]) -> Repository:
        return Repository(str(self._folders[name]), self._roots[name], roles)

    def _take_image(self, image: Verified, now: float) -> Waiting | None:
        """Keep what the client says of the image repository."""
        if image.fault:
            if image.fault == "expired":
                self._image, self._found = None, {}
                self._parts.forget()
            new_keys = image.fault == "unsigned" and self._signer_is_unknown()
            if new_keys and not self._patience.stalled(now):
                return Waiting("the image timestamp is signed by keys of a root not here yet")
            reason = self._reason(image, "image", self._parts)
            raise self._image_refused(reason, f"image metadata refused: {image.text}")
        fleet: Fleet | None = None
        try:
            if image.own is not None:
                fleet = trust.read_custom(Fleet, image.own, "top-level targets role")
        except MalformedError as error:
            raise self._image_refused("malformed", f"image metadata refused: {error}") from error
        self._parts.verified()
        self._image, self._fleet, self._found = image, fleet, image.found
        for path, found in image.found.items():
            if found.fault not in ("", "missing"):
                raise self._role_refused(path, found)
        return None

    def _role_refused(self, path: str, found: Found) -> MetadataRefusedError:
        """Refuse a delegated role: only it is waited for anew."""
        digest = self._parts.drop(found.role)
        reason = _REASONS.get(found.fault, "mix-and-match")
        text = f"image metadata refused: role {found.role} for {path}: {found.text}"
        self._found = {}
        if not digest:
            return self._assignment_refused(reason, text)
        self._settled()
        return MetadataRefusedError(IMAGE_METADATA, reason, text, digest)

    def _image_refused(self, reason: str, text: str) -> MetadataRefusedError:
        # The last good set stays in force; what was refused is not looked at again.
        digest = self._parts.refused()
        self._settled()
        return MetadataRefusedError(IMAGE_METADATA, reason, text, digest)

    def _assignment_refused(self, reason: str, text: str) -> MetadataRefusedError:
        self._assignment = self._director = None
        self._settled()
        return MetadataRefusedError(ASSIGNMENT, reason, text, self._assignment_digest)

    def _accept(self, floors: Mapping[str, int]) -> Accepted:
        """Apply the rules of `protocol.trust` to what both repositories say."""
        if self._counters.lost:
            raise RefusedError(
                "counters-lost",
                "the highest accepted assignment is not known any more"
                f" ({self._counters.lost}), so an old one could be replayed; enrol this device"
                " again with --force",
            )
        director = self._director
        if director is None or self._image is None:
            raise _NotListedError("the image metadata has not been verified")
        instructions: Instructions = trust.read_custom(Instructions, director.own, "assignment")
        floor = floor_of(self._counters.counters, director.keyids, director.threshold)
        trust.check_instructions(instructions, self._device, floor)
        if director.delegates:
            raise MalformedError("assignment: the director must not delegate")
        targets = [
            self._check_target(path, ordered, floors)
            for path, ordered in sorted(director.targets.items())
        ]
        keys = [target.key for target in targets]
        if len(set(keys)) != len(keys):
            raise MalformedError(f"assignment lists a model twice in one lane: {keys}")
        self._counters.accept(instructions.sequence, director.signers)
        return Accepted(instructions.sequence, targets)

    def _check_target(self, path: str, ordered: Target, floors: Mapping[str, int]) -> Assigned:
        order: DirectorTarget = trust.read_custom(DirectorTarget, ordered.custom, path)
        if path != trust.target_path(order.model, order.release, order.variant):
            raise MalformedError(f"target {path} is of {order.model} release {order.release}")
        found = self._found.get(path, Found())
        vouched = found.target
        if vouched is None:
            why = f" ({found.text})" if found.text else ""
            raise _NotListedError(f"{path}: the image repository does not list it{why}")
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

    def _signer_is_unknown(self) -> bool:
        """Tell whether the image timestamp is signed by keys that no root here names."""
        root = parts.Root.read((self._folders["image"] / "root.json").read_bytes())
        return not self._parts.keyids("timestamp") & root.keyids("timestamp")

    def _reason(self, verified: Verified, name: str, sent: parts.Parts) -> str:
        """Return the word that a refusal of the TUF client is reported by."""
        if verified.fault != "version":
            return _REASONS.get(verified.fault, "malformed")
        held = self._folders[name] / "timestamp.json"
        newest = parts.version_of(held.read_bytes()) if held.exists() else 0
        older = sent.version("timestamp") < newest
        return "rollback" if older or not sent.lacking() else "mix-and-match"

    def _clear_leftovers(self) -> None:
        """Delete what python-tuf was writing when the process died."""
        for folder in self._folders.values():
            for path in folder.glob("tmp*"):
                with contextlib.suppress(OSError):
                    path.unlink()


_REASONS = {
    "unsigned": "bad-signature",
    "expired": "expired",
    "length-or-hash": "mix-and-match",
    "version": "mix-and-match",
    "other": "malformed",
}
