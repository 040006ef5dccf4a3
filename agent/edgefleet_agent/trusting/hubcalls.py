"""HTTPS calls to the hub: bounded in bytes and time, with errors by what a caller can do."""

import json
import ssl
import time
from pathlib import Path
from typing import Any

import urllib3

from edgefleet_agent.errors import ConfigError, EnrolmentError, HubUnreachableError
from edgefleet_agent.trusting.timekeeping import relax_dates

# The largest answer holds some certificates and two TUF roots, each a few kilobytes.
MAX_ANSWER_BYTES = 1024 * 1024
TIMEOUT_S = 15.0
# Of a whole answer: a hub that sends a byte a second does not hold the caller for ever.
WHOLE_S = 60.0
_PIECE_BYTES = 64 * 1024


def exchange(
    pool: urllib3.PoolManager, method: str, url: str, body: dict[str, Any] | None = None
) -> tuple[int, bytes]:
    """Send one request; return the status and the body of the answer.

    Raises:
        ConfigError: if `url` is none.
        HubUnreachableError: without an answer, or with one that does not end.
        EnrolmentError: if the answer is too long.
    """
    until = time.monotonic() + WHOLE_S
    data = bytearray()
    try:
        response = pool.request(
            method,
            url,
            json=body,
            headers={"accept-encoding": "identity"},
            timeout=TIMEOUT_S,
            preload_content=False,
            # What is packed nevertheless stays so, and is refused: some bytes could be gigabytes.
            decode_content=False,
        )
        try:
            while piece := response.read(_PIECE_BYTES):
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise EnrolmentError(f"{url} answered with more than {MAX_ANSWER_BYTES} bytes")
                if time.monotonic() > until:
                    raise HubUnreachableError(
                        f"the hub at {url} did not finish its answer within {WHOLE_S:.0f} s"
                    )
        finally:
            response.close()
    except urllib3.exceptions.LocationParseError as error:
        raise ConfigError(f"hub URL {url!r} cannot be read: {error}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise HubUnreachableError(f"the hub at {url} did not answer: {error}") from error
    return response.status, bytes(data)


def error_text(body: bytes) -> str:
    """Return what the hub says is wrong."""
    try:
        return str(json.loads(body)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:200].decode("utf-8", "replace") or "no reason given"


def trusting(ca: Path, *, without_dates: bool) -> urllib3.PoolManager:
    """Return a pool that believes these authorities alone.

    Args:
        ca: PEM file of authorities.
        without_dates: leave out the dates of certificates (`timekeeping.relax_dates`).
    """
    context = ssl.create_default_context(cafile=str(ca))
    if without_dates:
        relax_dates(context)
    return urllib3.PoolManager(ssl_context=context, retries=False)
