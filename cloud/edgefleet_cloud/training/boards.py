"""Which boards a group of devices is made of, and which runtimes are on each. Decisions only.

Rules:

1. Devices count as they last reported themselves.
2. Of a board's runtimes only those count that every one of its devices has: a variant for another
   would leave devices without one.
3. Of these, every release that any device has counts: the variant must run on all of them.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from edgefleet_cloud.database.models import Device
from edgefleet_cloud.errors import InvalidError
from edgefleet_converters.compatibility import boards, releases
from edgefleet_converters.searching import targets
from edgefleet_converters.searching.targets import Target

# Reported name → runtime.
_RUNTIMES = {reported: runtime for runtime, reported in releases.REPORTED.items()}


class Board(Struct, frozen=True):
    """A kind of board, with runtimes like `onnxruntime==1.20.1`; none for the newest known."""

    name: str
    runtimes: list[str]


def of_devices(devices: Iterable[Device]) -> list[Board]:
    """Return the boards of devices, by name.

    Raises:
        InvalidError: there are no devices, or those of one board have no runtime in common.
    """
    by_board: dict[str, list[dict[str, str]]] = {}
    for device in devices:
        by_board.setdefault(device.board, []).append(device.runtimes)
    if not by_board:
        raise InvalidError("there is no enrolled device; name boards to search for instead")
    return [_board(name, reported) for name, reported in sorted(by_board.items())]


def _board(name: str, reported: Sequence[dict[str, str]]) -> Board:
    common = set.intersection(*(set(runtimes) for runtimes in reported)) & set(_RUNTIMES)
    if not common:
        said = sorted({", ".join(sorted(runtimes)) or "none" for runtimes in reported})
        raise InvalidError(
            f"devices of {name} have no runtime in common ({'; '.join(said)}); search for a group"
            " of devices that have one, or name the board and its runtimes"
        )
    held = {(_RUNTIMES[key], runtimes[key]) for runtimes in reported for key in common}
    return Board(name, [f"{runtime}=={version}" for runtime, version in sorted(held)])


def checked(wanted: Sequence[Board]) -> list[Target]:
    """Return what a search is to aim at.

    Raises:
        InvalidError: a board twice, or one of which there is no profile.
        BadInputError: nothing is known of a runtime's version.
    """
    names = [board.name for board in wanted]
    known = boards.all_boards()
    unknown = sorted({name or "(not reported)" for name in names if name not in known})
    if unknown:
        raise InvalidError(
            f"there is no profile of the board {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    if len(set(names)) != len(names):
        raise InvalidError("a board is named twice")
    return [
        targets.target(known[board.name], [releases.asked(text) for text in board.runtimes])
        for board in wanted
    ]
