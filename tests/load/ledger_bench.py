"""How fast the ledger is, beside the usual way and beside what PostgreSQL itself does: see docs/benchmarks.md.

python tests/load/ledger_bench.py           # wallet-service's ledger, naive ledgers, pgbench
python tests/load/ledger_bench.py --http    # wallet-service as it runs, over HTTP, and its memory
"""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "services" / "wallet-service")]

from infrastructure.embedded.errors import EmbeddedError  # noqa: E402 - found by the path above
from tests.load import comparison, over_http  # noqa: E402 - same


def main() -> int:
    """Measure and print; 0 when the ledger is right afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in (
        ("--seconds", 3.0, "length of one round"),
        ("--rounds", 3, "rounds of each contender, of which the best one counts"),
        ("--clients", 512, "concurrent callers, each of which waits for its answer"),
        ("--wallets", 10_000, "funded wallets"),
        ("--connections", 16, "PostgreSQL connections of the others; with --http, those to the service"),
        ("--units", 64, "with --http: transfers in one request"),
        ("--gc-threshold", 0, "objects made between two runs of Python's collector; 0 leaves its default"),
    ):
        parser.add_argument(name, type=type(default), default=default, help=f"{meaning} ({default})")
    parser.add_argument("--only", default="", help="comma-separated contenders: set-based, naive, orm, pgbench")
    parser.add_argument("--relay", action="store_true", help="publish the events meanwhile; --http always does")
    parser.add_argument("--http", action="store_true", help="measure wallet-service's own process instead")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        return over_http.run(options) if options.http else comparison.run(options)
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
