"""A log to be verified, from where it lies: an exported file, or a hub's SQLite database.

A database is read as if it were exported whole; what its columns say beside the line of an entry
must be what the line says.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.trust.audit import chain, export
from edgefleet_cloud.trust.audit.chain import Checkpoint, Link
from edgefleet_cloud.trust.audit.verification import BrokenError

_SQLITE = b"SQLite format 3\0"
_COLUMNS = ("number", "at", "actor", "kind", "action", "subject")


def is_database(path: Path) -> bool:
    """Tell whether the file is a SQLite database.

    Raises:
        InvalidError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from error


def lines(path: Path) -> Iterator[bytes]:
    """Give the lines of an exported file, or of a database as if it had been exported.

    Raises:
        InvalidError: if it cannot be read.
        BrokenError: if the columns of a database differ from its lines.
    """
    if is_database(path):
        try:
            yield from _database(path)
        except sqlite3.Error as error:
            raise InvalidError(f"{path} is no database with a log of decisions: {error}") from error
        return
    with path.open("rb") as file:
        yield from file


def checkpoints(path: Path) -> list[Checkpoint]:
    """Return checkpoints that were kept: one a line, as `checkpoints.jsonl` holds them.

    Raises:
        InvalidError: if the file cannot be read as such.
    """
    try:
        kept = path.read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Checkpoint) for line in kept if line.strip()]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} cannot be read as checkpoints: {error}") from error


def _database(path: Path) -> Iterator[bytes]:
    address = f"file:{quote(str(path.resolve()))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        # One transaction: both tables as they were at one moment.
        connection.execute("BEGIN")
        rows = connection.execute(
            "SELECT number, digest, at, keyid, signature FROM audit_checkpoints ORDER BY number"
        )
        signed = {row[0]: Checkpoint(*row) for row in rows}
        header = export.Header(chain.VERSION, Link(0, chain.START), list(signed))
        yield msgspec.json.encode(header) + b"\n"
        entries = connection.execute(
            "SELECT number, at, actor, kind, action, subject, line, digest FROM audit_entries"
            " ORDER BY number"
        )
        for *columns, line, digest in entries:
            _compare(columns, line)
            yield export.entry_line(digest, line).encode() + b"\n"
            checkpoint = signed.get(columns[0])
            if checkpoint is not None:
                yield msgspec.json.encode(export.Signed(checkpoint)) + b"\n"


def _compare(columns: list[object], line: str) -> None:
    number = columns[0] if isinstance(columns[0], int) else 0
    try:
        entry = chain.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenError("altered", number, f"entry {number} cannot be read: {error}") from error
    for name, value in zip(_COLUMNS, columns, strict=True):
        if getattr(entry, name) != value:
            text = f"entry {number}: its column {name} says {value!r}, its line"
            raise BrokenError("altered", number, f"{text} {getattr(entry, name)!r}")
