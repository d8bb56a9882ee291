"""Transactions, idempotency keys and the outbox"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = transactions")
    op.create_table(
        "transactions",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("payee_user_id", sa.Uuid),
        sa.Column("from_wallet_id", sa.Uuid),
        sa.Column("to_wallet_id", sa.Uuid),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.CHAR(3), nullable=False),
        sa.Column("payment_method", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("metadata", JSONB, nullable=False),
        sa.Column("failure_code", sa.Text),
        sa.Column("available_minor", sa.BigInteger),
        sa.Column("declined", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("event_sequence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("type in ('deposit', 'transfer')", name="transactions_type"),
        sa.CheckConstraint("status in ('pending', 'completed', 'failed')", name="transactions_status"),
        sa.CheckConstraint("amount_minor > 0", name="transactions_amount"),
        sa.CheckConstraint("(status = 'failed') = (failure_code is not null)", name="transactions_failure"),
        sa.CheckConstraint("(status = 'pending') = (completed_at is null)", name="transactions_completed"),
    )
    op.create_index("transactions_by_user", "transactions", ["user_id", "created_at", "id"])
    op.create_index("transactions_by_payee", "transactions", ["payee_user_id", "created_at", "id"])
    op.create_index(
        "transactions_open", "transactions", ["next_attempt_at"], postgresql_where=sa.text("status = 'pending'")
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("operation", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("transaction_id", sa.Uuid, nullable=False),
        sa.Column("response_status", sa.Integer),
        sa.Column("response_body", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("idempotency_keys_transaction", "idempotency_keys", ["transaction_id"])
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
    op.execute("grant select, insert, update on transactions to transaction_service")
    op.execute("grant select, insert, update, delete on idempotency_keys, outbox to transaction_service")


def downgrade() -> None:
    op.execute("set local search_path = transactions")
    op.drop_table("outbox")
    op.drop_table("idempotency_keys")
    op.drop_table("transactions")
