"""The invariants as SQL: all the SQL about the ledger that there is here.

Each statement answers the rows that break its invariant, as a `subject` that names the row and a sentence `told`;
where that is null the row is in order. Statements of a full pass read each table from its beginning to its end and
join by hash or by merge. Those of a recent pass take what is new since `$1` and look up by index what belongs to it:
`lateral (… limit 1)` is what keeps the planner from reading a whole table for that.

What a service has begun and not ended yet is no finding: it has IN_FLIGHT to end it, a provider PROVIDER_SLACK.
"""

from dataclasses import dataclass
from typing import Final

IN_FLIGHT: Final = "interval '60 seconds'"
PROVIDER_SLACK: Final = "interval '10 minutes'"

_ROLES: Final = (
    "('user_service', 'wallet_service', 'transaction_service', 'payment_gateway', 'notification_service', "
    "'reconciler')"
)

# How many rows there are to look at.
COUNTS: Final = {
    "entries": "select count(*) from wallets.entries",
    "accounts": "select count(*) from wallets.accounts",
    "postings": "select count(*) from wallets.postings",
    "holds": "select count(*) from wallets.holds",
    "transactions": "select count(*) from transactions.transactions",
    "keys": "select count(*) from transactions.idempotency_keys",
    "payments": "select count(*) from payments.payments",
    "triggers": "select count(*) from pg_trigger where tgrelid = any(array['wallets.entries', 'wallets.postings', "
    "'wallets.holds', 'transactions.transactions']::regclass[]) and not tgisinternal",
    "roles": f"select count(*) from pg_roles where rolname in {_ROLES}",
}
RECENT_COUNTS: Final = {
    "entries": "select count(*) from wallets.entries where created_at >= $1",
    "accounts": "select count(distinct account_id) from wallets.entries where created_at >= $1",
    "postings": "select count(*) from wallets.postings where created_at >= $1",
    "holds": "select count(*) from wallets.holds where status = 'open'",
    "transactions": "select count(*) from transactions.transactions where completed_at >= $1",
    "keys": "select count(*) from transactions.idempotency_keys where created_at >= $1",
    "triggers": COUNTS["triggers"],
    "roles": COUNTS["roles"],
}


@dataclass(frozen=True, slots=True)
class Check:
    """An invariant, by its number in the design, and the statements that find what breaks it.

    `recent` is None where only the whole can be checked. `looks_at` names the rows that are looked at, one of COUNTS.
    """

    number: int
    name: str
    promise: str
    looks_at: str
    full: str
    recent: str | None = None


_SUBJECT_OF_ACCOUNT: Final = "coalesce('account ' || a.name, 'wallet ' || a.id)"

# ------------------------------------------------------------------------------------------ 1 and 2

ZERO_SUM: Final = Check(
    1,
    "zero_sum",
    "All entries of a currency sum to zero.",
    "entries",
    full="""
select a.currency::text as subject,
    format('the entries in %s sum to %s instead of 0', a.currency, sum(e.total)) as told
from (select account_id, sum(amount_minor) as total from wallets.entries group by account_id) e
join wallets.accounts a on a.id = e.account_id
group by a.currency having sum(e.total) <> 0
""",
)

_UNBALANCED: Final = """
select u.posting_id::text as subject,
    format('posting %s does not balance: %s', u.posting_id, string_agg(
        u.total || coalesce(' ' || u.currency, ' on an account that is not there'), ', ' order by u.currency)) as told
from ({sums}) u
group by u.posting_id
"""

