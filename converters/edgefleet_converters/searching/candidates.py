"""What is known of one variant that was made and tried. Values only."""

from typing import Any

from msgspec import Struct, field

from edgefleet_converters.searching.slow_kernels import Kernels
from edgefleet_converters.verification.evidence import Evidence, Interval
from edgefleet_protocol.manifest import Runtime


class Distribution(Struct, frozen=True):
    """Microseconds for one row at one thread: median and tails."""

    p50: float
    p90: float
    p99: float


class Candidate(Struct, frozen=True):
    """One variant, with all that was measured here.

    Attributes:
        recipe: its YAML.
        lossless: whether it computes what the original does, up to rounding: a float32 variant.
        trial: number of the trial that proposed it; None for recipes.
        digest: of the model file.
        size_bytes: of the model file; `transfer_bytes` as sent, compressed.
        memory_bytes: resident memory added, `memory_peak_bytes` at the peak.
        against: float32 variant → latency of this one as a share of its, timed in pairs here.
        evidence: how it compares with the original; None if it could not be compared.
        kernels: that its file needs beyond float32, as far as some CPUs are slow at them.
        faults: why verification refused it; empty if it passed.
        notes: of its steps, such as sensitivities.
    """

    name: str
    recipe: str
    runtime: Runtime
    lossless: bool
    trial: int | None
    digest: str
    size_bytes: int
    transfer_bytes: int
    memory_bytes: int
    memory_peak_bytes: int
    latency_us: Distribution
    against: dict[str, Interval]
    evidence: Evidence | None
    kernels: list[Kernels] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class Unmade(Struct, frozen=True):
    """A recipe that gave no file, with the reason."""

    name: str
    recipe: str
    trial: int | None
    reason: str


def costs(candidate: Candidate) -> tuple[float, float, float, float]:
    """Return what a front is made of: bytes, median latency, drop, and peak memory."""
    found = candidate.evidence
    drop = float("inf") if found is None else found.drop.point
    return (candidate.size_bytes, candidate.latency_us.p50, drop, candidate.memory_peak_bytes)
