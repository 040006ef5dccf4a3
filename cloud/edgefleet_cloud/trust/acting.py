"""Who acts: the person, program or part of the hub on whose behalf code runs now.

Set at the edge that knows (the API for each request, the link for each device message); read where
a decision is recorded. Code that nobody set it for acts as the hub itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Actor:
    """Someone who decides.

    Attributes:
        name: of the account or device; `hub` for the hub itself.
    """

    name: str
    kind: Literal["person", "service", "device", "hub"]


HUB = Actor("hub", "hub")
_ACTING: ContextVar[Actor] = ContextVar("acting", default=HUB)


def now() -> Actor:
    """Return who acts."""
    return _ACTING.get()


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Let `actor` act inside the block, and in threads and tasks that copy its context."""
    token = _ACTING.set(actor)
    try:
        yield
    finally:
        _ACTING.reset(token)
