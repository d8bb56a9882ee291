"""Accounts, postings, entries and the outbox"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ENTRIES_BALANCE = """
create function entries_balance() returns trigger language plpgsql as $$
begin
    if exists (
        select from added left join accounts on accounts.id = added.account_id
        group by added.posting_id, accounts.currency
        having sum(added.amount_minor) <> 0 or accounts.currency is null
    ) then
        raise exception 'a posting''s entries must name accounts and sum to zero per currency'
            using errcode = 'check_violation';
    end if;
    return null;
end $$
"""

APPEND_ONLY = """
create function append_only() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'insufficient_privilege';
end $$
"""


def upgrade() -> None:
    op.execute("set local search_path = wallets")
    op.create_table(
        "accounts",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.Text, unique=True),
        sa.Column("user_id", sa.Uuid),
        sa.Column("currency", sa.CHAR(3), nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="active"),
        sa.Column("balance_minor", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("held_minor", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("last_entry_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("user_id", "currency", name="accounts_user_currency"),
        sa.CheckConstraint("(name is null) <> (user_id is null)", name="accounts_owner"),
        sa.CheckConstraint("status in ('active', 'frozen', 'closed')", name="accounts_status"),
        sa.CheckConstraint("held_minor >= 0", name="accounts_held"),
        sa.CheckConstraint("user_id is null or balance_minor >= held_minor", name="accounts_not_overdrawn"),
    )
    op.create_table(
        "postings",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("refusal", sa.Text),
        sa.Column("available_minor", sa.BigInteger),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "entries",
        sa.Column("account_id", sa.Uuid, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("posting_id", sa.Uuid, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("balance_minor", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_minor <> 0", name="entries_amount"),
        sa.CheckConstraint("version > 0", name="entries_version"),
    )
    op.create_index("entries_posting", "entries", ["posting_id"])
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
    op.execute(ENTRIES_BALANCE)
    op.execute(
        "create trigger entries_balance after insert on entries referencing new table as added "
        "for each statement execute function entries_balance()"
    )
    op.execute(APPEND_ONLY)
    for table in ("entries", "postings"):
        op.execute(
            f"create trigger append_only before update or delete or truncate on {table} "
            "for each statement execute function append_only()"
        )
    op.execute("grant select, insert, update on accounts to wallet_service")
    op.execute("grant select, insert on postings, entries to wallet_service")
    op.execute("grant select, insert, update, delete on outbox to wallet_service")


def downgrade() -> None:
    op.execute("set local search_path = wallets")
    for table in ("outbox", "entries", "postings", "accounts"):
        op.drop_table(table)
    op.execute("drop function entries_balance()")
    op.execute("drop function append_only()")
