"""Errors of the hub, grouped by what the caller can do.

No web-framework type appears here: the API maps each family to one status code (`api/errors.py`).
"""

import math


class HubError(Exception):
    """Base of every error that the hub raises on purpose. Its text is fit for a person."""


class InvalidError(HubError):
    """The request can never succeed as it is: say what was expected and what came (HTTP 422)."""


class NotFoundError(HubError):
    """No such thing (HTTP 404)."""

    def __init__(self, what: str, name: object) -> None:
        super().__init__(f"there is no {what} {name!r}")


class ConflictError(HubError):
    """Not in the present state; another action has to come first (HTTP 409)."""


class DeniedError(HubError):
    """The caller may not do this (HTTP 403)."""


class UnknownCallerError(DeniedError):
    """The caller did not show who they are (HTTP 401)."""


class LimitedError(HubError):
    """Too often; later it may work (HTTP 429).

    Args:
        text: what was too much.
        wait_s: how long to wait.
    """

    def __init__(self, text: str, wait_s: float) -> None:
        self.wait_s = max(1, math.ceil(wait_s))
        super().__init__(f"{text}; wait {self.wait_s} s")


class DamagedError(HubError):
    """Stored data differs from its digest, or cannot be read (HTTP 500)."""
