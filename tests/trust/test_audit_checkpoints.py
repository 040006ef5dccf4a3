"""When the log is signed, where signatures go, and what is seen after a crash or a restore."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import select

from edgefleet_cloud.database.models import AuditCheckpoint, AuditEntry
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.errors import DamagedError, InvalidError
from edgefleet_cloud.trust.audit import checkpoints, log, sources
from edgefleet_cloud.trust.audit.checkpoints import ENTRIES, INTERVAL_S, Checkpoints
from edgefleet_cloud.trust.audit.keys import SigningKey, public_key
from edgefleet_cloud.trust.audit.verification import BrokenError, Verified, verify
from tests.cloud.conftest import Clock


def write(database: Database, count: int = 1) -> None:
    with database.write() as session:
        for number in range(count):
            log.record(session, "thing.do", f"thing {number}", 5.0)


def signed(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(select(AuditCheckpoint.number).order_by("number")))


def kept(tmp_path: Path) -> list[int]:
    path = tmp_path / "audit" / "checkpoints.jsonl"
    return [json.loads(line)["number"] for line in path.read_text().splitlines()]


@pytest.fixture
def audit(database: Database, tmp_path: Path, clock: Clock) -> Checkpoints:
    return Checkpoints.open(database, tmp_path / "audit", clock)


def test_the_head_is_signed_after_so_many_entries(
    database: Database, audit: Checkpoints, tmp_path: Path
) -> None:
    write(database)
    audit.tick()
    write(database, ENTRIES - 1)
    audit.tick()
    assert signed(database) == [1]
    write(database)
    audit.tick()
    assert signed(database) == kept(tmp_path) == [1, 1 + ENTRIES]


def test_the_head_is_signed_after_so_long(
    database: Database, audit: Checkpoints, clock: Clock
) -> None:
    write(database)
    audit.tick()
    write(database)
    clock.now += INTERVAL_S - 1
    audit.tick()
    assert signed(database) == [1]
    clock.now += 1
    audit.tick()
    assert signed(database) == [1, 2]
    clock.now += INTERVAL_S
    audit.tick()
    assert signed(database) == [1, 2]


def test_a_checkpoint_that_a_crash_kept_from_the_file_gets_there(
    database: Database, audit: Checkpoints, tmp_path: Path, clock: Clock
) -> None:
    for _ in range(3):
        write(database)
        audit.sign()
    path = tmp_path / "audit" / "checkpoints.jsonl"
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first + b'{"number":2,"dig')
    Checkpoints.open(database, tmp_path / "audit", clock)
    assert kept(tmp_path) == [1, 2, 3]


def test_a_database_that_was_restored_says_so_in_its_log(
    database: Database, audit: Checkpoints, tmp_path: Path, clock: Clock
) -> None:
    write(database, 2)
    audit.sign()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "hub.db", tmp_path / "backup.db")
    write(database, 3)
    audit.sign()
    restored = Database(f"sqlite:///{tmp_path / 'backup.db'}")
    Checkpoints.open(restored, tmp_path / "audit", clock)
    with restored.read() as session:
        entry = session.get_one(AuditEntry, 3)
        assert entry.action == "audit.mismatch"
        assert json.loads(entry.line)["before"]["number"] == 5
        assert json.loads(entry.line)["after"]["number"] == 2
    assert kept(tmp_path) == [2, 5, 3]
    # Said once.
    Checkpoints.open(restored, tmp_path / "audit", clock)
    assert signed(restored) == [2, 3]
    restored.close()


def test_what_the_file_says_must_be_a_checkpoint(
    database: Database, audit: Checkpoints, tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "audit" / "checkpoints.jsonl").write_bytes(b"{}\n")
    with pytest.raises(DamagedError, match="is no checkpoint"):
        Checkpoints.open(database, tmp_path / "audit", clock)


# --- the key ------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_only_its_public_part_may_be_read_by_others(tmp_path: Path) -> None:
    made = SigningKey.open(tmp_path / "k")
    again = SigningKey.open(tmp_path / "k")
    assert made.keyid == again.keyid == public_key(made.public_pem).keyid
    assert (tmp_path / "k" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "k" / "public.pem").read_text() == made.public_pem


def test_a_lost_key_is_not_replaced_until_someone_puts_its_public_part_away(
    tmp_path: Path,
) -> None:
    lost = SigningKey.open(tmp_path)
    (tmp_path / "key.pem").unlink()
    with pytest.raises(DamagedError, match="restore it from a backup, or move"):
        SigningKey.open(tmp_path)
    (tmp_path / "public.pem").rename(tmp_path / "old.pem")
    assert SigningKey.open(tmp_path).keyid != lost.keyid


def test_a_key_that_cannot_be_read_or_is_another_is_damage(tmp_path: Path) -> None:
    SigningKey.open(tmp_path / "a")
    SigningKey.open(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "public.pem", tmp_path / "a" / "public.pem")
    with pytest.raises(DamagedError, match="is not the public part"):
        SigningKey.open(tmp_path / "a")
    (tmp_path / "b" / "key.pem").write_text("nonsense")
    with pytest.raises(DamagedError, match="cannot be read"):
        SigningKey.open(tmp_path / "b")


def test_only_an_ed25519_public_key_is_one() -> None:
    with pytest.raises(InvalidError, match="no public key in PEM"):
        public_key("nonsense")


# --- a database file ----------------------------------------------------------------------------


def checked(tmp_path: Path, audit: Checkpoints) -> Verified:
    lines = sources.lines(tmp_path / "hub.db")
    return verify(lines, [public_key(audit.key.public_pem)], unsigned_tail=True)


def change(tmp_path: Path, statement: str) -> None:
    """Change the database as one can who may write to its file."""
    connection = sqlite3.connect(tmp_path / "hub.db")
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for (name,) in names:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_database_is_verified_where_it_lies_and_while_it_is_in_use(
    database: Database, audit: Checkpoints, tmp_path: Path
) -> None:
    write(database, 3)
    audit.sign()
    write(database, 2)
    held = checked(tmp_path, audit)
    assert (held.first, held.last, held.signed) == (1, 5, 3)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit_entries SET line = replace(line, 'thing 1', 'thing 7')", ("altered", 2)),
        ("UPDATE audit_entries SET subject = 'x' WHERE number = 4", ("altered", 4)),
        ("DELETE FROM audit_entries WHERE number = 2", ("removed", 2)),
        ("DELETE FROM audit_entries WHERE number >= 3", ("cut", 3)),
        ("UPDATE audit_checkpoints SET at = at + 1", ("signature", 3)),
        ("DELETE FROM audit_checkpoints", ("signature", 1)),
    ],
)
def test_what_was_changed_in_a_database_is_named(
    database: Database,
    audit: Checkpoints,
    tmp_path: Path,
    statement: str,
    found: tuple[str, int],
) -> None:
    write(database, 3)
    audit.sign()
    write(database, 2)
    change(tmp_path, statement)
    with pytest.raises(BrokenError) as caught:
        checked(tmp_path, audit)
    assert (caught.value.kind, caught.value.number) == found


def test_a_file_that_is_neither_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)")
    with pytest.raises(InvalidError, match="no database with a log of decisions"):
        list(sources.lines(tmp_path / "other.db"))
    with pytest.raises(InvalidError, match="cannot be read"):
        list(sources.lines(tmp_path / "nothing"))
    (tmp_path / "kept").write_text("{}\n")
    with pytest.raises(InvalidError, match="cannot be read as checkpoints"):
        sources.checkpoints(tmp_path / "kept")


def test_kept_checkpoints_are_read_as_the_hub_writes_them(
    database: Database, audit: Checkpoints, tmp_path: Path
) -> None:
    write(database)
    made = audit.sign()
    assert sources.checkpoints(tmp_path / "audit" / "checkpoints.jsonl") == [made]
    with database.read() as session:
        assert checkpoints.newest(session) == made
