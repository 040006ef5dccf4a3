"""python-tuf's client workflow over messages that have arrived; see `refresh`.

    python -m edgefleet_agent.trusting.tufclient

Request on standard input, outcome on standard output.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edgefleet_agent import files
from edgefleet_agent.trusting.refresh import MAX_TEXT, Fault, Outcome, Request

_FAULTS: list[tuple[type[RepositoryError], Fault]] = [
    (UnsignedMetadataError, "unsigned"),
    (ExpiredMetadataError, "expired"),
    (LengthOrHashMismatchError, "length-or-hash"),
    (BadVersionNumberError, "version"),
]


class _Received(FetcherInterface):
    """Serves python-tuf the messages that have arrived, by file name."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self._parts = parts

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._parts.get(url.rpartition("/")[2])
        if data is None:
            # 404 is what tells python-tuf that there is no newer root.
            raise DownloadHTTPError(f"{url} has not arrived", 404)
        return iter([data])


def refresh(request: Request) -> Outcome:
    """Verify what has arrived against what is trusted, and make the result durable."""
    try:
        updater = Updater(
            request.folder,
            "mqtt://",
            fetcher=_Received(request.parts),
            bootstrap=request.bootstrap,
        )
        updater.refresh()
        # python-tuf does not fsync; see rule 4 of `trust`.
        files.sync_files(Path(request.folder))
    except DownloadError as error:
        return Outcome("other", f"a role is missing or too long: {error}"[:MAX_TEXT])
    except RepositoryError as error:
        for kind, fault in _FAULTS:
            if isinstance(error, kind):
                return Outcome(fault, str(error)[:MAX_TEXT])
        return Outcome("other", str(error)[:MAX_TEXT])
    except OSError as error:
        return Outcome(store_fault=str(error)[:MAX_TEXT])
    return Outcome()


def main() -> int:
    """Answer one request."""
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.msgpack.encode(refresh(request)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