POSTING: Final = Check(
    2,
    "posting",
    "The entries of each posting name existing accounts and sum to zero per currency.",
    "entries",
    full=_UNBALANCED.format(
        sums="""
    select e.posting_id, a.currency, sum(e.amount_minor) as total
    from wallets.entries e left join wallets.accounts a on a.id = e.account_id
    group by e.posting_id, a.currency having sum(e.amount_minor) <> 0 or a.currency is null
"""
    ),
    # Entries of one posting can have different times: one that looks unbalanced is looked up whole.
    recent=_UNBALANCED.format(
        sums="""
    select w.* from (
        select distinct e.posting_id
        from wallets.entries e left join wallets.accounts a on a.id = e.account_id
        where e.created_at >= $1
        group by e.posting_id, a.currency having sum(e.amount_minor) <> 0 or a.currency is null
    ) s cross join lateral (
        select e.posting_id, a.currency, sum(e.amount_minor) as total
        from wallets.entries e left join wallets.accounts a on a.id = e.account_id
        where e.posting_id = s.posting_id
        group by e.posting_id, a.currency having sum(e.amount_minor) <> 0 or a.currency is null
    ) w
"""
    ),
)

# ------------------------------------------------------------------------------------------ 3 and 4

_NEWEST: Final = """
from (select distinct account_id from wallets.entries where created_at >= $1) r
join wallets.accounts a on a.id = r.account_id
cross join lateral (
    select e.balance_minor, e.version from wallets.entries e
    where e.account_id = r.account_id order by e.version desc limit 1
) n
"""

BALANCE: Final = Check(
    3,
    "balance",
    "The balance of each account is the sum of its entries.",
    "accounts",
    full=f"""
select a.id::text as subject,
    format('%s says %s, its entries %s (%s)', {_SUBJECT_OF_ACCOUNT}, a.balance_minor, coalesce(e.total, 0),
        a.currency) as told
from wallets.accounts a
left join (select account_id, sum(amount_minor) as total from wallets.entries group by account_id) e
    on e.account_id = a.id
where a.balance_minor <> coalesce(e.total, 0)
""",
    recent=f"""
select a.id::text as subject,
    format('%s says %s, its newest entry %s (%s)', {_SUBJECT_OF_ACCOUNT}, a.balance_minor, n.balance_minor,
        a.currency) as told
{_NEWEST}
where a.balance_minor <> n.balance_minor
""",
)

VERSION: Final = Check(
    3,
    "version",
    "The version of each account is the number of its entries, and that of the newest one.",
    "accounts",
    full=f"""
select a.id::text as subject,
    format('%s is at version %s, but has %s entries, the newest of version %s', {_SUBJECT_OF_ACCOUNT}, a.version,
        coalesce(e.entries, 0), coalesce(e.newest, 0)) as told
from wallets.accounts a
left join (select account_id, count(*) as entries, max(version) as newest from wallets.entries group by account_id) e
    on e.account_id = a.id
where a.version <> coalesce(e.entries, 0) or a.version <> coalesce(e.newest, 0)
""",
    recent=f"""
select a.id::text as subject,
    format('%s is at version %s, but its newest entry is of version %s', {_SUBJECT_OF_ACCOUNT}, a.version, n.version)
        as told
{_NEWEST}
where a.version <> n.version
""",
)

# A corrupt amount may be near the end of bigint: sums with it are numeric.
_BROKEN_LINK: Final = """
select e.account_id || '/' || e.version as subject, case
    when e.version <> coalesce(p.version, 0) + 1
        then format('entry %s of account %s has no entry before it', e.version, e.account_id)
    when e.balance_minor <> coalesce(p.balance_minor, 0)::numeric + e.amount_minor
        then format('entry %s of account %s says balance %s, but the balance before it was %s and its amount is %s',
            e.version, e.account_id, e.balance_minor, coalesce(p.balance_minor, 0), e.amount_minor)
    when e.created_at < p.created_at
        then format('entry %s of account %s is of %s, before the entry it follows (%s)',
            e.version, e.account_id, e.created_at, p.created_at)
    end as told
"""

CHAIN: Final = Check(
    3,
    "chain",
    "Each entry follows the one before it: the next version, its balance plus the amount, no earlier time.",
    "entries",
    full=f"""
{_BROKEN_LINK}
from (
    select *, lag(version) over w as p_version, lag(balance_minor) over w as p_balance_minor,
        lag(created_at) over w as p_created_at
    from wallets.entries window w as (partition by account_id order by version)
) e
cross join lateral (select e.p_version as version, e.p_balance_minor as balance_minor, e.p_created_at as created_at) p
""",
    recent=f"""
{_BROKEN_LINK}
from wallets.entries e
left join lateral (
    select l.version, l.balance_minor, l.created_at from wallets.entries l
    where l.account_id = e.account_id and l.version = e.version - 1 limit 1
) p on true
where e.created_at >= $1
""",
)

