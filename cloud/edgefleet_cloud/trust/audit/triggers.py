"""Triggers that make the tables of audit append-only in the database itself.

They stop mistakes, other programs and injected statements; not one who may drop triggers or write
to the file. That one is found by the signed checkpoints (`checkpoints`).
"""

TABLES = ("audit_entries", "audit_checkpoints")
_TEXT = "the audit log is append-only"


def statements(dialect: str) -> list[str]:
    """Return the statements that make the triggers, for `sqlite` or `postgresql`.

    Raises:
        ValueError: for another dialect: a log that anyone may change is not offered.
    """
    if dialect == "sqlite":
        return [*_sqlite_refusals(), *_SQLITE_NEXT]
    if dialect == "postgresql":
        return [_POSTGRES_FUNCTION, *_postgres_refusals()]
    raise ValueError(f"the audit log cannot be protected in a {dialect!r} database")


def removal(dialect: str) -> list[str]:
    """Return the statements that remove what dropping the tables leaves behind."""
    return ["DROP FUNCTION edgefleet_append_only()"] if dialect == "postgresql" else []


def _sqlite_refusals() -> list[str]:
    return [
        f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table}"
        f" BEGIN SELECT RAISE(ABORT, '{_TEXT}'); END"
        for table in TABLES
        for what in ("UPDATE", "DELETE")
    ]


def _postgres_refusals() -> list[str]:
    return [
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION edgefleet_append_only()"
        for table in TABLES
    ]


# `INSERT OR REPLACE` removes the old row without asking the DELETE trigger.
_SQLITE_NEXT = [
    """CREATE TRIGGER audit_entries_next BEFORE INSERT ON audit_entries
    WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM audit_entries)
    BEGIN SELECT RAISE(ABORT, 'an entry of the audit log has the next number'); END""",
    """CREATE TRIGGER audit_checkpoints_next BEFORE INSERT ON audit_checkpoints
    WHEN NEW.number <= (SELECT coalesce(max(number), 0) FROM audit_checkpoints)
    BEGIN SELECT RAISE(ABORT, 'a checkpoint of the audit log has a higher number'); END""",
]
_POSTGRES_FUNCTION = (
    "CREATE FUNCTION edgefleet_append_only() RETURNS trigger LANGUAGE plpgsql AS"
    f" $$ BEGIN RAISE EXCEPTION '{_TEXT}'; END $$"
)
