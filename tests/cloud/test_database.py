"""Migrations and transactions on real SQLite."""

import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, inspect, select, text
from sqlalchemy.exc import IntegrityError

from edgefleet_cloud.database.models import Base, Device, Model, Run
from edgefleet_cloud.database.sessions import MIGRATIONS, Database


def alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url)
    return config


def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []
    assert set(inspect(database.engine).get_table_names()) == {
        *Base.metadata.tables,
        "alembic_version",
    }


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Operations.create_table

    def fail_at_jobs(self: Operations, name: str, *args: object, **kwargs: object) -> object:
        if name == "jobs":
            raise RuntimeError("killed")
        return original(self, name, *args, **kwargs)

    url = f"sqlite:///{tmp_path / 'new.db'}"
    monkeypatch.setattr(Operations, "create_table", fail_at_jobs)
    with pytest.raises(RuntimeError, match="killed"):
        Database(url)
    monkeypatch.undo()
    database = Database(url)
    assert "jobs" in inspect(database.engine).get_table_names()
    database.close()


def test_migrating_down_removes_every_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    Database(url).close()
    config = alembic(url)
    command.downgrade(config, "base")
    database = Database(url)
    assert "jobs" in inspect(database.engine).get_table_names()
    database.close()


def test_an_error_rolls_a_write_back(database: Database) -> None:
    def write_half() -> None:
        with database.write() as session:
            session.add(Model(name="m", task="regression", created_at=0.0))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    with database.read() as session:
        assert session.get(Model, "m") is None


def test_what_a_reader_changes_is_not_kept(database: Database) -> None:
    with database.read() as session:
        session.add(Model(name="m", task="regression", created_at=0.0))
        session.flush()
    with database.read() as session:
        assert session.get(Model, "m") is None


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(
            text(
                "INSERT INTO claims (secret_digest, device_id, expires_at, created_at)"
                " VALUES ('d', 'nobody', 1, 1)"
            )
        )


def test_files_survive_a_power_cut_by_setting(database: Database) -> None:
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_two_writers_wait_for_each_other(database: Database) -> None:
    """Both read before they write: without the lock at the start, one would fail half-way."""
    with database.write() as session:
        session.add(Device(id="d", state="claimed", created_at=0.0))
    ready = threading.Barrier(2)
    errors: list[Exception] = []

    def count_up() -> None:
        ready.wait()
        for _ in range(25):
            try:
                with database.write() as session:
                    device = session.get_one(Device, "d")
                    device.sequence += 1
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with database.read() as session:
        assert session.get_one(Device, "d").sequence == 50


def test_runs_of_an_older_hub_learn_what_their_fitted_model_is_called(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    Database(url).close()
    config = alembic(url)
    command.downgrade(config, "0006")
    database = create_engine(url)
    runs = [
        ("sklearn", "{}"),
        ("keras-cnn", "{}"),
        ("import", '{"file": "a.onnx"}'),
        ("import", "{}"),
    ]
    with database.begin() as connection:
        for trainer, parameters in runs:
            connection.execute(
                text(
                    "INSERT INTO runs (model, trainer, parameters, seed, code, environment,"
                    " metrics, state, created_at) VALUES ('m', :trainer, :parameters, 0, '',"
                    " '{}', '{}', 'succeeded', 1)"
                ),
                {"trainer": trainer, "parameters": parameters},
            )
    database.dispose()
    command.upgrade(config, "head")
    with Database(url).read() as session:
        names = session.scalars(select(Run.filename).order_by(Run.id)).all()
        assert names == ["model.skops", "model.keras", "a.onnx", ""]
        assert session.get_one(Run, 1).reports == {}
