"""What has ended stays as it is, in the database too"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

END_ONCE = """
create function end_once() returns trigger language plpgsql as $$
begin
    if old.status = 'pending' then
        return new;
    end if;
    old.refunded_minor := new.refunded_minor;
    if new is distinct from old then
        raise exception 'a transaction ends once, and afterwards only what was given back of it changes'
            using errcode = 'check_violation';
    end if;
    return new;
end $$
"""

ARE_KEPT = """
create function are_kept() returns trigger language plpgsql as $$
begin
    raise exception '% are kept', tg_table_name using errcode = 'insufficient_privilege';
end $$
"""


def upgrade() -> None:
    op.execute("set local search_path = transactions")
    op.execute(END_ONCE)
    op.execute(
        "create trigger transactions_end_once before update on transactions for each row execute function end_once()"
    )
    op.execute(ARE_KEPT)
    op.execute(
        "create trigger transactions_are_kept before delete or truncate on transactions "
        "for each statement execute function are_kept()"
    )


def downgrade() -> None:
    op.execute("set local search_path = transactions")
    for trigger in ("transactions_end_once", "transactions_are_kept"):
        op.execute(f"drop trigger {trigger} on transactions")
    for function in ("end_once", "are_kept"):
        op.execute(f"drop function {function}()")
