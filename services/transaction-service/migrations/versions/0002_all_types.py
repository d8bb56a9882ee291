"""Withdrawals, payments, refunds, what comes back from outside, and what the reconciler reads"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TYPES = "type in ('deposit', 'withdrawal', 'transfer', 'payment', 'refund', 'payout_return', 'dispute')"


def upgrade() -> None:
    op.execute("set local search_path = transactions")
    for column in (
        sa.Column("fee_minor", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("original_id", sa.Uuid),
        sa.Column("original_type", sa.Text),
        sa.Column("refunded_minor", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("provider", sa.Text),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("transactions", column)
    op.drop_constraint("transactions_type", "transactions")
    op.create_check_constraint("transactions_type", "transactions", TYPES)
    op.create_check_constraint("transactions_fee", "transactions", "fee_minor >= 0 and fee_minor < amount_minor")
    op.create_check_constraint("transactions_refunded", "transactions", "refunded_minor between 0 and amount_minor")
    op.create_check_constraint(
        "transactions_original",
        "transactions",
        "(original_id is not null) = (type in ('refund', 'payout_return', 'dispute'))",
    )
    op.create_index(
        "transactions_of_original",
        "transactions",
        ["original_id"],
        postgresql_where=sa.text("original_id is not null"),
    )
    op.create_index(
        "transactions_reversed_once",
        "transactions",
        ["original_id", "type"],
        unique=True,
        postgresql_where=sa.text("type in ('payout_return', 'dispute')"),
    )
    op.create_index(
        "transactions_ended",
        "transactions",
        ["completed_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )
    op.create_index(
        "idempotency_keys_created",
        "idempotency_keys",
        ["created_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )
    op.create_table(
        "inbox",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.execute("grant select, insert on inbox to transaction_service")
    op.execute("grant usage on schema transactions to reconciler")
    op.execute("grant select on transactions, outbox to reconciler")
    op.execute("grant select (user_id, operation, key, transaction_id, created_at) on idempotency_keys to reconciler")


def downgrade() -> None:
    op.execute("set local search_path = transactions")
    op.execute("revoke select on transactions, outbox from reconciler")
    op.execute(
        "revoke select (user_id, operation, key, transaction_id, created_at) on idempotency_keys from reconciler"
    )
    op.drop_table("inbox")
    op.drop_index("idempotency_keys_created")
    for index in ("transactions_ended", "transactions_reversed_once", "transactions_of_original"):
        op.drop_index(index)
    for constraint in ("transactions_original", "transactions_refunded", "transactions_fee", "transactions_type"):
        op.drop_constraint(constraint, "transactions")
    op.create_check_constraint("transactions_type", "transactions", "type in ('deposit', 'transfer')")
    for column in ("cancel_requested", "provider", "refunded_minor", "original_type", "original_id", "fee_minor"):
        op.drop_column("transactions", column)
