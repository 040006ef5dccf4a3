"""What a fault case is, and what comes out of running one."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        complaints: invariants that did not hold; empty if the case passed.
        before: what served before the fault.
        after: what serves now.
        runs: how often the fault was injected, each time on a fresh device.
        skipped: what is missing on this machine to run the case; empty if it ran.
    """

    complaints: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""
    runs: int = 0
    skipped: str = ""


@dataclass(frozen=True)
class Case:
    """One fault and what must come of it.

    Attributes:
        name: unique, as `group/what`.
        injected: the fault, in words.
        expected: what must be true afterwards, beside the invariants.
        run: does it in a folder of its own, in a process of its own.
        quick: it is part of the default test suite.
        limit_s: after which the case counts as hung.
    """

    name: str
    injected: str
    expected: str
    run: Callable[[Path], Outcome]
    quick: bool = False
    limit_s: float = 300.0

    @property
    def group(self) -> str:
        """What the case belongs to."""
        return self.name.partition("/")[0]


def select(cases: list[Case], *, pattern: str = "", quick: bool = False) -> Iterator[Case]:
    """Give the cases whose name matches a regular expression, all or the quick ones."""
    for case in cases:
        if re.search(pattern, case.name) and (case.quick or not quick):
            yield case
