"""Messages between hub and device, format version 1.

Each struct travels as the payload of one topic (see `topics`). Times are Unix seconds (UTC,
float), sizes are bytes, digests are SHA-256 in hexadecimal. Strings and lists from the network
carry their limits here, and the decoder refuses what is longer.
"""

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from edgefleet_protocol.blocks import MAX_BITMAP_BYTES

VERSION = 1

Name = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=2000)]
# The form is checked here because digests become names of files. The length is too: `$` lets a line
# end pass.
Digest = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0)]
Metadata = Annotated[bytes, Meta(max_length=400_000)]
Lane = Literal["primary", "challenger"]


class Step(StrEnum):
    """Where an update attempt stands on the device. `docs/protocol.md` has the table."""

    IDLE = "idle"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    TRYING = "trying"
    ACTIVE = "active"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"


FINAL_STEPS = frozenset(
    {Step.CONFIRMED, Step.FAILED, Step.ROLLED_BACK, Step.REJECTED, Step.SUPERSEDED}
)


class Slot(Struct, frozen=True, omit_defaults=True):
    """One model held on a device."""

    model: Name
    version: Name
    release: Count
    variant: Name
    manifest: Digest


class Tried(Struct, frozen=True, omit_defaults=True):
    """What a device measured in its trial of a candidate, before any decision to serve it.

    Attributes:
        latency_us: of one row.
        memory_bytes: resident memory that loading and running it added at its highest.
        provider: what computed, in the runtime's words.
    """

    latency_us: Annotated[float, Meta(ge=0)]
    memory_bytes: Count
    provider: Text = ""


class Attempt(Struct, frozen=True, omit_defaults=True):
    """The newest update attempt for one model.

    Attributes:
        number: set by the director; a device never goes back to a lower one.
        received_bytes: of `total_bytes`, what of the bundle has arrived so far.
        reason: why it ended as it did, or what it waits for.
        lane: whether it is about the release that answers, or about a challenger beside it.
        tried: figures of its trial; None until it was tried, or by an agent that does not say.
    """

    number: Count
    model: Name
    release: Count
    manifest: Digest
    step: Step
    reason: Text = ""
    received_bytes: Count = 0
    total_bytes: Count = 0
    lane: Lane = "primary"
    tried: Tried | None = None


class State(Struct, frozen=True, omit_defaults=True):
    """`up/state`: what the device runs now. A full snapshot, so the newest one replaces all others.

    Attributes:
        boot: how often this store was opened; with `sequence` it orders snapshots.
        sequence: counts snapshots within one boot.
        assignment: director sequence of the newest accepted assignment, 0 for none.
        serving: models that answer now (active or confirmed).
        previous: models kept to go back to.
        challengers: models that run beside a serving one, as a shadow or for a share of the calls.
    """

    device: Name
    boot: Count
    sequence: Count
    at: float
    agent_version: Name
    board: Name
    runtimes: Annotated[dict[Name, Name], Meta(max_length=16)]
    memory_bytes: Count
    assignment: Count
    serving: Annotated[list[Slot], Meta(max_length=64)]
    previous: Annotated[list[Slot], Meta(max_length=64)] = field(default_factory=list)
    attempts: Annotated[list[Attempt], Meta(max_length=128)] = field(default_factory=list)
    challengers: Annotated[list[Slot], Meta(max_length=64)] = field(default_factory=list)
    version: int = VERSION


class Health(Struct, frozen=True, omit_defaults=True):
    """Device health at the end of a window. None means that this board cannot tell.

    Attributes:
        cpu_percent: of all cores, over the window.
        memory_bytes: resident memory of the agent process.
        temperature_c: hottest sensor.
        disk_free_bytes: on the file system of the agent's store.
        uptime_s: of the machine.
        memory_free_bytes: that the machine could still give to processes.
        throttled: whether the board has slowed itself down (heat or under-voltage) since its start.
        clock_offset_s: the device's clock minus the hub's, as of the last acknowledgement.
        reports_dropped: by the bounded outbox since the agent started.
    """

    cpu_percent: float | None = None
    memory_bytes: Count | None = None
    temperature_c: float | None = None
    disk_free_bytes: Count | None = None
    uptime_s: float | None = None
    memory_free_bytes: Count | None = None
    throttled: bool | None = None
    clock_offset_s: float | None = None
    reports_dropped: Count = 0


class Window(Struct, frozen=True, omit_defaults=True, tag="window"):
    """Summary of one window of inference by one model on one device.

    Attributes:
        reference: digest of the reference profile whose edges the sketch uses.
        counts: `sketch.pack_counts` of the feature counts.
        moments: `sketch.pack_moments` of the feature moments.
        predictions: rows per class of the reference profile (classification), else empty.
        confidences: rows per 1/16 of top-class probability, else empty.
        psi: PSI of each feature against the profile, computed on the device.
        latency_us: rows per power-of-two bin of inference time; bin i is [2^i, 2^(i+1)) µs.
        errors: inferences that raised or gave non-finite output.
        labelled: rows whose true label is known; `correct` of them were predicted right.
    """

    model: Name
    version: Name
    release: Count
    manifest: Digest
    reference: Digest
    start: float
    end: float
    rows: Count
    counts: Annotated[bytes, Meta(max_length=200_000)]
    moments: Annotated[bytes, Meta(max_length=200_000)]
    predictions: Annotated[list[Count], Meta(max_length=1024)] = field(default_factory=list)
    confidences: Annotated[list[Count], Meta(max_length=16)] = field(default_factory=list)
    psi: Annotated[list[float], Meta(max_length=4096)] = field(default_factory=list)
    latency_us: Annotated[list[Count], Meta(max_length=32)] = field(default_factory=list)
    errors: Count = 0
    labelled: Count = 0
    correct: Count = 0
    health: Health = field(default_factory=Health)


