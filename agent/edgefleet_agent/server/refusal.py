"""Why a request is not answered, in the protocol's words: a status and one sentence."""

from edgefleet_agent.errors import AgentError

_MAX_SHOWN = 80


class RequestError(AgentError):
    """The request cannot be answered.

    Attributes:
        status: of HTTP; 4xx is for the caller to correct, 503 to try again.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def shown(text: str) -> str:
    """Return what a caller sent as a short quotation for an error text."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