_HELD: Final = f"""
select i.id::text as subject, case
    when a.id is null then format('open holds of %s are on wallet %s, which is not there', h.total, i.id)
    else format('%s says %s held, its open holds %s (%s)', {_SUBJECT_OF_ACCOUNT}, a.held_minor, coalesce(h.total, 0),
        a.currency)
    end as told
"""

HELD: Final = Check(
    3,
    "held",
    "What is held of each account is the sum of its open holds.",
    "accounts",
    full=f"""
{_HELD}
from wallets.accounts a
full join (
    select account_id, sum(amount_minor) as total from wallets.holds where status = 'open' group by account_id
) h on h.account_id = a.id
cross join lateral (select coalesce(a.id, h.account_id) as id) i
where coalesce(a.held_minor, 0) <> coalesce(h.total, 0)
""",
    recent=f"""
{_HELD}
from (
    select account_id as id from wallets.entries where created_at >= $1
    union select account_id from wallets.holds where status = 'open'
) i
left join wallets.accounts a on a.id = i.id
left join lateral (
    select sum(amount_minor) as total from wallets.holds where account_id = i.id and status = 'open'
) h on true
where coalesce(a.held_minor, 0) <> coalesce(h.total, 0)
""",
)

_OVERDRAWN: Final = """
select a.id::text as subject,
    format('wallet %s has a balance of %s, of which %s are held (%s)', a.id, a.balance_minor, a.held_minor,
        a.currency) as told
from wallets.accounts a
where a.user_id is not null and (a.balance_minor < 0 or a.balance_minor < a.held_minor)
"""

OVERDRAWN: Final = Check(
    4,
    "overdrawn",
    "No person's wallet is below zero, neither in its balance nor in what is available.",
    "accounts",
    full=_OVERDRAWN,
    recent=f"{_OVERDRAWN} and a.id in (select account_id from wallets.entries where created_at >= $1)",
)

# ------------------------------------------------------------------------------------------------ 5

# The functions as the migrations made them, by the SHA-256 of their source: a guard can be gutted under its name.
_GUARDS: Final = {
    "wallets.entries_balance": "2e1a008cfd090c01d5d70aec35f886fddcaebf0437e98593b4af17999ce8b92e",
    "wallets.append_only": "e736ae3dde63bcd3dd8232506f35acc063f31b674993cc7668d18778fb4d65e5",
    "wallets.holds_end_once": "f4f54feed1611c838643aa7803f7359d51586e3fad6d62d65fbe068f8bf1a450",
    "transactions.end_once": "62aa22585afdd5ffba7811c3b9a3d7ba40b0c3e1a494ff8d36178ef1dcc0b7a4",
    "transactions.are_kept": "0bf5aeb92bc3f954bfb03b10e27180315a5c37eb15e108c67f56a812bd5ea72e",
}
# tgtype: 1 for each row, 2 before, 4 insert, 8 delete, 16 update, 32 truncate.
_TRIGGERS: Final = f"""
select w.relation || '/' || w.trigger as subject, format('trigger %s on %s %s', w.trigger, w.relation, case
    when t.oid is null then 'is missing'
    when t.tgenabled not in ('O', 'A') then 'is disabled'
    when t.tgtype <> w.kind or t.tgqual is not null or t.tgattr <> '' or f.name <> w.function
        then 'is not the one that the migrations made'
    else 'calls ' || f.name || ', which is not as the migrations made it'
    end) as told
from (values
    ('wallets.entries', 'entries_balance', 'wallets.entries_balance', 4),
    ('wallets.entries', 'append_only', 'wallets.append_only', 2 + 8 + 16 + 32),
    ('wallets.postings', 'append_only', 'wallets.append_only', 2 + 8 + 16 + 32),
    ('wallets.holds', 'holds_end_once', 'wallets.holds_end_once', 1 + 2 + 8 + 16),
    ('wallets.holds', 'holds_are_kept', 'wallets.append_only', 2 + 32),
    ('transactions.transactions', 'transactions_end_once', 'transactions.end_once', 1 + 2 + 16),
    ('transactions.transactions', 'transactions_are_kept', 'transactions.are_kept', 2 + 8 + 32)
) w (relation, trigger, function, kind)
join (values {", ".join(f"('{name}', '{source}')" for name, source in _GUARDS.items())}) g (function, source)
    on g.function = w.function
left join pg_trigger t on t.tgrelid = to_regclass(w.relation) and t.tgname = w.trigger
left join (
    select p.oid, n.nspname || '.' || p.proname as name,
        encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex') as source,
        l.lanname = 'plpgsql' and not p.prosecdef and p.proconfig is null as plain
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
    where p.prorettype = 'trigger'::regtype
) f on f.oid = t.tgfoid
where t.oid is null or t.tgenabled not in ('O', 'A') or t.tgtype <> w.kind or t.tgqual is not null
    or t.tgattr <> '' or f.name <> w.function or f.source <> g.source or not f.plain
"""

