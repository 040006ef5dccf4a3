"""Alembic's entry: runs the migrations against the URL that the caller configured.

All migrations that are due run in one transaction: a hub that is killed half-way finds its
database as it was before, and two hubs that start at once wait for each other.
"""

from alembic import context

from edgefleet_cloud.database.models import Base
from edgefleet_cloud.database.sessions import open_engine

url = str(context.config.get_main_option("sqlalchemy.url"))
# Rebuilding a table drops the old one, which foreign keys would turn into lost rows.
engine = open_engine(url, foreign_keys=False)
with engine.connect().execution_options(edgefleet_write=True) as connection:
    # Batch mode: SQLite cannot alter a table in place.
    context.configure(
        connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
