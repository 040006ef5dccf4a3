"""Opening the hub's database and its transactions.

SQLite runs in WAL mode with foreign keys on and full synchronisation: what the hub acknowledges to
a device must survive a power cut. A write transaction takes its lock at once (`BEGIN IMMEDIATE`),
so that two writers wait for each other instead of failing half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """A database that is at the newest migration.

    Args:
        url: SQLAlchemy URL (`sqlite:///…` or `postgresql+psycopg://…`).
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = open_engine(url)
        migrate(url)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session for reading; it is rolled back at the end."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session in a write transaction: committed at the end, rolled back on an error."""
        with Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"edgefleet_write": True})
            yield session
            session.commit()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def migrate(url: str) -> None:
    """Bring the database to the newest migration; an empty one gets all tables."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")


def open_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """Return an engine that begins transactions as this module's rules say."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": 30.0, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions itself: `_begin` below decides how.
        connection.isolation_level = None
        enforced = "ON" if foreign_keys else "OFF"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"foreign_keys={enforced}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        write = connection.get_execution_options().get("edgefleet_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
