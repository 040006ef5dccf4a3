"""Errors of the contract, grouped by what the receiver can do about them.

All of them mean "refuse this input and say so": nothing in this room is retried, because the same
bytes will be refused again.
"""


class ProtocolError(Exception):
    """Base of every error raised by this distribution."""


class MalformedError(ProtocolError):
    """The bytes or values do not have the agreed form."""


class TooLargeError(ProtocolError):
    """A declared or actual size is over its limit; nothing was allocated for it."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size} bytes; at most {limit} are allowed")
        self.what = what
        self.size = size
        self.limit = limit


class RefusedError(ProtocolError):
    """Well-formed, but the trust rules forbid it.

    Attributes:
        reason: machine-readable word, stable across releases (`rollback`, `wrong-device`, …).
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
