"""Payments and the outbox"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = payments")
    op.create_table(
        "payments",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("transaction_id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.CHAR(3), nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("provider_reference", sa.Text),
        sa.Column("decline_code", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("transaction_id", "kind", name="payments_transaction_kind"),
        sa.CheckConstraint("kind in ('charge', 'refund')", name="payments_kind"),
        sa.CheckConstraint("status in ('pending', 'succeeded', 'declined')", name="payments_status"),
        sa.CheckConstraint("amount_minor > 0", name="payments_amount"),
        sa.CheckConstraint("(status = 'succeeded') = (provider_reference is not null)", name="payments_reference"),
        sa.CheckConstraint("(status = 'declined') = (decline_code is not null)", name="payments_decline"),
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
    )
    op.execute("grant select, insert, update on payments to payment_gateway")
    op.execute("grant select, insert, update, delete on outbox to payment_gateway")


def downgrade() -> None:
    op.execute("set local search_path = payments")
    op.drop_table("outbox")
    op.drop_table("payments")