_PRIVILEGES: Final = f"""
select r.rolname || '/' || w.relation || '/' || p.privilege as subject,
    format('role %s may %s rows of %s', r.rolname, p.privilege, w.relation) as told
from (values ('wallets.entries'), ('wallets.postings')) w (relation)
cross join (values ('update'), ('delete'), ('truncate')) p (privilege)
join pg_roles r on r.rolname in {_ROLES}
where case p.privilege
    when 'update' then has_any_column_privilege(r.oid, to_regclass(w.relation), 'update')
    else has_table_privilege(r.oid, to_regclass(w.relation), p.privilege)
    end
"""

TRIGGERS: Final = Check(
    5,
    "trigger",
    "The triggers that keep entries balanced, entries and postings append-only, and holds and transactions final are "
    "in force, and do what they did when they were made.",
    "triggers",
    full=_TRIGGERS,
    recent=_TRIGGERS,
)

PRIVILEGES: Final = Check(
    5,
    "privilege",
    "No service's role may change or remove an entry or a posting.",
    "roles",
    full=_PRIVILEGES,
    recent=_PRIVILEGES,
)

# ------------------------------------------------------------------------------------------------ 6

_KEYS: Final = """
select k.transaction_id::text as subject, case
    when bool_or(t.id is null)
        then format('an idempotency key stands for transaction %s, which is not there', k.transaction_id)
    when bool_or(t.user_id <> k.user_id)
        then format('an idempotency key of somebody else stands for transaction %s', k.transaction_id)
    when count(*) > 1 then format('transaction %s has %s idempotency keys', k.transaction_id, count(*))
    end as told
from transactions.idempotency_keys k
left join transactions.transactions t on t.id = k.transaction_id
{where}
group by k.transaction_id
"""

KEY: Final = Check(
    6,
    "key",
    "Each idempotency key stands for a transaction of the same person, and no transaction has two.",
    "keys",
    full=_KEYS.format(where=""),
    recent=f"""
select o.* from (
    select distinct transaction_id from transactions.idempotency_keys where created_at >= $1
) n cross join lateral ({_KEYS.format(where="where k.transaction_id = n.transaction_id")}) o
""",
)

# ------------------------------------------------------------------------------------------------ 7

# What is new, by the id that a transaction, its posting and its hold have in common.
_NEW_IDS: Final = """
    select id from wallets.postings where created_at >= $1
    union select posting_id from wallets.entries where created_at >= $1
    union select id from transactions.transactions where completed_at >= $1
"""
_LOOK_UP_TRANSACTION: Final = """
left join lateral (select * from transactions.transactions where id = i.id limit 1) t on true
"""

