"""The log: one line a message on standard error and, of bounded size, in the store.

    logs/agent.log, agent.log.1, …   the newest first

Rules:

1. Text for people or JSON for a collector: `at` (UTC), `level`, `logger`, `message`, `device` and,
   where a record is about one (`extra={"model": …}`), `model`.
2. What comes from elsewhere cannot write lines of its own: control characters are escaped.
3. Claim tokens and private keys are cut out of every line, whoever wrote them there.
4. A disk that cannot take the file never fails the agent: the file is given up, that is told once,
   and it is tried again after a minute. Standard error goes on all the time.
"""

import contextlib
import io
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edgefleet_agent.config import Logs

FOLDER, NAME = "logs", "agent.log"
RETRY_S = 60.0
# A claim token without its device, and a private key in PEM.
_SECRETS = re.compile(
    r"(?<=ef1\.)([A-Za-z0-9_-]{1,64})\.[A-Za-z0-9_-]{43}=?(?:\.[0-9A-Fa-f]{0,64})?"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85)}
_CONTROL |= {0x2028: "\\u2028", 0x2029: "\\u2029"}
_STAMP = "%Y-%m-%dT%H:%M:%S"
_STAMP_CHARACTERS = 19


def without_secrets(text: str) -> str:
    """Return `text` with claim tokens and private keys cut out."""
    return _SECRETS.sub(lambda found: f"{found[1]}.[secret]" if found[1] else "[secret]", text)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)-7s %(message)s", _STAMP)
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the base class's name
        # Secrets first: a key that was escaped would not be known any more.
        return without_secrets(super().formatMessage(record)).translate(_CONTROL)

    def formatException(self, ei: object) -> str:  # noqa: N802  # the base class's name
        return without_secrets(super().formatException(ei))  # type: ignore[arg-type]  # typeshed has no public name for this tuple


class _JsonFormatter(logging.Formatter):
    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        entry = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if self._device:
            entry["device"] = self._device
        if model := getattr(record, "model", None):
            entry["model"] = str(model)
        if record.exc_info:
            entry["traceback"] = without_secrets(self.formatException(record.exc_info))
        return msgspec.json.encode(entry).decode()


class StoreFile(logging.handlers.RotatingFileHandler):
    """The log file of a store; see rule 4."""

    def __init__(
        self,
        store: Path,
        settings: Logs,
        *,
        complain: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; the file is opened by the first message.

        Args:
            store: of the agent.
            settings: size and number of the files.
            complain: takes the sentence that is told once.
            monotonic: seconds that never go back.
        """
        self._complain = complain
        self._monotonic = monotonic
        self._retry_at: float | None = None
        self._told = False
        super().__init__(
            store / FOLDER / NAME,
            maxBytes=settings.max_bytes,
            backupCount=settings.keep,
            encoding="utf-8",
            delay=True,
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless the file was given up a moment ago."""
        if self._retry_at is not None and self._monotonic() < self._retry_at:
            return
        failed_before, self._retry_at = self._retry_at is not None, None
        super().emit(record)
        if failed_before and self._retry_at is None:
            self._told = False
            self._complain(f"log file {self.baseFilename} is written again")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the base class's name
        """Give the file up for a while."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if self.stream is not None:
            # Closing writes what is left in the buffer, which is what has just failed.
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = None
        if not self._told:
            self._complain(f"log file {self.baseFilename} cannot be written: {error}")
        self._told = True  # until it could be written again
        self._retry_at = self._monotonic() + RETRY_S

    def _open(self) -> io.TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(mode=0o750, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return os.fdopen(descriptor, "a", encoding="utf-8")


def set_up(
    settings: Logs, store: Path | None = None, *, device: str = "", verbose: bool = False
) -> None:
    """Send the log of this process to standard error and to the store.

    Args:
        settings: from the configuration.
        store: that takes the file; None for none.
        device: named in JSON, if it is known.
        verbose: log more of the agent.
    """
    formatter = _JsonFormatter(device) if settings.json else _TextFormatter()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if store is not None and settings.max_bytes:

        def complain(text: str) -> None:
            place = logging.getLogger(__name__)
            handlers[0].handle(place.makeRecord(__name__, logging.WARNING, "", 0, text, (), None))

        handlers.append(StoreFile(store, settings, complain=complain))
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    logging.getLogger("edgefleet_agent").setLevel(logging.DEBUG if verbose else logging.INFO)


def files(store: Path) -> list[Path]:
    """Return the log files of a store, oldest first."""
    found = []
    for path in (store / FOLDER).glob(f"{NAME}*"):
        number = path.name.removeprefix(NAME).removeprefix(".") or "0"
        if number.isdigit():
            found.append((int(number), path))
    return [path for _, path in sorted(found, reverse=True)]


def read(store: Path, *, lines: int, since: float | None = None) -> list[str]:
    """Return the newest lines of the log, oldest first.

    Args:
        store: of the agent, which may be running.
        lines: at most.
        since: Unix seconds; what is older is left out. Lines without a time, as those of a
            traceback, go with the line before them.

    Raises:
        OSError: if a file cannot be read.
    """
    found: list[str] = []
    for path in reversed(files(store)):
        try:
            text = path.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            continue  # rotated away in this moment
        found = text.splitlines() + found
        if len(found) >= lines and since is None:
            break
    if since is not None:
        found = list(_since(found, since))
    return found[-lines:]


def follow(store: Path, wait: Callable[[], bool]) -> Iterator[str]:
    """Yield lines as they are written, over rotations, beginning at the end of the file.

    Args:
        store: of the agent.
        wait: waits a moment; returns False to end.
    """
    path = store / FOLDER / NAME
    try:
        file = path.open("rb")
        file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        file = None
    rest = b""
    while wait():
        if file is not None:
            *whole, rest = (rest + file.read()).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole)
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if file is None or status.st_ino != os.fstat(file.fileno()).st_ino:
            if file is not None:
                # What was written between the last look and the rotation.
                *whole, rest = (rest + file.read()).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
                file.close()
            file = path.open("rb")
    if file is not None:
        file.close()


def _since(lines: Iterable[str], since: float) -> Iterator[str]:
    wanted = False
    for line in lines:
        at = _time_of(line)
        if at is not None:
            wanted = at >= since
        if wanted:
            yield line


def _time_of(line: str) -> float | None:
    text = line.removeprefix('{"at":"')[:_STAMP_CHARACTERS]
    try:
        return datetime.strptime(text, _STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
