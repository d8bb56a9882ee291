"""Holds, the status of wallets, and what the reconciler reads"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

HOLDS_END_ONCE = """
create function holds_end_once() returns trigger language plpgsql as $$
begin
    if tg_op <> 'UPDATE' then
        raise exception 'holds are kept' using errcode = 'insufficient_privilege';
    end if;
    if old.status <> 'open' or new.status not in ('captured', 'released')
        or (new.id, new.account_id, new.amount_minor) is distinct from (old.id, old.account_id, old.amount_minor)
    then
        raise exception 'a hold is captured or released, once, and nothing else about it changes'
            using errcode = 'check_violation';
    end if;
    return new;
end $$
"""


def upgrade() -> None:
    op.execute("set local search_path = wallets")
    op.create_table(
        "holds",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("account_id", sa.Uuid),
        sa.Column("amount_minor", sa.BigInteger),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("refusal", sa.Text),
        sa.Column("available_minor", sa.BigInteger),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("status in ('open', 'captured', 'released', 'refused')", name="holds_status"),
        sa.CheckConstraint("amount_minor > 0", name="holds_amount"),
        sa.CheckConstraint("(account_id is null) = (amount_minor is null)", name="holds_account"),
        sa.CheckConstraint(
            "status not in ('open', 'captured') or account_id is not null", name="holds_of_an_account"
        ),
        sa.CheckConstraint("(status = 'refused') = (refusal is not null)", name="holds_refusal"),
        sa.CheckConstraint("(status = 'open') = (ended_at is null)", name="holds_ended"),
    )
    op.create_index("holds_open", "holds", ["account_id"], postgresql_where=sa.text("status = 'open'"))
    op.execute(HOLDS_END_ONCE)
    op.execute(
        "create trigger holds_end_once before update or delete on holds "
        "for each row execute function holds_end_once()"
    )
    op.execute(
        "create trigger holds_are_kept before truncate on holds for each statement execute function append_only()"
    )
    op.add_column("accounts", sa.Column("merchant", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("accounts", sa.Column("event_sequence", sa.BigInteger, nullable=False, server_default="1"))
    for table in ("entries", "postings"):
        op.create_index(
            f"{table}_created",
            table,
            ["created_at"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        )
    op.execute("grant select, insert, update on holds to wallet_service")
    op.execute("grant usage on schema wallets to reconciler")
    op.execute("grant select on accounts, postings, entries, holds, outbox to reconciler")


def downgrade() -> None:
    op.execute("set local search_path = wallets")
    op.execute("revoke select on accounts, postings, entries, outbox from reconciler")
    for table in ("entries", "postings"):
        op.drop_index(f"{table}_created")
    op.drop_column("accounts", "event_sequence")
    op.drop_column("accounts", "merchant")
    op.drop_table("holds")
    op.execute("drop function holds_end_once()")