_EFFECT: Final = f"""
select i.id::text as subject, case
    when p.id is null and e.entries > 0
        then format('there are %s entries of posting %s, but no such posting', e.entries, i.id)
    when p.refusal is not null and e.entries > 0
        then format('posting %s was refused (%s), but has %s entries', i.id, p.refusal, e.entries)
    when p.id is not null and p.refusal is null and e.entries is null
        then format('posting %s was applied, but has no entries', i.id)
    when t.id is null and e.entries > 0
        then format('posting %s has moved money, but there is no such transaction', i.id)
    when t.status = 'completed' and p.id is null
        then format('transaction %s (%s) is completed, but has no posting', i.id, t.type)
    when t.status = 'completed' and p.refusal is not null
        then format('transaction %s (%s) is completed, but its posting was refused (%s)', i.id, t.type, p.refusal)
    when t.status = 'failed' and e.entries > 0
        then format('transaction %s (%s) has failed (%s), but its posting has moved money', i.id, t.type,
            t.failure_code)
    when t.status = 'pending' and e.entries > 0 and p.created_at < now() - {IN_FLIGHT}
        then format('transaction %s (%s) is still pending, but its posting has moved money at %s', i.id, t.type,
            p.created_at)
    end as told
"""

EFFECT: Final = Check(
    7,
    "effect",
    "A transaction is completed if and only if its posting is applied and has entries.",
    "transactions",
    full=f"""
{_EFFECT}
from transactions.transactions t
full join wallets.postings p on p.id = t.id
full join (select posting_id, count(*) as entries from wallets.entries group by posting_id) e
    on e.posting_id = coalesce(p.id, t.id)
cross join lateral (select coalesce(p.id, t.id, e.posting_id) as id) i
""",
    recent=f"""
{_EFFECT}
from ({_NEW_IDS}) i
{_LOOK_UP_TRANSACTION}
left join lateral (select * from wallets.postings where id = i.id limit 1) p on true
left join lateral (select nullif(count(*), 0) as entries from wallets.entries where posting_id = i.id) e on true
""",
)

# A payout that comes back may go to suspense, and a dispute takes what is there: their wallets are not compared.
_AMOUNT: Final = """
select t.id::text as subject, case
    when e.moved <> t.amount_minor or e.currency <> t.currency
        then format('transaction %s (%s) is of %s %s, but its posting moved %s %s', t.id, t.type, t.amount_minor,
            t.currency, e.moved, e.currency)
    when e.fee <> t.fee_minor
        then format('transaction %s (%s) has a fee of %s, but its posting took %s (%s)', t.id, t.type, t.fee_minor,
            e.fee, t.currency)
    when e.source <> -t.amount_minor
        then format('transaction %s (%s) is of %s %s, but its posting changed the payer''s wallet by %s', t.id,
            t.type, t.amount_minor, t.currency, e.source)
    when e.target <> t.amount_minor - t.fee_minor
        then format('transaction %s (%s) is of %s %s with a fee of %s, but its posting changed the payee''s wallet '
            'by %s', t.id, t.type, t.amount_minor, t.currency, t.fee_minor, e.target)
    end as told
"""
_MOVED: Final = """
    sum(e.amount_minor) filter (where e.amount_minor > 0) as moved,
    coalesce(sum(e.amount_minor) filter (where a.name = 'fees:' || a.currency), 0) as fee,
    case when t.from_wallet_id is null or t.type in ('dispute', 'payout_return') then -t.amount_minor
        else coalesce(sum(e.amount_minor) filter (where e.account_id = t.from_wallet_id), 0) end as source,
    case when t.to_wallet_id is null or t.type in ('dispute', 'payout_return') then t.amount_minor - t.fee_minor
        else coalesce(sum(e.amount_minor) filter (where e.account_id = t.to_wallet_id), 0) end as target,
    min(a.currency) as currency
"""

