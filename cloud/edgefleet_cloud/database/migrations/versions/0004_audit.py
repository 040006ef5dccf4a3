"""The log of decisions, its checkpoints, and provenance.

Revision: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from edgefleet_cloud.trust.audit import triggers

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SEARCHED = ("at", "actor", "action", "subject")


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    for column in _SEARCHED:
        op.create_index(f"ix_audit_entries_{column}", "audit_entries", [column], unique=False)
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("keyid", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "provenance",
        sa.Column("variant_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("keyid", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"]),
        sa.PrimaryKeyConstraint("variant_id"),
    )
    for statement in triggers.statements(op.get_bind().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("provenance")
    op.drop_table("audit_checkpoints")
    op.drop_table("audit_entries")
    for statement in triggers.removal(op.get_bind().dialect.name):
        op.execute(statement)
