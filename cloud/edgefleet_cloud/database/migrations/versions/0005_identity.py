"""Certificates, expected serial numbers, and what devices swear to.

Revision: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Certificates given before this table was there stay good; without their key they cannot be
# renewed, so these devices enrol once more before their certificate ends.
_KNOWN_SO_FAR = """
INSERT INTO certificates
    (serial, device_id, public_key, issuer, issued_at, expires_at, seen_at, ended)
SELECT certificate_serial, id, {nothing}, '', created_at, certificate_expires_at, created_at, ''
FROM devices WHERE certificate_serial IS NOT NULL AND certificate_expires_at IS NOT NULL
"""


def upgrade() -> None:
    op.create_table(
        "expected_devices",
        sa.Column("serial", sa.String(length=128), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("board", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("approval", sa.Boolean(), nullable=False),
        sa.Column("asked_key", sa.String(length=64), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=True),
        sa.Column("accepted_at", sa.Double(), nullable=True),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("serial"),
        sa.UniqueConstraint("device_id"),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("issuer", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("ended", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"]),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_index("ix_certificates_device_id", "certificates", ["device_id"], unique=False)
    nothing = "x''" if op.get_bind().dialect.name == "sqlite" else "''::bytea"
    op.execute(_KNOWN_SO_FAR.format(nothing=nothing))
    op.create_table(
        "device_identities",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("anchor", sa.LargeBinary(), nullable=False),
        sa.Column("anchor_kind", sa.String(length=16), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("stores", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"]),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "statements",
        sa.Column("report_id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("challenge_age_s", sa.Double(), nullable=True),
        sa.Column("assignment", sa.Integer(), nullable=False),
        sa.Column("serving", sa.JSON(), nullable=False),
        sa.Column("time_attested", sa.Boolean(), nullable=False),
        sa.Column("attack", sa.String(), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("authorities", sa.JSON(), nullable=False),
        sa.Column("certificate", sa.String(length=64), nullable=False),
        sa.Column("differs", sa.Boolean(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"]),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"]),
        sa.PrimaryKeyConstraint("report_id"),
    )
    op.create_index("ix_statements_device_id", "statements", ["device_id"], unique=False)


def downgrade() -> None:
    op.drop_table("statements")
    op.drop_table("device_identities")
    op.drop_table("certificates")
    op.drop_table("expected_devices")
