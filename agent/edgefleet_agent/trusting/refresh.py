"""What is asked of the TUF client, and asking it in a child process.

python-tuf and cryptography take 12 MiB that an agent needs for some milliseconds a day. So the
client workflow runs in a child (`tufclient`) that ends afterwards; what came from the network is
read there too. The child's answer is what it verified, and nothing else of what arrived.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

from msgspec import Struct, field

from edgefleet_agent.trusting import child

# A Raspberry Pi Zero takes some seconds to start Python and read its card. The engine waits: two
# of these are less than the watchdog's limit of one turn.
CHILD_TIMEOUT_S = 25.0
# One sentence of the client.
MAX_TEXT = 1000

Fault = Literal["", "unsigned", "expired", "length-or-hash", "version", "missing", "other"]


class Repository(Struct, frozen=True):
    """One repository as it has arrived.

    Attributes:
        folder: of the client's trusted metadata.
        bootstrap: version 1 of the root, from enrolment.
        parts: role, or `root-N` → content.
    """

    folder: str
    bootstrap: bytes
    parts: dict[str, bytes]


class Request(Struct, frozen=True, tag="verify"):
    """Verify what has arrived of one repository, or of both.

    Attributes:
        at: Unix time by which metadata expires.
        director: its top-level roles only; nothing is looked up through delegations.
        image: with the roles that the wanted paths are delegated to.
        wanted: paths to look up in the image repository, beside those that the director assigns.
    """

    at: float
    director: Repository | None = None
    image: Repository | None = None
    wanted: list[str] = field(default_factory=list)


class Target(Struct, frozen=True):
    """A verified target."""

    length: int
    hashes: dict[str, str]
    custom: object = None


class Found(Struct, frozen=True):
    """What came of looking a path up.

    Attributes:
        target: None if no role lists it, or if a role on the way was not taken.
        role: that was not taken; empty if all were.
        fault: why.
    """

    target: Target | None = None
    role: str = ""
    fault: Fault = ""
    text: str = ""


class Verified(Struct, frozen=True):
    """What the client says of one repository.

    Attributes:
        fault: empty if the top-level roles were verified and lie in the folder, durably.
        targets: of the director, all that it assigns.
        found: of the image repository, path → what was found.
        own: edgefleet's own signed field of the top-level targets role.
        delegates: whether the top-level targets role delegates.
        signers: keyids whose signatures on the top-level targets role were verified.
        keyids: that the root names for that role.
        threshold: of that role.
    """

    fault: Fault = ""
    text: str = ""
    targets: dict[str, Target] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    own: object = None
    delegates: bool = False
    signers: list[str] = field(default_factory=list)
    keyids: list[str] = field(default_factory=list)
    threshold: int = 1


class Outcome(Struct, frozen=True):
    """What the client said.

    Attributes:
        store_fault: a folder could not be written or read; nothing is known of the metadata.
    """

    director: Verified | None = None
    image: Verified | None = None
    store_fault: str = ""


class TimeCheck(Struct, frozen=True, tag="time"):
    """Verify the signature of an attested time.

    Attributes:
        folder: of the director's trusted metadata.
        bootstrap: version 1 of the director's root, from enrolment.
        roots: that came with the newest assignment, in order from version 1.
        statement: what was signed, without its domain.
        keyid: of the key that is said to have signed.
        signature: of it.
    """

    folder: str
    bootstrap: bytes
    roots: list[bytes]
    statement: bytes
    keyid: str
    signature: bytes


class TimeVerdict(Struct, frozen=True):
    """Whether the director's timestamp key signed an attested time.

    Attributes:
        fault: empty if it did.
        keyids: that the newest root names for the timestamp role.
    """

    fault: Fault = ""
    text: str = ""
    keyids: list[str] = field(default_factory=list)


Refresh = Callable[[Request], Outcome]
CheckTime = Callable[[TimeCheck], TimeVerdict]
_Answer = TypeVar("_Answer", Outcome, TimeVerdict)


def in_child(request: Request, *, timeout_s: float = CHILD_TIMEOUT_S) -> Outcome:
    """Run the client workflow in a child process.

    Raises:
        StoreError: if the child could not be started, or ended without an answer.
    """
    return _ask(request, Outcome, timeout_s)


def time_in_child(request: TimeCheck, *, timeout_s: float = CHILD_TIMEOUT_S) -> TimeVerdict:
    """Verify an attested time in a child process.

    Raises:
        StoreError: as for `in_child`.
    """
    return _ask(request, TimeVerdict, timeout_s)


def _ask(request: Request | TimeCheck, kind: type[_Answer], timeout_s: float) -> _Answer:
    failed = "signed metadata could not be judged"
    return child.ask("tufclient", request, kind, failed=failed, timeout_s=timeout_s)
