"""The matrix: every model in every runtime release on every processor, told first and then tried.

Rules:

1. A model meets the runtimes of its own format only.
2. The static check is asked with the board profile that has the processor.
3. Emulated targets run the first calls of a case: an emulated core is some fifty times slower, and
   the labels have been judged on this machine's own.
4. A target that cannot be tried leaves its cells without an outcome; they never count as agreeing.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from edgefleet_hardware import static
from edgefleet_hardware.cases import Case, model_digest
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.local import LocalTarget
from edgefleet_hardware.outcomes import Outcome
from edgefleet_hardware.results import Cell, Document, Told
from edgefleet_hardware.runtimes import FORMATS, PROCESSORS, Processor, Runtime, own
from edgefleet_hardware.targets import About, Target

RUNTIMES = (
    "onnxruntime==1.16.3",
    "onnxruntime==1.18.1",
    "onnxruntime==1.20.1",
    "onnxruntime==1.23.2",
    "onnxruntime==1.31.1",
    "tflite-runtime==2.14.0",
    "ai-edge-litert==2.0.3",
    "ai-edge-litert==2.3.0",
)
# Emulated cores run this many calls of each case.
EMULATED_CALLS = 32
Progress = Callable[[str], None]


def local_targets(
    runtimes: Iterable[Runtime], on: Sequence[Processor], loads: int = 0
) -> list[LocalTarget]:
    """Return every runtime on every processor of this machine, own and emulated.

    Args:
        runtimes: exact releases.
        on: processors.
        loads: fresh loads of each case that times are taken from.
    """
    return [LocalTarget(runtime, each, loads) for runtime in runtimes for each in on]


def processors() -> list[Processor]:
    """Return this machine's own processor and the emulated cores."""
    return [own(), *(each for each in PROCESSORS.values() if each.is_emulated)]


def build(
    cases: Sequence[Case], targets: Sequence[Target], tell: static.Teller, progress: Progress
) -> Document:
    """Tell and try every cell.

    Args:
        cases: with what they expect.
        targets: where they are run: one after another where times are taken, which must not
            disturb each other, and emulated ones as many at once as there are processors.
        tell: static check.
        progress: gets one line for each target that is done.
    """

    def run(target: Target) -> list[Cell]:
        cells = _cells(target, _fitting(cases, target.about), tell)
        progress(_line(target.about, cells))
        return cells

    emulated = [target for target in targets if target.about.is_emulated]
    done = {target.about: run(target) for target in targets if not target.about.is_emulated}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done |= zip((target.about for target in emulated), pool.map(run, emulated), strict=True)
    return Document([cell for target in targets for cell in done[target.about]])


def told(cases: Sequence[Case], targets: Sequence[Target], tell: static.Teller) -> Document:
    """Tell every cell and try none: the static check alone."""
    return Document(
        [
            _cell(case, target.about, tell(case, target.about))
            for target in targets
            for case in _fitting(cases, target.about)
        ]
    )


def _fitting(cases: Sequence[Case], about: About) -> list[Case]:
    return [case for case in cases if case.format == FORMATS[about.runtime]]


def _cells(target: Target, cases: Sequence[Case], tell: static.Teller) -> list[Cell]:
    about = target.about
    short = [case.head(EMULATED_CALLS) if about.is_emulated else case for case in cases]
    verdicts = [tell(case, about) for case in short]
    try:
        outcomes: Sequence[Outcome | None] = target.run(short)
        untried = ""
    except TargetUnavailableError as error:
        outcomes, untried = [None] * len(short), str(error)
    return [
        _cell(case, about, verdict, outcome, untried)
        for case, verdict, outcome in zip(short, verdicts, outcomes, strict=True)
    ]


def _cell(
    case: Case, about: About, verdict: Told, outcome: Outcome | None = None, untried: str = ""
) -> Cell:
    return Cell(case.name, model_digest(case), len(case.data), about, verdict, outcome, untried)


def _line(about: About, cells: Sequence[Cell]) -> str:
    if cells and cells[0].untried:
        return f"{about}: not tried: {cells[0].untried}"
    right = sum(cell.outcome is not None and cell.outcome.is_right for cell in cells)
    agreeing = sum(cell.agrees for cell in cells)
    return f"{about}: {right} of {len(cells)} right, {agreeing} as told"