class Samples(Struct, frozen=True, omit_defaults=True, tag="samples"):
    """Labelled rows, sent only where the device consents and a signed policy asks for them.

    Attributes:
        columns: feature names, in the order of the rows.
        rows: little-endian float32, shape `(len(labels), len(columns))`.
        purpose: as named in the policy.
    """

    model: Name
    version: Name
    release: Count
    purpose: Name
    columns: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=4096)]
    rows: Annotated[bytes, Meta(max_length=400_000)]
    labels: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=10_000)]
    predicted: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=10_000)]


class Result(Struct, frozen=True, omit_defaults=True, tag="result"):
    """How an update attempt ended. Never dropped from a device's outbox."""

    attempt: Count
    model: Name
    version: Name
    release: Count
    manifest: Digest
    outcome: Step
    reason: Text = ""
    bytes_fetched: Count = 0
    seconds: float = 0.0


class Refusal(Struct, frozen=True, omit_defaults=True, tag="refusal"):
    """Something arrived that the device would not take: an attack, or damage on the way.

    Attributes:
        what: what was refused (`artifact block`, `assignment`, `image metadata`, `bundle`).
        reason: machine-readable word (`rollback`, `hash-mismatch`, `wrong-device`, …).
    """

    what: Name
    reason: Name
    text: Text
    digest: Annotated[str, Meta(max_length=64)] = ""


class Attested(Struct, frozen=True, tag="attested"):
    """What the device runs, signed with its own key: neither a broker nor the network can alter it.

    Attributes:
        statement: `statements.DeviceStatement` as msgpack, signed as these bytes.
        signature: of `statements.signed_statement(statement)`.
    """

    statement: Annotated[bytes, Meta(max_length=64_000)]
    signature: Annotated[bytes, Meta(max_length=512)]


class Report(Struct, frozen=True, omit_defaults=True):
    """`up/report`: one entry of the device's outbox, repeated until the hub acknowledges it.

    `(device, store, number)` names it for ever; the hub stores it once however often it arrives.

    Attributes:
        store: random name of the device's store, new when the store is.
        number: counts the reports of that store.
    """

    device: Name
    store: Name
    number: Count
    at: float
    body: Window | Samples | Result | Refusal | Attested
    version: int = VERSION


class BlockRequest(Struct, frozen=True, omit_defaults=True, tag="blocks"):
    """`up/request`: the device wants these blocks, and has room for all of them.

    The device is the one that paces: it asks for a few blocks, and for more when they are there.
    """

    digest: Digest
    bitmap: Annotated[bytes, Meta(max_length=MAX_BITMAP_BYTES)]


class SyncRequest(Struct, frozen=True, omit_defaults=True, tag="sync"):
    """`up/request`: publish this device's assignment and the image metadata again."""

    reason: Text = ""


class TimeRequest(Struct, frozen=True, omit_defaults=True, tag="time"):
    """`up/request`: the device wants to know the time, attested by the director.

    Attributes:
        nonce: random, so that no answer to an earlier question fits.
    """

    nonce: Annotated[bytes, Meta(min_length=16, max_length=32)]


Request = BlockRequest | SyncRequest | TimeRequest


class Block(Struct, frozen=True, tag="block"):
    """`down/blocks` and `fleet/blob`: one block of an artifact."""

    digest: Digest
    index: Count
    payload: Annotated[bytes, Meta(max_length=128 * 1024)]


class BlocksUnavailable(Struct, frozen=True, tag="unavailable"):
    """`down/blocks`: the hub cannot serve this artifact, and why."""

    digest: Digest
    reason: Text


BlockAnswer = Block | BlocksUnavailable


class Assignment(Struct, frozen=True):
    """`down/assignment`, retained: the director repository of one device, as TUF JSON files.

    Attributes:
        roots: every root version from 1 on, so that a device of any age can walk the chain.
    """

    roots: Annotated[list[Metadata], Meta(max_length=64)]
    timestamp: Metadata
    snapshot: Metadata
    targets: Metadata
    version: int = VERSION


class TimeAttestation(Struct, frozen=True):
    """`down/time`: what time it is, signed by the director's timestamp key.

    Attributes:
        statement: `attesting.TimeStatement` as msgpack, signed as these bytes.
        keyid: of the key, as the director's root names it.
        signature: of `attesting.signed_time(statement)`.
    """

    statement: Annotated[bytes, Meta(max_length=1000)]
    keyid: Digest
    signature: Annotated[bytes, Meta(max_length=1000)]


class Ack(Struct, frozen=True):
    """`down/ack`: these reports are committed in the hub's database and may be forgotten.

    Attributes:
        at: the hub's time, by which a device can tell how wrong its own clock is; 0 if not told.
    """

    store: Name
    numbers: Annotated[list[Count], Meta(max_length=10_000)]
    at: float = 0.0
