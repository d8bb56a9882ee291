"""Payouts, refunds of other transactions' charges, follow-up and reversals"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = payments")
    op.add_column("payments", sa.Column("original_id", sa.Uuid))
    op.add_column("payments", sa.Column("event_sequence", sa.Integer, nullable=False, server_default="0"))
    op.add_column("payments", sa.Column("next_check_at", sa.DateTime(timezone=True)))
    op.add_column("payments", sa.Column("reversal", sa.Text))
    op.add_column("payments", sa.Column("reversed_minor", sa.BigInteger))
    op.add_column("payments", sa.Column("reversed_at", sa.DateTime(timezone=True)))
    # Each payment that a provider settled has had its one event; a voided charge never had any.
    op.execute(
        "update payments set event_sequence = 1 where status <> 'pending' and decline_code is distinct from 'voided'"
    )
    op.execute("update payments set next_check_at = now() where status = 'pending'")
    op.drop_constraint("payments_kind", "payments")
    op.create_check_constraint("payments_kind", "payments", "kind in ('charge', 'refund', 'payout')")
    op.create_check_constraint("payments_original", "payments", "original_id is null or kind = 'refund'")
    op.create_check_constraint(
        "payments_reversal",
        "payments",
        "reversal is null or status = 'succeeded' "
        "and (kind = 'charge' and reversal = 'disputed' or kind = 'payout' and reversal = 'returned')",
    )
    op.create_check_constraint(
        "payments_reversal_whole",
        "payments",
        "(reversal is null) = (reversed_minor is null) and (reversal is null) = (reversed_at is null)",
    )
    op.create_check_constraint(
        "payments_reversed", "payments", "reversed_minor > 0 and reversed_minor <= amount_minor"
    )
    op.create_index(
        "payments_due", "payments", ["next_check_at"], postgresql_where=sa.text("next_check_at is not null")
    )
    op.create_index(
        "payments_refunds", "payments", ["original_id"], postgresql_where=sa.text("original_id is not null")
    )
    op.execute("grant usage on schema payments to reconciler")
    op.execute("grant select on all tables in schema payments to reconciler")


def downgrade() -> None:
    op.execute("set local search_path = payments")
    op.execute("revoke select on all tables in schema payments from reconciler")
    op.execute("revoke usage on schema payments from reconciler")
    op.drop_index("payments_refunds", "payments")
    op.drop_index("payments_due", "payments")
    op.drop_constraint("payments_reversed", "payments")
    op.drop_constraint("payments_reversal_whole", "payments")
    op.drop_constraint("payments_reversal", "payments")
    op.drop_constraint("payments_original", "payments")
    op.drop_constraint("payments_kind", "payments")
    # The old schema has no payouts: with any of them there is no way back.
    op.create_check_constraint("payments_kind", "payments", "kind in ('charge', 'refund')")
    for column in ("reversed_at", "reversed_minor", "reversal", "next_check_at", "event_sequence", "original_id"):
        op.drop_column("payments", column)