AMOUNT: Final = Check(
    7,
    "amount",
    "The posting of a transaction moved its amount, in its currency and with its fee, from and to its wallets.",
    "transactions",
    full=f"""
{_AMOUNT}
from transactions.transactions t
join (
    select t.id, {_MOVED}
    from transactions.transactions t
    join wallets.entries e on e.posting_id = t.id
    left join wallets.accounts a on a.id = e.account_id
    group by t.id
) e on e.id = t.id
""",
    recent=f"""
{_AMOUNT}
from ({_NEW_IDS}) i
{_LOOK_UP_TRANSACTION}
cross join lateral (
    select {_MOVED}
    from wallets.entries e left join wallets.accounts a on a.id = e.account_id
    where e.posting_id = i.id
    having count(*) > 0
) e
""",
)

_GOES_OUT: Final = "(t.type = 'withdrawal' or (t.type = 'refund' and t.original_type = 'deposit'))"
_HOLD: Final = f"""
select i.id::text as subject, case
    when t.status = 'completed' and h.status is distinct from 'captured'
        then format('transaction %s (%s) is completed, but its hold is %s', i.id, t.type,
            coalesce(h.status, 'not there'))
    when t.id is null and h.status = 'captured'
        then format('hold %s of %s on wallet %s was captured, but there is no such withdrawal or refund of a deposit',
            i.id, h.amount_minor, h.account_id)
    when t.id is null and h.status = 'open' and h.created_at < now() - {IN_FLIGHT}
        then format('hold %s of %s on wallet %s is open, but there is no such withdrawal or refund of a deposit',
            i.id, h.amount_minor, h.account_id)
    when t.status = 'failed' and h.status = 'captured'
        then format('transaction %s (%s) has failed (%s), but its hold was captured', i.id, t.type, t.failure_code)
    when t.status = 'failed' and h.status = 'open'
            and greatest(h.created_at, t.completed_at) < now() - {IN_FLIGHT}
        then format('transaction %s (%s) has failed (%s), but its hold is still open', i.id, t.type, t.failure_code)
    when t.status = 'pending' and h.status = 'captured' and h.ended_at < now() - {IN_FLIGHT}
        then format('transaction %s (%s) is still pending, but its hold was captured at %s', i.id, t.type, h.ended_at)
    end as told
"""

HOLD: Final = Check(
    7,
    "hold",
    "Open holds are of pending transactions; captured ones are of completed withdrawals and refunds of deposits.",
    "holds",
    full=f"""
{_HOLD}
from wallets.holds h
full join (select * from transactions.transactions t where {_GOES_OUT}) t on t.id = h.id
cross join lateral (select coalesce(h.id, t.id) as id) i
""",
    recent=f"""
{_HOLD}
from ({_NEW_IDS} union select id from wallets.holds where status = 'open') i
left join lateral (select * from wallets.holds where id = i.id limit 1) h on true
left join lateral (select * from transactions.transactions t where t.id = i.id and {_GOES_OUT} limit 1) t on true
""",
)

_REFUND: Final = """
select i.id::text as subject, case
    when o.id is null then format('refunds, returns or disputes are of transaction %s, which is not there', i.id)
    when r.refunds > o.amount_minor
        then format('transaction %s is of %s, but its refunds are of %s (%s)', i.id, o.amount_minor, r.refunds,
            o.currency)
    when o.refunded_minor <> least(o.amount_minor, coalesce(r.refunds, 0) + coalesce(r.disputes, 0))
        then format('transaction %s says %s given back, its refunds %s, its dispute %s (%s)', i.id, o.refunded_minor,
            coalesce(r.refunds, 0), coalesce(r.disputes, 0), o.currency)
    end as told
"""
_GIVEN_BACK: Final = """
    coalesce(sum(amount_minor) filter (where type = 'refund' and status <> 'failed'), 0) as refunds,
    coalesce(sum(amount_minor) filter (where type = 'dispute'), 0) as disputes
"""

