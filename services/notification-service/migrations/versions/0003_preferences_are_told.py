"""What people choose is told: the outbox, and the head of the audit's chain"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = notifications")
    op.create_table(
        "choosers",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("event_sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("audited", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("ip", sa.Text),
    )
    op.create_table(
        "audit_chain",
        sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("claimed", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("before", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("single", name="audit_chain_single"),
    )
    op.execute("grant select, insert, update on choosers, audit_chain to notification_service")
    op.execute("grant select, insert, update, delete on outbox to notification_service")
    # The reconciler compares the chain with the audit; of people it sees nothing.
    op.execute("grant usage on schema notifications to reconciler")
    op.execute("grant select on audit_chain to reconciler")
    op.execute("grant select (position, audited) on outbox to reconciler")


def downgrade() -> None:
    op.execute("set local search_path = notifications")
    op.execute("revoke usage on schema notifications from reconciler")
    for table in ("audit_chain", "outbox", "choosers"):
        op.drop_table(table)
