"""Sessions, and what people are counted and listed by"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COUNTERS = {"password_version": "1", "sessions_version": "0"}


def upgrade() -> None:
    op.execute("set local search_path = users")
    for name, first in COUNTERS.items():
        op.add_column("users", sa.Column(name, sa.BigInteger, nullable=False, server_default=first))
    op.create_index("users_by_time", "users", ["created_at", "id"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("user_agent", sa.Text, nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("access_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("end_reason", sa.Text),
        sa.Column("announced", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    ended = sa.text("ended_at is not null")
    op.create_index("sessions_live", "sessions", ["user_id"], postgresql_where=sa.text("ended_at is null"))
    op.create_index("sessions_known", "sessions", ["user_id", "network"])
    op.create_index("sessions_ended", "sessions", ["access_until"], postgresql_where=ended)
    op.create_index(
        "sessions_to_announce", "sessions", ["id"], postgresql_where=sa.text("ended_at is not null and not announced")
    )
    op.execute("grant select, insert, update, delete on sessions to user_service")


def downgrade() -> None:
    op.execute("set local search_path = users")
    op.drop_table("sessions")
    op.drop_index("users_by_time", "users")
    for name in COUNTERS:
        op.drop_column("users", name)
