"""Where a request came from, for the audit"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = payments")
    op.add_column("outbox", sa.Column("ip", sa.Text))


def downgrade() -> None:
    op.execute("set local search_path = payments")
    op.drop_column("outbox", "ip")
