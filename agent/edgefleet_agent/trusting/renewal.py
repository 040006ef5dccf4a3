"""When a certificate is renewed, and what is asked of the program that holds the keys.

`cryptography` takes 8 MiB that an agent needs for some milliseconds a day, and keys are better not
in the memory of a process that models run in. So `keyholder` looks at certificates, renews and
signs in a child process that ends afterwards. Rules of renewing:

1. It is due at two thirds of the certificate's life, somewhat earlier by a random share, so that a
   fleet that was enrolled in one hour does not come back in one hour.
2. After a failure it is tried again, after a pause that doubles, for ever: a certificate that has
   expired renews in the same way.
3. A hub that refuses is asked again as well, more slowly: it may be made to change its mind.
"""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from edgefleet_agent.trusting import child

# Two exchanges with a hub far away, and a start of Python on a slow board.
CHILD_TIMEOUT_S = 90.0
FIRST_PAUSE_S, LAST_PAUSE_S = 60.0, 6 * 3600.0
REFUSED_PAUSE_S = 3600.0
_DUE_AT, _SPREAD = 2 / 3, 0.1
# One sentence; the log has no use for more.
MAX_TEXT = 1000

Failure = Literal["", "unreachable", "refused", "damaged", "store"]


class Look(Struct, frozen=True, tag="look"):
    """Read the certificate that is tried first, and the authorities.

    Attributes:
        folder: of the identity.
    """

    folder: str


class Renew(Struct, frozen=True, tag="renew"):
    """Ask the hub for a new certificate, and keep it beside the one before.

    Attributes:
        folder: of the identity.
        url: of the hub.
        device: this device's id.
        without_dates: whether the dates of the hub's certificate are left out (`timekeeping`).
    """

    folder: str
    url: str
    device: str
    without_dates: bool


class Sign(Struct, frozen=True, tag="sign"):
    """Sign with the anchor if there is one, else with the key of the certificate.

    Attributes:
        folder: of the identity.
        data: to be signed, domain included.
    """

    folder: str
    data: bytes


class Facts(Struct, frozen=True):
    """What a certificate says.

    Attributes:
        serial: lower-case hexadecimal.
        not_before: Unix seconds, as `not_after`.
        authorities: fingerprints of the hub's authorities that are trusted.
        key: where the key lives that renews and signs.
    """

    serial: str
    not_before: float
    not_after: float
    authorities: list[str]
    key: Literal["file", "tpm", "pkcs11"]


class Answer(Struct, frozen=True):
    """What came of a request.

    Attributes:
        failure: empty if it was done; `damaged` if key or certificate cannot be used.
        facts: of a look, or of the new certificate.
    """

    failure: Failure = ""
    text: str = ""
    facts: Facts | None = None
    signature: bytes = b""


Request = Look | Renew | Sign
Ask = Callable[[Request], Answer]


def due_at(facts: Facts, chance: float) -> float:
    """Return when a certificate is to be renewed, Unix seconds.

    Args:
        facts: of the certificate.
        chance: a random number in [0, 1).
    """
    life_s = facts.not_after - facts.not_before
    return facts.not_before + life_s * (_DUE_AT - _SPREAD * chance)


def pause_s(failures: int, *, refused: bool, chance: float) -> float:
    """Return how long to wait before the next try.

    Args:
        failures: in a row, 1 or more.
        refused: whether the hub said no.
        chance: a random number in [0, 1).
    """
    first = REFUSED_PAUSE_S if refused else FIRST_PAUSE_S
    # Beyond 2^16 every pause is the last one.
    doubled: float = min(first * 2 ** min(failures - 1, 16), LAST_PAUSE_S)
    return doubled * (0.5 + chance / 2)


def in_child(request: Request, *, timeout_s: float = CHILD_TIMEOUT_S) -> Answer:
    """Have `keyholder` do it in a child process.

    Raises:
        StoreError: if the child could not be started, or ended without an answer.
    """
    failed = "the device's key could not be used"
    return child.ask("keyholder", request, Answer, failed=failed, timeout_s=timeout_s)
