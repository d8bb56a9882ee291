"""The head of the audit's chain"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("set local search_path = payments")
    op.create_table(
        "audit_chain",
        sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("claimed", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("before", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("single", name="audit_chain_single"),
    )
    op.execute("grant select, insert, update on audit_chain to payment_gateway")
    op.execute("grant select on audit_chain to reconciler")


def downgrade() -> None:
    op.execute("set local search_path = payments")
    op.drop_table("audit_chain")