REFUND: Final = Check(
    7,
    "refund",
    "The refunds of a transaction are no more than its amount, and it says what they come to.",
    "transactions",
    full=f"""
{_REFUND}
from (select * from transactions.transactions where amount_minor > 0) o
full join (
    select original_id, {_GIVEN_BACK} from transactions.transactions where original_id is not null
    group by original_id
) r on r.original_id = o.id
cross join lateral (select coalesce(o.id, r.original_id) as id) i
where o.id is null or r.original_id is not null or o.refunded_minor <> 0
""",
    recent=f"""
{_REFUND}
from (
    select original_id as id from transactions.transactions where completed_at >= $1 and original_id is not null
    union select original_id from transactions.transactions where status = 'pending' and original_id is not null
) i
left join lateral (select * from transactions.transactions where id = i.id limit 1) o on true
left join lateral (select {_GIVEN_BACK} from transactions.transactions where original_id = i.id) r on true
""",
)

# ----------------------------------------------------------------------------------------------- 10

_LATE: Final = f"t.completed_at < now() - {PROVIDER_SLACK}"
# The operation that has to have succeeded: a charge, a payout or a refund.
_PROVIDER: Final = f"""
select i.id::text as subject, case
    when t.status = 'completed' and o.status is distinct from 'succeeded' and (o.status = 'declined' or {_LATE})
        then format('%s %s is completed, but its %s is %s', t.type, i.id, t.operation,
            coalesce(o.status, 'not on record'))
    when t.status = 'completed' and o.status = 'succeeded'
            and (o.amount_minor, o.currency) is distinct from (t.amount_minor, t.currency)
        then format('%s %s is of %s %s, but its %s of %s %s', t.type, i.id, t.amount_minor, t.currency, t.operation,
            o.amount_minor, o.currency)
    when t.status = 'completed' and t.type = 'deposit' and b.status = 'succeeded'
        then format('deposit %s is completed, but its charge was given back', i.id)
    when t.status = 'failed' and t.type = 'deposit' and o.status = 'succeeded'
            and o.reversal is null and b.status is distinct from 'succeeded'
            and (b.status is distinct from 'pending' or {_LATE})
        then format('deposit %s has failed (%s), but its charge succeeded and its refund is %s', i.id, t.failure_code,
            coalesce(b.status, 'not on record'))
    when t.status = 'failed' and t.type <> 'deposit' and o.status = 'succeeded'
        then format('%s %s has failed (%s), but its %s succeeded', t.type, i.id, t.failure_code, t.operation)
    end as told
"""
_OPERATION: Final = f"""
    select t.*,
        case t.type when 'deposit' then 'charge' when 'withdrawal' then 'payout' else 'refund' end as operation
    from transactions.transactions t
    where t.status <> 'pending' and (t.type = 'deposit' or {_GOES_OUT})
"""

PROVIDER: Final = Check(
    10,
    "provider",
    "Completed deposits, withdrawals and their refunds succeeded at the provider; what failed left nothing there.",
    "transactions",
    full=f"""
{_PROVIDER}
from ({_OPERATION}) t
left join payments.payments o on o.transaction_id = t.id and o.kind = t.operation
left join payments.payments b on b.transaction_id = t.id and b.kind = 'refund' and t.type = 'deposit'
cross join lateral (select t.id) i
union all
select p.transaction_id::text,
    format('%s %s of %s %s at %s (%s) is of transaction %s, which is not there', p.kind, p.id, p.amount_minor,
        p.currency, p.provider, p.status, p.transaction_id)
from payments.payments p left join transactions.transactions t on t.id = p.transaction_id
where t.id is null
""",
    recent=f"""
{_PROVIDER}
from ({_OPERATION} and t.completed_at >= $1) t
left join lateral (
    select * from payments.payments where transaction_id = t.id and kind = t.operation limit 1
) o on true
left join lateral (
    select * from payments.payments where transaction_id = t.id and kind = 'refund' and t.type = 'deposit' limit 1
) b on true
cross join lateral (select t.id) i
""",
)

