"""Which device gets a release in which stage. Decisions only.

Rules:

1. Every device that some variant fits is in exactly one stage; every other is skipped, with the
   reason.
2. Within a rollout the order of devices is a hash of model, release and device: the same question
   gives the same plan, and another release starts with other devices. Devices that are known to be
   faulty or silent come last, because they can prove nothing about a release.
3. Shares are cumulative and end with all: the last stage takes what is left.
4. A canary has at least one device, at least two where the group has eight or more, and tries every
   variant as far as its size allows.
5. A stage that would have no device is left out.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, get_args

from msgspec import Struct

from edgefleet_cloud.errors import InvalidError

Strategy = Literal["direct", "staged", "canary"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

STAGED_SHARES = (0.25, 0.5, 1.0)
CANARY_SHARE = 0.15
# After the canary: half, then all.
CANARY_NEXT = (0.5, 1.0)
CANARY_PAIR_FROM = 8


class Candidate(Struct, frozen=True):
    """A device of the group, with the best variant for it.

    Attributes:
        variant: None if no variant fits.
        transfer_bytes: of that variant's bundle; 0 if the device holds it already.
        reason: why this variant, or why none.
        sound: neither silent nor under an open device fault.
    """

    device: str
    variant: str | None
    transfer_bytes: int
    reason: str
    sound: bool = True


class Stage(Struct, frozen=True):
    """Devices that are ordered together."""

    name: str
    devices: list[Candidate]


class Plan(Struct, frozen=True):
    """What a rollout would do: every stage, device, variant, byte and reason."""

    strategy: str
    stages: list[Stage]
    skipped: list[Candidate]

    @property
    def transfer_bytes(self) -> int:
        """Bytes that would travel to all devices together."""
        return sum(device.transfer_bytes for stage in self.stages for device in stage.devices)


def make(
    candidates: Sequence[Candidate],
    strategy: str,
    seed: str,
    shares: Sequence[float] | None = None,
) -> Plan:
    """Put the devices of a group into stages.

    Args:
        candidates: each device once.
        strategy: `direct` (one stage), `staged` or `canary`.
        seed: of the order, `model/release`.
        shares: cumulative shares of the stages instead of the strategy's own; for a canary the
            first is the canary's.

    Raises:
        InvalidError: unknown strategy, shares that do not rise to 1, or no device at all.
    """
    if strategy not in STRATEGIES:
        raise InvalidError(f"strategy {strategy!r}: expected one of {', '.join(STRATEGIES)}")
    skipped = [candidate for candidate in candidates if candidate.variant is None]
    fitting = sorted(
        (candidate for candidate in candidates if candidate.variant is not None),
        key=lambda candidate: (not candidate.sound, _rank(seed, candidate.device)),
    )
    if not fitting:
        why = f": {skipped[0].device}: {skipped[0].reason}" if skipped else ""
        raise InvalidError(f"no device of the group can take this version{why}")
    sizes = _sizes(strategy, len(fitting), check_shares(shares) if shares else None)
    if strategy == "canary":
        fitting = _every_variant_first(fitting, sizes[0])
    stages: list[Stage] = []
    start = 0
    for end in sizes:
        if end > start:
            name = _name(strategy, len(stages), end, len(fitting))
            stages.append(Stage(name, fitting[start:end]))
            start = end
    return Plan(strategy, stages, skipped)


def check_shares(shares: Sequence[float]) -> list[float]:
    """Return shares if they rise strictly from above 0 to exactly 1.

    Raises:
        InvalidError: if they do not, or one is not a number.
    """
    given = list(shares)
    rising = all(left < right for left, right in zip([0.0, *given], given, strict=False))
    if not given or not all(map(math.isfinite, given)) or not rising or given[-1] != 1.0:
        raise InvalidError(
            f"stage shares {given}: expected cumulative shares rising to 1, such as 0.25, 0.5, 1"
        )
    return given


def _sizes(strategy: str, total: int, shares: list[float] | None) -> list[int]:
    """Return how many devices there are up to the end of each stage."""
    if strategy == "direct":
        used = shares or [1.0]
    elif strategy == "staged":
        used = shares or list(STAGED_SHARES)
    else:
        first, *rest = shares or [CANARY_SHARE, *CANARY_NEXT]
        floor = 2 if total >= CANARY_PAIR_FROM else 1
        canary = max(floor, round(first * total))
        return [min(canary, total), *(max(canary, math.ceil(share * total)) for share in rest)]
    return [math.ceil(share * total) for share in used]


def _every_variant_first(fitting: list[Candidate], size: int) -> list[Candidate]:
    """Move one device of each variant to the front, as far as `size` allows."""
    firsts: dict[str | None, Candidate] = {}
    for candidate in fitting:
        if candidate.sound:
            firsts.setdefault(candidate.variant, candidate)
    chosen = list(firsts.values())[:size]
    return chosen + [candidate for candidate in fitting if candidate not in chosen]


def _name(strategy: str, index: int, end: int, total: int) -> str:
    if strategy == "canary" and index == 0:
        return "canary"
    return "all" if end >= total else f"{end / total:.0%}"


def _rank(seed: str, device: str) -> bytes:
    return hashlib.sha256(f"{seed}/{device}".encode()).digest()
