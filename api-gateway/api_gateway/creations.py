"""The hot path: creations of transactions that arrive while calls are under way go as the next call, together."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from api_gateway.breaker import Breaker
from api_gateway.failures import FAILURES, broken_off, problem_of
from api_gateway.pool import Pool
from shared.auth import ServiceTokens
from shared.batching import Batcher
from shared.errors import AppError, UnavailableError
from shared.http import bundle
from shared.http.bundle import Parcel, Reply
from shared.http.context import DEADLINE_HEADER, REQUEST_ID_HEADER, TRACEPARENT_HEADER, current_context

SERVICE: Final = "transaction-service"
PATH: Final = "/internal/transactions"
MAX_CALLS: Final = 4
MAX_WEIGHT: Final = 256  # of one call, in which a request weighs 1, and 1 more for each 2 KB of it
MAX_WAITING: Final = 2048
WEIGHED_BYTES: Final = 2048
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
MIN_SECONDS: Final = 1.0  # a request that has less time left is not begun any more


class Creation(NamedTuple):
    """A request to create a transaction; its time is over at `ends_at`, an instant of the event loop's clock."""

    parcel: Parcel
    ends_at: float


class Creations:
    """Has transaction-service answer creations, many in one call; nobody waits for company."""

    def __init__(self, pool: Pool, breaker: Breaker, tokens: ServiceTokens) -> None:
        self._pool = pool
        self._breaker = breaker
        self._tokens = tokens
        self._batcher: Batcher[Creation, Reply | None] = Batcher(
            self._call,
            max_size=MAX_WEIGHT,
            max_in_flight=MAX_CALLS,
            max_waiting=MAX_WAITING,
            weigh=_weight,
            concerns_all=(AppError,),
        )

    async def send(self, creation: Creation) -> Reply | None:
        """The answer to one request; None where it has to be sent by itself.

        Raises AppError: 503 when too many wait or nothing was sent, 502 and 504 when the outcome is unknown. It does
        so in time: no call outlasts any of its requests, and those that come first are sent first.
        """
        [outcome] = await self._batcher.submit([creation])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Finish the calls that were begun."""
        await self._batcher.close()

    async def _call(self, creations: Sequence[Creation]) -> list[Reply | Exception | None]:
        """One call for those that have time left; the others hear that nothing was done."""
        now = asyncio.get_running_loop().time()
        timely = [creation for creation in creations if creation.ends_at - now >= MIN_SECONDS]
        if not timely:
            return [UnavailableError() for _ in creations]
        replies = iter(await self._replies(timely, min(creation.ends_at for creation in timely) - now))
        return [
            next(replies) if creation.ends_at - now >= MIN_SECONDS else UnavailableError() for creation in creations
        ]

    async def _replies(self, creations: Sequence[Creation], timeout_seconds: float) -> bundle.Replies:
        trace = current_context().trace
        headers = {
            "Content-Type": bundle.MEDIA_TYPE,
            "Authorization": f"Bearer {self._tokens.issue(SERVICE)}",
            REQUEST_ID_HEADER: trace.request_id,
            TRACEPARENT_HEADER: trace.traceparent,
            DEADLINE_HEADER: str(int(timeout_seconds * 1000)),
        }
        body = bundle.write_parcels([creation.parcel for creation in creations])
        attempt = self._breaker.begin()
        try:
            with await self._pool.send(SERVICE, "POST", PATH, headers, body, seconds=timeout_seconds) as response:
                self._breaker.succeeded(attempt)
                answer = await response.whole(MAX_ANSWER_BYTES)
        except FAILURES as failure:
            self._breaker.failed(attempt)
            raise problem_of(failure) from failure
        try:
            replies = bundle.read_replies(answer) if response.status == 200 else []
        except bundle.DecodeError:
            replies = []
        if len(replies) != len(creations):
            raise broken_off()
        return replies


def _weight(creation: Creation) -> int:
    parcel = creation.parcel
    size = len(parcel.body) + len(parcel.authorization) + len(parcel.idempotency_key or "") + len(parcel.content_type)
    return 1 + size // WEIGHED_BYTES
