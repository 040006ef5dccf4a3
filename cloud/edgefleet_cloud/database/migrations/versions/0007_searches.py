"""What a run's fitted model is called and tells apart; recipes of variants; reports of searches.

Revision: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_RUNS = sa.table(
    "runs",
    sa.column("trainer", sa.String),
    sa.column("parameters", sa.JSON),
    sa.column("filename", sa.String),
    sa.column("id", sa.Integer),
)


def upgrade() -> None:
    op.add_column(
        "runs", sa.Column("filename", sa.String(length=200), server_default="", nullable=False)
    )
    op.add_column("runs", sa.Column("classes", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("reports", sa.JSON(), server_default="{}", nullable=False))
    op.add_column("variants", sa.Column("recipe", sa.String(), server_default="", nullable=False))
    connection = op.get_bind()
    for run in connection.execute(sa.select(_RUNS)).all():
        # Trainers have always written these; what was handed in was kept among the parameters.
        by_trainer = {"sklearn": "model.skops", "import": (run.parameters or {}).get("file", "")}
        filename = by_trainer.get(run.trainer, "model.keras")
        connection.execute(sa.update(_RUNS).where(_RUNS.c.id == run.id).values(filename=filename))


def downgrade() -> None:
    op.drop_column("variants", "recipe")
    op.drop_column("runs", "reports")
    op.drop_column("runs", "classes")
    op.drop_column("runs", "filename")
