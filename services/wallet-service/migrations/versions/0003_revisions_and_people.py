"""The order of an account's states, and the people behind the wallets"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NEXT_REVISION = """
create function next_revision() returns trigger language plpgsql as $$
begin
    new.revision := old.revision + 1;
    return new;
end $$
"""

# Whoever counts by themselves pays for a comparison only; code that knows nothing of revisions is counted for.
COUNT_REVISIONS = """
create trigger accounts_revision before update on accounts for each row
when (
    new.revision = old.revision
    and (new.balance_minor, new.held_minor, new.status)
        is distinct from (old.balance_minor, old.held_minor, old.status)
)
execute function next_revision()
"""


def upgrade() -> None:
    op.execute("set local search_path = wallets")
    op.add_column("accounts", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(NEXT_REVISION)
    op.execute(COUNT_REVISIONS)
    op.create_table(
        "people",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.CheckConstraint("status in ('active', 'disabled', 'closed')", name="people_status"),
    )
    op.create_table(
        "inbox",
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.execute("grant select, insert, update on people to wallet_service")
    op.execute("grant select, insert on inbox to wallet_service")


def downgrade() -> None:
    op.execute("set local search_path = wallets")
    op.drop_table("inbox")
    op.drop_table("people")
    op.execute("drop trigger accounts_revision on accounts")
    op.execute("drop function next_revision()")
    op.drop_column("accounts", "revision")