REVERSAL: Final = Check(
    10,
    "reversal",
    "What a provider has taken back or returned is a dispute or a return here, of the same amount, and nothing else.",
    "payments",
    full=f"""
select coalesce(r.original_id, p.transaction_id)::text as subject, case
    when p.id is null
        then format('%s %s is of transaction %s, of which the provider knows none', replace(r.type, '_', ' '), r.id,
            r.original_id)
    when r.id is not null and (r.amount_minor, r.currency) is distinct from (p.reversed_minor, p.currency)
        then format('%s %s is of %s %s, but the provider says %s %s', replace(r.type, '_', ' '), r.id, r.amount_minor,
            r.currency, p.reversed_minor, p.currency)
    when r.status = 'completed' and p.original_status <> 'completed'
        then format('%s %s is completed, but transaction %s, which it undoes, is %s', replace(r.type, '_', ' '), r.id,
            r.original_id, p.original_status)
    when r.status is distinct from 'completed' and p.original_status = 'completed'
            and p.reversed_at < now() - {PROVIDER_SLACK}
        then format('the %s of transaction %s was %s at %s, which is %s here', p.kind, p.transaction_id, p.reversal,
            p.reversed_at, coalesce(r.status, 'unknown'))
    end as told
from (select * from transactions.transactions where type in ('dispute', 'payout_return')) r
full join (
    select p.*, t.status as original_status from payments.payments p
    join transactions.transactions t on t.id = p.transaction_id
    where p.reversal is not null
) p on p.transaction_id = r.original_id
    and r.type = case p.reversal when 'disputed' then 'dispute' else 'payout_return' end
""",
)

CHECKS: Final = (
    ZERO_SUM,
    POSTING,
    BALANCE,
    VERSION,
    CHAIN,
    HELD,
    OVERDRAWN,
    TRIGGERS,
    PRIVILEGES,
    KEY,
    EFFECT,
    AMOUNT,
    HOLD,
    REFUND,
    PROVIDER,
    REVERSAL,
)


def bounded(sql: str, limit: int) -> str:
    """The statement for at most `limit` rows that break the invariant, with the number of all of them in `total`."""
    return (
        f"select subject, told, count(*) over () as total from ({sql}) found "
        f"where told is not null order by subject limit {limit:d}"
    )


# ------------------------------------------------------------------------------------------ 8 and 9

# What has to have been told, by schema: the aggregate, how many events it has had, the type of the last one where
# that is known, and whether it has been at rest for a while.
_DUE: Final = {
    "wallets": f"""
select coalesce(p.id, h.id)::text as subject,
    case when h.id is null or (h.status = 'open' and p.id is null) then 1 else 2 end as last,
    case when p.id is not null or h.status = 'captured' then 'wallets.posted.v1'
        when h.status = 'open' then 'wallets.held.v1' else 'wallets.released.v1' end as type,
    greatest(p.created_at, h.created_at, h.ended_at) < now() - {IN_FLIGHT} as settled
from (select * from wallets.postings where refusal is null {{only}}) p
full join (select * from wallets.holds where account_id is not null {{only}}) h on h.id = p.id
union all
select id::text, event_sequence, null, created_at < now() - {IN_FLIGHT}
from wallets.accounts where user_id is not null {{only}}
""",
    "transactions": f"""
select id::text as subject, event_sequence as last,
    case status when 'completed' then 'transactions.completed.v1' when 'failed' then 'transactions.failed.v1' end
        as type,
    coalesce(completed_at, created_at) < now() - {IN_FLIGHT} as settled
from transactions.transactions where (event_sequence > 0 or status <> 'pending') {{only}}
""",
    # A charge that was cancelled before it was made has no event.
    "payments": f"""
select id::text as subject, event_sequence::bigint as last,
    case when reversal is null then 'payments.' || status || '.v1' else 'payments.' || reversal || '.v1' end as type,
    updated_at < now() - {IN_FLIGHT} as settled
from payments.payments where event_sequence > 0 {{only}}
""",
}
DUE: Final = {schema: sql.format(only="") for schema, sql in _DUE.items()}
DUE_OF: Final = {schema: sql.format(only="and id = any($1::uuid[])") for schema, sql in _DUE.items()}
OUTBOX: Final = """
select event_id::text, key, payload::json ->> 'type', (payload::json ->> 'sequence')::bigint from {schema}.outbox
"""
