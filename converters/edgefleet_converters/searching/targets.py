"""Boards and the runtime versions on them: which variants the static check lets through."""

import platform
from collections.abc import Mapping, Sequence

from msgspec import Struct

from edgefleet_converters.compatibility import check, releases
from edgefleet_converters.compatibility.boards import BoardProfile
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compatibility.releases import FORMATS, Asked, RuntimeName
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.searching.choice import BoardView
from edgefleet_converters.searching.measurements import MeasurementFile, on_board

# Where a board has several runtimes for one format, the first is taken.
_PREFERRED: tuple[RuntimeName, ...] = ("onnxruntime", "ai-edge-litert", "tflite-runtime")


class Target(Struct, frozen=True):
    """A board that a variant is wanted for.

    Attributes:
        runtimes: that are on it. A variant must run on every version of its format's runtimes.
    """

    board: BoardProfile
    runtimes: list[Asked]


def target(board: BoardProfile, runtimes: Sequence[Asked] = ()) -> Target:
    """Return a board with runtimes: those given, else the newest known one for each format.

    Raises:
        BadInputError: nothing is known of a runtime version, or the board has no runtime at all.
    """
    found = list(runtimes)
    for asked in found:
        releases.table_for(asked, check.known_releases(asked.runtime))
    if not found:
        found = list(_newest(board).values())
    if not found:
        raise BadInputError(
            f"{board.name}: the profile names no runtime of which anything is known; give one, like"
            " onnxruntime==1.23"
        )
    return Target(board, found)


def view(
    wanted: Target,
    facts: Mapping[str, Facts],
    digests: Mapping[str, str],
    measurements: Sequence[MeasurementFile],
    confidence: float,
) -> BoardView:
    """Return what the choice knows of a board.

    Args:
        wanted: board and runtimes.
        facts: variant → facts of its file.
        digests: variant → digest of its file.
        measurements: files with figures of boards.
        confidence: of intervals of times.
    """
    board = wanted.board
    measured = on_board(measurements, board.name)
    return BoardView(
        board.name,
        board.title,
        board.architecture,
        board.features,
        board.architecture == platform.machine(),
        confidence,
        {name: _misfits(found, wanted) for name, found in facts.items()},
        {digest: measured[digest] for digest in digests.values() if digest in measured},
    )


def _newest(board: BoardProfile) -> dict[str, Asked]:
    """Return format → the runtime that a board would get today."""
    found: dict[str, Asked] = {}
    packages = {name: version for name, _, version in
                (package.partition(" ") for package in board.distribution_packages)}  # fmt: skip
    for runtime in _PREFERRED:
        known = check.known_releases(runtime)
        if FORMATS[runtime] in found or not known:
            continue
        if runtime in board.wheels:
            found[FORMATS[runtime]] = Asked(runtime, known[-1])
        elif runtime in packages:
            found[FORMATS[runtime]] = Asked(runtime, packages[runtime])
    return found


def _misfits(facts: Facts, wanted: Target) -> list[str]:
    """Return why a file does not run on a board; empty if it does."""
    asked_for = [asked for asked in wanted.runtimes if FORMATS[asked.runtime] == facts.format]
    if not asked_for:
        held = ", ".join(map(str, wanted.runtimes))
        return [f"it is a model of the format {facts.format}; the board has {held}"]
    verdicts = [check.judge(facts, asked.runtime, asked.version, wanted.board)
                for asked in asked_for]  # fmt: skip
    return [
        f"{verdict.runtime} {verdict.version}: {reason}"
        for verdict in verdicts
        for reason in verdict.reasons
    ]
