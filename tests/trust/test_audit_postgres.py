"""The triggers of the log on a real PostgreSQL server, by its own command line."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from edgefleet_cloud.database.models import AuditCheckpoint, AuditEntry
from edgefleet_cloud.trust.audit import triggers

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
Psql = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def psql() -> Iterator[Psql]:
    """A server of its own behind a socket in a folder; a function that runs a statement on it."""
    if BIN is None or not (BIN / "initdb").exists():
        pytest.skip("PostgreSQL's initdb is missing: apt-get install postgresql")
    # The server refuses to run as root, and its user may not look into pytest's folders.
    root = os.geteuid() == 0
    if root and not shutil.which("runuser"):
        pytest.skip("runuser is missing: run this test as another user than root")
    with tempfile.TemporaryDirectory(prefix="edgefleet-pg-") as name:
        folder = Path(name)
        if root:
            shutil.chown(folder, "postgres")
        yield from _server(BIN, folder, ["runuser", "-u", "postgres", "--"] if root else [])


def _server(binaries: Path, folder: Path, prefix: list[str]) -> Iterator[Psql]:
    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*prefix, *command], capture_output=True, text=True, check=False, cwd=folder
        )

    data = folder / "data"
    made = run(str(binaries / "initdb"), "-D", str(data), "-U", "hub", "--auth=trust", "--no-sync")
    assert made.returncode == 0, made.stderr
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    started = run(*control, "-o", options, "start")
    assert started.returncode == 0, started.stderr
    try:
        yield lambda statement: run(
            "psql", "-h", str(folder), "-U", "hub", "-d", "postgres", "-v", "ON_ERROR_STOP=1",
            "-Atc", statement,
        )  # fmt: skip
    finally:
        run(*control, "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def log(psql: Psql) -> Psql:
    """The tables of audit, with an entry and a checkpoint."""
    dialect = postgresql.dialect()
    made = [
        str(CreateTable(m.__table__).compile(dialect=dialect))
        for m in (AuditEntry, AuditCheckpoint)
    ]
    entry = "INSERT INTO audit_entries VALUES (1, 0, 'a', 'hub', 'x.y', 's', 'l', 'd')"
    checkpoint = "INSERT INTO audit_checkpoints VALUES (1, 'd', 1, 'k', 's')"
    for statement in (*made, *triggers.statements("postgresql"), entry, checkpoint):
        done = psql(statement)
        assert done.returncode == 0, done.stderr
    return psql


@pytest.mark.parametrize("table", triggers.TABLES)
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET digest = ''", "DELETE FROM {}", "TRUNCATE {}"]
)
def test_postgresql_refuses_to_change_or_remove(log: Psql, table: str, statement: str) -> None:
    done = log(statement.format(table))
    assert done.returncode != 0
    assert "the audit log is append-only" in done.stderr
    assert log(f"SELECT count(*) FROM {table}").stdout == "1\n"


def test_what_the_triggers_leave_behind_is_removed_with_the_tables(psql: Psql, log: Psql) -> None:
    assert log("SELECT count(*) FROM audit_entries").stdout == "1\n"
    dropped = [f"DROP TABLE {table}" for table in triggers.TABLES]
    for statement in (*dropped, *triggers.removal("postgresql")):
        assert psql(statement).returncode == 0


def test_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be protected in a 'mysql' database"):
        triggers.statements("mysql")
