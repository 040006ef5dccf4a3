"""What may come of one input. Rules:

1. It is accepted, or refused by an error that the target documents. Any other exception is a crash.
2. It takes at most the target's limit of processor time. Time of the processor, not of the clock:
   a busy machine is no hang. Whoever starts the process bounds the clock.
3. It allocates at most a multiple of its own length above a floor, at its peak. Counted are
   Python's and numpy's allocations; what libraries in C take beside is bounded by `RLIMIT_AS`.
"""

import signal
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Literal

Kind = Literal["crash", "hang", "over-allocation"]
Take = Callable[[bytes], object]


@dataclass(frozen=True)
class Bounds:
    """What one input may cost.

    Attributes:
        seconds: of the processor.
        factor: bytes allocated for each byte of input.
        floor_bytes: that any input may allocate.
    """

    seconds: float = 2.0
    factor: int = 64
    floor_bytes: int = 1 << 20


class FoundError(Exception):
    """An input broke a rule of this module.

    Attributes:
        kind: which one.
    """

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class _HangError(BaseException):
    """Raised in the middle of what takes too long; no `except Exception` holds it."""


def judge(
    take: Take,
    data: bytes,
    refusals: tuple[type[Exception], ...],
    bounds: Bounds,
    *,
    count_memory: bool = True,
) -> bool:
    """Give an input to a decoder.

    Args:
        take: the decoder.
        data: the input.
        refusals: the errors that it documents.
        bounds: what it may cost.
        count_memory: hold the input against rule 3, which takes time.

    Returns:
        Whether it was accepted.

    Raises:
        FoundError: if the decoder did what it must not.
    """
    allowed = bounds.factor * len(data) + bounds.floor_bytes
    if count_memory:
        tracemalloc.start()
    try:
        accepted = _timed(take, data, refusals, bounds.seconds)
    except _HangError:
        raise FoundError("hang", f"over {bounds.seconds:g} s for {len(data)} bytes") from None
    except MemoryError as error:
        raise FoundError("over-allocation", f"no memory for {len(data)} bytes") from error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}"[:300]
        raise FoundError("crash", f"{text} ({where.name}, line {where.lineno})") from error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if peak > allowed:
        raise FoundError(
            "over-allocation", f"{peak} bytes for {len(data)} of input; at most {allowed}"
        )
    return accepted


def _timed(take: Take, data: bytes, refusals: tuple[type[Exception], ...], seconds: float) -> bool:
    def too_long(_signal: int, _frame: FrameType | None) -> None:
        raise _HangError

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        take(data)
    except refusals:
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
    return True
