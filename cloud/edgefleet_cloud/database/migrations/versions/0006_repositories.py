"""Whose signature a release waits for; under which root an assignment was signed.

Revision: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "owned_models",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
    op.add_column(
        "directors", sa.Column("root_version", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column(
        "releases", sa.Column("waits_for", sa.String(length=64), server_default="", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("releases", "waits_for")
    op.drop_column("directors", "root_version")
    op.drop_table("owned_models")
