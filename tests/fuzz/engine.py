"""Fuzzing one target with Hypothesis, in this process."""

import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.forms import inputs, sweep
from tests.fuzz.oracle import FoundError, Kind, Take, judge
from tests.fuzz.targets import Target

# Examples between two looks at the time that is left.
_ROUND = 200


@dataclass
class Finding:
    """An input that a target does not survive."""

    kind: Kind
    text: str
    data: bytes


@dataclass
class Tally:
    """What came of fuzzing one target.

    Attributes:
        engine: `hypothesis`, `guided` or `schemathesis`.
        accepted: how many of the executions ended without refusal.
    """

    target: str
    engine: str
    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def counted(self, kind: Kind) -> int:
        """Return how many findings are of one kind."""
        return sum(finding.kind == kind for finding in self.findings)

    def row(self) -> dict[str, object]:
        """Return it for JSON."""
        found = [{"kind": one.kind, "text": one.text} for one in self.findings]
        return asdict(self) | {"findings": found}


class _Counted:
    """A decoder under its target's rules, counting."""

    def __init__(self, target: Target, take: Take, tally: Tally) -> None:
        self._target, self._take, self._tally = target, take, tally

    def __call__(self, data: bytes) -> None:
        self._tally.executions += 1
        target = self._target
        self._tally.accepted += judge(self._take, data, target.refusals, target.bounds)


def run(
    target: Target,
    *,
    seconds: float = 0.0,
    examples: int = 0,
    first_seed: int = 1,
    before: Callable[[bytes], object] = lambda _: None,
) -> Tally:
    """Give a target its seeds, its corpus and inputs made of them; stop at the first finding.

    Args:
        target: to be fuzzed.
        seconds: to go on for: half of them with single changes of seeds.
        examples: instead of that, so many single changes and so many random inputs.
        first_seed: of Hypothesis; the same one gives the same inputs.
        before: called with each input before it is tried, for the case that it kills the process.
    """
    tally = Tally(target.name, "hypothesis")
    began = time.monotonic()
    last = b""
    with _quiet(), target.open() as take:
        known = target.seeds() + [data for _, data in target.corpus()]
        for data in known:  # imports and caches are paid for here, before memory is counted
            _swallow(take, data, target)
        counted = _Counted(target, take, tally)

        def one(data: bytes) -> None:
            nonlocal last
            last = data
            before(data)
            counted(data)

        try:
            for data in known:
                one(data)
            for number, data in enumerate(_swept(target, first_seed), start=1):
                one(data)
                if number >= examples and time.monotonic() - began >= seconds / 2:
                    break
            for number in count(first_seed):
                _round(target, one, number, _ROUND if seconds else examples)
                if time.monotonic() - began >= seconds:
                    break
        except FoundError as found:
            tally.findings.append(Finding(found.kind, str(found), last))
    tally.seconds = time.monotonic() - began
    return tally


def _swept(target: Target, first_seed: int) -> Iterator[bytes]:
    """Yield single changes of the seeds in random order, one of each seed after another."""
    if target.form is None:
        return
    order = random.Random(f"{target.name} {first_seed}")
    turns = [sweep(known, target.form, order) for known in target.seeds()]
    while turns:
        for turn in list(turns):
            data = next(turn, None)
            if data is None:
                turns.remove(turn)
            else:
                yield data


def _round(target: Target, one: Take, number: int, examples: int) -> None:
    seeds = sorted(target.seeds(), key=len)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @seed(number)
    @given(inputs(seeds, target.form))
    def fuzz(data: bytes) -> None:
        one(data)

    fuzz()


def _swallow(take: Take, data: bytes, target: Target) -> None:
    try:
        take(data)
    except target.refusals:
        return
    except Exception:
        # Judged, and told about, in the round that counts.
        return


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what decoders log of each refusal from the terminal; errors still reach handlers."""
    nobody = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(nobody)
    before = root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Of numpy, about numbers that are out of range: what matters is what comes of them.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(nobody)
