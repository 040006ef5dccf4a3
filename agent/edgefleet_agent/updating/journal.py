"""What a device remembers of one lane of one model: values only, as they lie on disk.

A *lane* is a place for releases of a model: the `primary` answers, the `challenger` runs beside it.
Each has a journal of its own, named by its key; to the update table they are alike.
"""

from typing import Annotated

from msgspec import Meta, Struct

from edgefleet_protocol.manifest import Runtime
from edgefleet_protocol.messages import FINAL_STEPS, Count, Lane, Slot, Step, Tried
from edgefleet_protocol.trust import Role, SamplePolicy

FORMAT = 1
# No model name has a tilde in it.
_CHALLENGER = "~challenger"


def key_of(model: str, lane: Lane) -> str:
    """Return the name of a lane of a model: of its journal, and in every table by lane."""
    return model if lane == "primary" else model + _CHALLENGER


class Order(Struct, frozen=True):
    """How the director wants a release to be run; see `protocol.trust.DirectorTarget`."""

    window_rows: Annotated[int, Meta(ge=1)]
    confirm_rows: Annotated[int, Meta(ge=0)]
    confirm_deadline_s: Annotated[int, Meta(gt=0)]
    samples: SamplePolicy | None = None
    role: Role = "primary"
    share_percent: Annotated[int, Meta(ge=1, le=99)] = 50
    max_bytes: Count = 0
    urgent: bool = False

    @property
    def lane(self) -> Lane:
        """The lane that the role belongs to."""
        return "primary" if self.role == "primary" else "challenger"


class Assigned(Struct, frozen=True):
    """One model in one lane, as a verified assignment lists it.

    Attributes:
        manifest_bytes: length of the manifest, as signed.
    """

    slot: Slot
    runtime: Runtime
    manifest_bytes: Count
    attempt: Count
    order: Order

    @property
    def key(self) -> str:
        """Of the lane that it is for."""
        return key_of(self.slot.model, self.order.lane)


class Installed(Struct, frozen=True):
    """A release that was confirmed on this device.

    Attributes:
        attempt: number of the attempt that brought it; grows over all models of a device.
    """

    slot: Slot
    order: Order
    attempt: Count = 0


class Try(Struct, frozen=True):
    """One attempt, finished or not.

    Attributes:
        reason: why it ended as it did.
        began_at: Unix seconds, for people only: this clock may be wrong by years.
        seconds: that the agent has worked on it, over all its processes, as last written.
        starts: how often the agent has started while this attempt was `active`.
        fetched_bytes: received for this attempt.
        total_bytes: to be received, 0 while the manifest is not there.
        reported: its result is in the outbox.
        tried: figures of its trial, for the hub.
    """

    number: Count
    target: Assigned
    step: Step
    began_at: float
    reason: str = ""
    seconds: float = 0.0
    starts: Count = 0
    fetched_bytes: Count = 0
    total_bytes: Count = 0
    reported: bool = False
    tried: Tried | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.step in FINAL_STEPS


class Failures(Struct, frozen=True):
    """How often attempts at one manifest have ended badly.

    Attributes:
        since: Unix seconds of the first of them.
        reason: of the last of them.
    """

    manifest: str
    count: Count
    since: float
    reason: str = ""


class Journal(Struct, frozen=True):
    """Everything that a device remembers of one lane, in one file that is replaced as a whole.

    It stays when the model is withdrawn, because the floor and the attempt number must.

    Attributes:
        current: the newest confirmed release.
        previous: the one before it, kept to go back to.
        floor: highest confirmed release number.
        failures: of the manifests that failed last, newest last.
    """

    model: str
    current: Installed | None = None
    previous: Installed | None = None
    attempt: Try | None = None
    floor: Count = 0
    lane: Lane = "primary"
    failures: tuple[Failures, ...] = ()
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Name of the lane."""
        return key_of(self.model, self.lane)

    @property
    def candidate(self) -> Installed | None:
        """The release of an unconfirmed, active attempt."""
        if self.attempt is None or self.attempt.step is not Step.ACTIVE:
            return None
        target = self.attempt.target
        return Installed(target.slot, target.order, self.attempt.number)

    @property
    def serving(self) -> Installed | None:
        """What answers now: it follows from the journal alone."""
        return self.candidate or self.current

    @property
    def kept(self) -> Installed | None:
        """What can be gone back to."""
        return self.current if self.candidate else self.previous

    @property
    def manifests(self) -> set[str]:
        """Digests of all manifests whose files must stay on disk."""
        held = {item.slot.manifest for item in (self.current, self.previous) if item}
        if self.attempt and not self.attempt.is_final:
            held.add(self.attempt.target.slot.manifest)
        return held
