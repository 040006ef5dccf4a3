"""All fault cases."""

from tests.faults import disk, processes, sweeps, wire
from tests.faults.cases import Case


def cases() -> list[Case]:
    """Return all cases, in the order of the table."""
    return [*sweeps.cases(), *wire.cases(), *disk.cases(), *processes.cases()]
