"""pgbench: what PostgreSQL itself does with two updates and two inserts in a transaction, by the simplest tables."""

import os
import subprocess
import tempfile
from pathlib import Path

from infrastructure.embedded import install
from infrastructure.embedded.errors import EmbeddedError
from tests.load.arena import Arena, connect
from tests.load.measuring import Round

TABLES = """
create schema floor;
create table floor.accounts (id integer primary key, balance_minor bigint not null);
create table floor.entries (
    id bigint generated always as identity primary key, account_id integer not null, amount_minor bigint not null);
insert into floor.accounts select n, 1000000000 from generate_series(0, {wallets}) as n;
vacuum analyze floor.accounts;
"""

# Rows are locked in the order of their ids; wallet 0 is the merchant.
TRANSFER = r"""
\set one random(1, :wallets)
\set other {other}
\set first least(:one, :other)
\set second greatest(:one, :other)
begin;
update floor.accounts set balance_minor = balance_minor - 1 where id = :first;
update floor.accounts set balance_minor = balance_minor + 1 where id = :second;
insert into floor.entries (account_id, amount_minor) values (:first, -1);
insert into floor.entries (account_id, amount_minor) values (:second, 1);
commit;
"""


async def lay_floor(arena: Arena) -> None:
    """Make pgbench's tables."""
    connection = await connect(arena.settings)
    try:
        for statement in TABLES.format(wallets=len(arena.wallets)).split(";")[:-1]:
            await connection.execute(statement)
    finally:
        await connection.close()


def run_pgbench(arena: Arena, connections: int, seconds: float, *, hot: bool) -> Round:
    """One round of pgbench; it measures whole seconds."""
    program = install.ensure().postgres_package / "pginstall" / "bin" / "pgbench"
    with tempfile.TemporaryDirectory(prefix="payment-system-pgbench-") as folder:
        script = Path(folder, "transfer.sql")
        script.write_text(TRANSFER.format(other="0" if hot else "random(1, :wallets)"))
        done = subprocess.run(
            [
                *(program, "--no-vacuum", "--protocol=prepared", f"--file={script}"),
                *(f"--client={connections}", "--jobs=1", f"--time={max(1, round(seconds))}"),
                *("--log", f"--log-prefix={folder}/log", f"--define=wallets={len(arena.wallets)}"),
            ],
            env=os.environ | _login(arena),
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
        if done.returncode != 0:
            raise EmbeddedError(f"pgbench failed: {done.stderr.strip().splitlines()[-1:]}")
        # Its log: client, number, latency in us, script, end as seconds and us since the epoch.
        lines = [line.split() for log in Path(folder).glob("log*") for line in log.read_text().splitlines()]
    ends = [int(line[4]) + int(line[5]) / 1_000_000 for line in lines]
    begun = min(end - int(line[2]) / 1_000_000 for end, line in zip(ends, lines, strict=True))
    return Round(len(lines), max(ends) - begun, sorted(int(line[2]) / 1000 for line in lines))


def _login(arena: Arena) -> dict[str, str]:
    names = {"HOST": "PGHOST", "PORT": "PGPORT", "USER": "PGUSER", "PASSWORD": "PGPASSWORD", "DB": "PGDATABASE"}
    return {name: arena.variables[f"POSTGRES_{end}"] for end, name in names.items()}
