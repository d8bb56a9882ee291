"""Contacts, preferences and what people are told"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = notifications")
    op.create_table(
        "contacts",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("phone", sa.Text, nullable=False),
        sa.Column("first_name", sa.Text, nullable=False),
        sa.Column("last_name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.CheckConstraint("status in ('active', 'disabled', 'closed')", name="contacts_status"),
    )
    op.create_table(
        "preferences",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("email", sa.Boolean, nullable=False),
        sa.Column("sms", sa.Boolean, nullable=False),
    )
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("template", sa.Text, nullable=False),
        sa.Column("facts", JSONB, nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("read_at", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("event_id", "user_id", "channel", name="notifications_once"),
        sa.CheckConstraint("channel in ('email', 'sms')", name="notifications_channel"),
        sa.CheckConstraint("state in ('pending', 'sent', 'failed', 'skipped')", name="notifications_state"),
        sa.CheckConstraint("(state = 'pending') = (next_attempt_at is not null)", name="notifications_due"),
        sa.CheckConstraint("(state = 'sent') = (sent_at is not null)", name="notifications_sent"),
    )
    op.create_index(
        "notifications_pending",
        "notifications",
        ["channel", "next_attempt_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("notifications_age", "notifications", ["created_at"])
    op.create_index("notifications_of_user", "notifications", ["user_id", "created_at", "id"])
    op.execute("grant select, insert, update on contacts to notification_service")
    op.execute("grant select, insert, update, delete on notifications to notification_service")
    op.execute("grant select, insert, delete on preferences to notification_service")


def downgrade() -> None:
    op.execute("set local search_path = notifications")
    op.drop_table("notifications")
    op.drop_table("preferences")
    op.drop_table("contacts")
