"""What a rate limit costs a request, on a Valkey of the benchmark's own.

python tests/load/limiter_bench.py
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "api-gateway")]

import uvloop  # noqa: E402 - found by the path above
from prometheus_client import CollectorRegistry  # noqa: E402 - same

from api_gateway.addresses import ClientAddresses, parse_networks  # noqa: E402 - same
from api_gateway.admission import Admission  # noqa: E402 - same
from api_gateway.breaker import breakers  # noqa: E402 - same
from api_gateway.limits import MAX_KEYS, Limit, RateLimiter  # noqa: E402 - same
from api_gateway.settings import GatewaySettings  # noqa: E402 - same
from shared.redis import connect  # noqa: E402 - same
from shared.testing.valkey import OwnValkey, own_valkey  # noqa: E402 - same
from tests.load.measuring import machine, peak_rss_bytes  # noqa: E402 - same

BUSY = Limit("busy", 10_000_000)
LONE = Limit("lone", 10)
OUTAGE_SECONDS = 4.0
WAITED_SECONDS = 0.04


async def main(requests: int) -> None:
    """Measure and print."""
    print(machine())
    print(f"{'':58} {'each':>12} {'CPU each':>12}")
    async with own_valkey() as valkey:
        settings = GatewaySettings(
            _env_file=None,
            redis_host="127.0.0.1",
            redis_port=valkey.port,
            rate_limit_per_minute=BUSY.per_minute,
            redis_key_prefix="bench:",
        )
        redis = connect(settings)
        limiter = RateLimiter(redis, settings.redis_key_prefix, CollectorRegistry())
        await measure_in_hand(limiter, requests)
        await measure_admission(limiter, settings, requests)
        await measure_asking(limiter, requests // 50)
        measure_memory(RateLimiter(redis, "memory:", CollectorRegistry()))
        await measure_outage(limiter, valkey)
        await limiter.close()
        await redis.aclose()
    measure_breaker(requests)


async def measure_in_hand(limiter: RateLimiter, requests: int) -> None:
    """Requests of one busy key, most of which Redis hears of later; and a flood that is refused."""
    await repeat("take: busy key, leases included", 2 * requests, lambda _: limiter.take(BUSY, "192.0.2.1"))
    report("take_now: lot in hand", *timed(requests // 4, lambda: limiter.take_now(BUSY, "192.0.2.1")))
    while (await limiter.take(LONE, "192.0.2.1")).allowed:
        pass
    report("take_now: refused", *timed(requests, lambda: limiter.take_now(LONE, "192.0.2.1")))


async def measure_admission(limiter: RateLimiter, settings: GatewaySettings, requests: int) -> None:
    """Everything that a forwarded request pays: its address, which limits, and their verdict."""
    addresses = ClientAddresses(trusted=parse_networks("10.0.0.0/8"))
    admission = Admission(limiter, addresses, settings)

    async def admit(_: int) -> object:
        return await admission.admit("GET", b"/wallets", addresses.client_address("203.0.113.9"))

    async def admit_behind_a_proxy(_: int) -> object:
        address = addresses.client_address("10.0.0.7", [b"198.51.100.1, 203.0.113.9"])
        return await admission.admit("GET", b"/wallets", address)

    await repeat("admit: address, limits, verdict, leases included", requests, admit)
    await repeat("admit: the same behind a proxy", requests, admit_behind_a_proxy)


async def measure_asking(limiter: RateLimiter, requests: int) -> None:
    """Requests of keys that are all new, so that each one has to be asked about."""
    keys = iter(f"{n >> 8}.{n & 255}" for n in range(10_000_000))
    await repeat("take: asked, one at a time", requests, lambda _: limiter.take(LONE, next(keys)))
    for at_once in (16, 64):

        async def several(_: int, at_once: int = at_once) -> None:
            await asyncio.gather(*(limiter.take(LONE, next(keys)) for _ in range(at_once)))

        await repeat(f"take: asked, {at_once} at a time", requests // at_once, several, each=at_once)


async def measure_outage(limiter: RateLimiter, valkey: OwnValkey) -> None:
    """Requests while Valkey is frozen; one a second waits for it."""
    valkey.freeze()
    seconds: list[float] = []
    ends_at = time.perf_counter() + OUTAGE_SECONDS
    while (begun := time.perf_counter()) < ends_at:
        await limiter.take(BUSY, "192.0.2.9")
        seconds.append(time.perf_counter() - begun)
    valkey.thaw()
    seconds.sort()
    name = f"take: Redis frozen for {OUTAGE_SECONDS:.0f} s, median and longest"
    print(f"{name:58} {seconds[len(seconds) // 2] * 1e6:>9.2f} us {seconds[-1] * 1e3:>9.2f} ms")
    waited = sum(1 for each in seconds if each > WAITED_SECONDS)
    print(f"{f'    of {len(seconds):,} those that waited for it':58} {waited:>9}")


def measure_memory(limiter: RateLimiter) -> None:
    """As many keys as are ever remembered, each with a use; while Redis is out, so that none is asked about."""
    before = peak_rss_bytes()
    limiter._out_until = time.monotonic() + 60
    for n in range(MAX_KEYS):
        limiter.take_now(LONE, f"2001:db8:{n:x}::/64")
    print(f"{f'memory of {MAX_KEYS:,} keys':58} {(peak_rss_bytes() - before) / 1_048_576:>9.1f} MB")


def measure_breaker(requests: int) -> None:
    """A call through a closed breaker."""
    breaker = breakers(["wallet-service"], CollectorRegistry())["wallet-service"]
    report("breaker: closed, a call's begin and end", *timed(requests, lambda: breaker.succeeded(breaker.begin())))


def timed(times: int, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds that `work` takes each time."""
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - begun) / times, (time.process_time() - cpu) / times


async def repeat(name: str, times: int, work: Callable[[int], Awaitable[object]], each: int = 1) -> None:
    """Do it and report what one of `each` took."""
    begun, cpu = time.perf_counter(), time.process_time()
    for n in range(times):
        await work(n)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    report(name, seconds / times / each, cpu_seconds / times / each)


def report(name: str, seconds: float, cpu_seconds: float) -> None:
    """Print a line."""
    print(f"{name:58} {seconds * 1e6:>9.2f} us {cpu_seconds * 1e6:>9.2f} us")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="requests of a line (100000)")
    logging.disable(logging.WARNING)
    uvloop.run(main(parser.parse_args().requests))
