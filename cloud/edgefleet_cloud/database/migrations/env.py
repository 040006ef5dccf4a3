"""Alembic's entry: runs the migrations against the URL that the caller configured."""

from alembic import context
from sqlalchemy import create_engine

from edgefleet_cloud.database.models import Base

engine = create_engine(str(context.config.get_main_option("sqlalchemy.url")))
with engine.connect() as connection:
    # Batch mode: SQLite cannot alter a table in place.
    context.configure(connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
