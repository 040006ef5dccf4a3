"""How many requests, and how many bytes of their bodies, are held at one time.

Used on the event loop alone, so it needs no lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from edgefleet_agent.server.refusal import RequestError


class Place:
    """The place of one request.

    Attributes:
        size_bytes: of its body so far.
    """

    def __init__(self, room: "Room") -> None:
        self.size_bytes = 0
        self._room = room

    def grow(self, size_bytes: int) -> None:
        """Take room for more of the body.

        Raises:
            RequestError: 413 if the body is too large for any time, 503 if it is for now.
        """
        room = self._room
        room.require_allowed(self.size_bytes + size_bytes)
        if room.held_bytes + size_bytes > room.max_held_bytes:
            raise RequestError("the bodies of other requests take all the room; try again", 503)
        self.size_bytes += size_bytes
        room.held_bytes += size_bytes


class Room:
    """All places.

    Args:
        max_requests: at one time.
        max_body_bytes: of one.
        max_held_bytes: of all bodies together.
    """

    def __init__(self, max_requests: int, max_body_bytes: int, max_held_bytes: int) -> None:
        self.max_held_bytes = max_held_bytes
        self.held_bytes = 0
        self._max_requests = max_requests
        self._max_body_bytes = max_body_bytes
        self._requests = 0

    def require_allowed(self, size_bytes: int) -> None:
        """Check the size of one body.

        Raises:
            RequestError: 413 if it is too large.
        """
        if size_bytes > self._max_body_bytes:
            raise RequestError(
                f"the body is larger than the {self._max_body_bytes} bytes that"
                " server.max_request_bytes allows",
                413,
            )

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Hold a place while a request is answered.

        Raises:
            RequestError: 503 if all are taken.
        """
        if self._requests >= self._max_requests:
            raise RequestError(
                f"{self._requests} requests are being answered already; try again", 503
            )
        self._requests += 1
        place = Place(self)
        try:
            yield place
        finally:
            self._requests -= 1
            self.held_bytes -= place.size_bytes
