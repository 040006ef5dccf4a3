"""Which variant a device gets. Decisions only.

1. Only variants that fit the device (`profiles.misfits` gives no reason) are considered.
2. Variants within one point of the best score of those are as good as each other; of these the one
   with the lowest measured latency comes first, and of equally fast ones the smaller.
3. The others follow, in the same order. A variant without a score is never "as good" as a scored
   one: unknown is not fine.
"""

from collections.abc import Iterable

from msgspec import Struct

from edgefleet_protocol.manifest import Measured, Needs
from edgefleet_protocol.profiles import DeviceProfile, misfits

# One point of accuracy (or 0.01 of R²): about the noise of a hold-out set of a few hundred rows.
SCORE_TOLERANCE = 0.01
# Scores are ratios of whole numbers; their float64 difference is off by far less than this.
_ROUNDING = 1e-9


class Candidate(Struct, frozen=True):
    """What the choice looks at."""

    name: str
    needs: Needs
    measured: Measured
    transfer_bytes: int


def rank(candidates: Iterable[Candidate], profile: DeviceProfile) -> list[str]:
    """Return the names of the variants that fit `profile`, best first."""
    fitting = [item for item in candidates if not misfits(item.needs, profile)]
    scores = [item.measured.score for item in fitting if item.measured.score is not None]
    best = max(scores, default=None)

    def order(item: Candidate) -> tuple[bool, float, int, str]:
        score = item.measured.score
        behind = best is not None and (score is None or best - score > SCORE_TOLERANCE + _ROUNDING)
        return behind, item.measured.latency_us, item.transfer_bytes, item.name

    return [item.name for item in sorted(fitting, key=order)]
