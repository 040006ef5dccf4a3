"""The log of decisions in a real database: written with its decision, one after another, kept."""

import hashlib
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DatabaseError

from edgefleet_cloud.database.models import AuditEntry, Model
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.acting import Actor, acting
from edgefleet_cloud.trust.audit import chain, log, triggers

NOW = 1_800_000_000.0


def entries(database: Database) -> list[AuditEntry]:
    with database.read() as session:
        return list(session.scalars(select(AuditEntry).order_by(AuditEntry.number)))


def write(database: Database, count: int = 1) -> None:
    for number in range(count):
        with database.write() as session:
            log.record(session, "thing.do", f"thing {number}", NOW + number)


def test_an_entry_says_who_decided_what_when_and_why(database: Database) -> None:
    with acting(Actor("ada", "person")), database.write() as session:
        log.record(
            session, "version.approve", "digits 3", NOW,
            before={"state": "registered"}, after={"state": "approved"}, reason="better",
        )  # fmt: skip
    (row,) = entries(database)
    assert row.line == (
        '{"v":1,"number":1,"at":1800000000.0,"actor":"ada","kind":"person",'
        '"action":"version.approve","subject":"digits 3","before":{"state":"registered"},'
        '"after":{"state":"approved"},"reason":"better"}'
    )
    found = (row.number, row.at, row.actor, row.kind, row.action, row.subject)
    assert found == (1, NOW, "ada", "person", "version.approve", "digits 3")


def test_code_that_nobody_asked_for_acts_as_the_hub(database: Database) -> None:
    write(database)
    (row,) = entries(database)
    assert (row.actor, row.kind) == ("hub", "hub")


def test_the_digest_is_that_of_the_chain_before_and_of_the_line(database: Database) -> None:
    write(database, 3)
    digest = bytes(32)
    for row in entries(database):
        line = hashlib.sha256(row.line.encode()).digest()
        digest = hashlib.sha256(digest + line).digest()
        assert row.digest == digest.hex()


def test_an_entry_is_gone_with_the_decision_that_failed(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            session.add(Model(name="m", task="score", created_at=NOW))
            log.record(session, "model.create", "m", NOW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    write(database)
    assert [row.number for row in entries(database)] == [1]


def test_an_entry_outside_a_write_transaction_is_refused(database: Database) -> None:
    with (
        database.read() as session,
        pytest.raises(RuntimeError, match="recorded outside a write transaction"),
    ):
        log.record(session, "thing.do", "x", NOW)


@pytest.mark.parametrize("size", [chain.MAX_VALUE_BYTES - 8, chain.MAX_VALUE_BYTES - 7])
def test_a_value_is_held_whole_up_to_its_limit(database: Database, size: int) -> None:
    value = {"k": "x" * size}
    encoded = msgspec.json.encode(value)
    with database.write() as session:
        log.record(session, "thing.do", "x", NOW, after=value)
    (row,) = entries(database)
    after = chain.decode(row.line).after
    if len(encoded) <= chain.MAX_VALUE_BYTES:
        assert after == value
    else:
        digest = hashlib.sha256(encoded).hexdigest()
        assert after == {"sha256": digest, "bytes": chain.MAX_VALUE_BYTES + 1}


def test_text_that_cannot_be_encoded_or_is_too_long_does_not_stop_a_decision(
    database: Database,
) -> None:
    with database.write() as session:
        log.record(session, "login.fail", "a\ud800b", NOW, reason="r" * 2001)
        log.record(session, "login.fail", "n" * 201, NOW)
    first, second = (chain.decode(row.line) for row in entries(database))
    assert first.subject == "a?b"
    assert first.reason == "r" * 1999 + "…"
    assert second.subject == "n" * 199 + "…"


@pytest.mark.parametrize("table", triggers.TABLES)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET digest = ''",
        "DELETE FROM {}",
        "INSERT OR REPLACE INTO {} SELECT * FROM {} WHERE number = 1",
    ],
)
def test_the_database_refuses_to_change_or_remove(
    database: Database, tmp_path: Path, table: str, statement: str
) -> None:
    write(database)
    connection = sqlite3.connect(tmp_path / "hub.db")
    connection.execute("INSERT INTO audit_checkpoints VALUES (1, 'd', 1, 'k', 's')")
    connection.commit()
    with pytest.raises(sqlite3.IntegrityError, match="audit log"):
        connection.execute(statement.format(table, table))
    connection.close()


def test_the_orm_is_refused_too(database: Database) -> None:
    write(database)
    for statement in (update(AuditEntry).values(line=""), delete(AuditEntry)):
        with pytest.raises(DatabaseError, match="append-only"), database.write() as session:
            session.execute(statement)


def test_two_writers_make_one_chain(database: Database) -> None:
    ready = threading.Barrier(2)
    errors: list[Exception] = []

    def record(name: str) -> None:
        ready.wait()
        for number in range(30):
            try:
                with acting(Actor(name, "person")), database.write() as session:
                    log.record(session, "thing.do", str(number), NOW)
            except Exception as error:  # kept for the assertion below
                errors.append(error)

    threads = [threading.Thread(target=record, args=(name,)) for name in ("ada", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = entries(database)
    assert [row.number for row in rows] == list(range(1, 61))
    for name in ("ada", "bob"):
        assert [row.subject for row in rows if row.actor == name] == [str(n) for n in range(30)]
    digest = chain.START
    for row in rows:
        digest = chain.follow(digest, chain.line_digest(row.line))
        assert row.digest == digest


WRITER = """
import sys
from edgefleet_cloud.database.models import Model
from edgefleet_cloud.database.sessions import Database
from edgefleet_cloud.trust.audit import log

database = Database(sys.argv[1])
for number in range(1_000_000):
    with database.write() as session:
        name = f"{sys.argv[2]}-{number}"
        session.add(Model(name=name, task="score", created_at=0.0))
        log.record(session, "model.create", name, float(number))
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_chain_and_its_decisions(
    database: Database,
) -> None:
    for name in ("first", "second"):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITER, database.url, name],
            stdout=subprocess.PIPE, text=True,
        ) as writer:  # fmt: skip
            assert writer.stdout is not None
            acknowledged = [int(next(writer.stdout)) for _ in range(5)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout]
        rows = [row for row in entries(database) if row.subject.startswith(name)]
        with database.read() as session:
            models = set(session.scalars(select(Model.name).where(Model.name.startswith(name))))
        assert {row.subject for row in rows} == models
        assert len(rows) - len(acknowledged) in (0, 1)
    digest = chain.START
    for number, row in enumerate(entries(database), start=1):
        digest = chain.follow(digest, chain.line_digest(row.line))
        assert (row.number, row.digest) == (number, digest)
