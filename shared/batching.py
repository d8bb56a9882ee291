"""Batching without waiting: what arrives while batches are under way is the next batch."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from shared.errors import OutcomeUnknownError, UnavailableError
from shared.http.context import enter_context

CROWD: Final = 48  # items in a batch: so many arrive during the one before
CROWD_SECONDS: Final = 0.3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Call(Generic[Item, Result]):
    """What one caller submitted, and where its outcomes go.

    `begun` of its items have been taken into batches, the others have this `weight`. `outcomes` are those so far;
    `refused` is that of all items that no batch will take any more.
    """

    items: tuple[Item, ...]
    weight: int
    answer: asyncio.Future[list[Result | Exception]]
    begun: int = 0
    running: bool = False
    outcomes: list[Result | Exception] = field(default_factory=list)
    refused: Exception | None = None

    def learn(self, outcomes: list[Result | Exception]) -> None:
        """What became of the next items; the last ones answer the call."""
        self.running = False
        self.outcomes += outcomes
        if self.refused is not None:
            self.outcomes += [self.refused] * (len(self.items) - len(self.outcomes))
        if len(self.outcomes) == len(self.items) and not self.answer.done():  # its caller may have gone
            self.answer.set_result(self.outcomes)


_Part = tuple[_Call[Item, Result], tuple[Item, ...]]  # what a batch has of a call


class Batcher(Generic[Item, Result]):
    """Carries out the items of concurrent calls together: a lone call starts at once, a thousand share few batches.

    `run` carries out a batch: it answers one outcome an item, in their order, or raises, and then has done nothing
    (or knows what it did when the same items come again). It runs in a request context of its own, with a new
    deadline. Of an exception that it raises the culprit is sought: the items are run again in halves, one after the
    other, until it is alone and has the exception as its outcome. `concerns_all` are the exceptions that are no
    item's fault: each item of the run that raised one has it as its outcome, and nothing is run again.

    A batch is as many whole calls, in the order of their arrival, as weigh at most `max_size` together. A call that
    weighs more is several batches, one after the other; an item that weighs more is a batch alone. At most
    `max_in_flight` batches are under way, and calls that weigh `max_waiting` together wait, which is also the most
    that one call may weigh. Weights are in the unit of `weigh`, without which an item weighs 1.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_size: int = 256,
        max_in_flight: int = 1,
        max_waiting: int = 10_000,
        weigh: Callable[[Item], int] | None = None,
        concerns_all: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        if min(max_size, max_in_flight, max_waiting) < 1:
            raise ValueError("a limit below 1 lets nothing through")
        self._run = run
        self._max_size = max_size
        self._max_in_flight = max_in_flight
        self._max_waiting = max_waiting
        self._weigh = weigh
        self._concerns_all = concerns_all
        self._waiting: deque[_Call[Item, Result]] = deque()
        self._waiting_weight = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._crowded_at = -math.inf
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether there is a crowd: a batch of the last moments had `CROWD` items or more."""
        return time.monotonic() - self._crowded_at < CROWD_SECONDS

    async def submit(self, items: Sequence[Item]) -> list[Result | Exception]:
        """One outcome an item, in their order; an item's exception is its outcome and never raised.

        A caller that is cancelled only stops listening: what it submitted is carried out. Raises UnavailableError,
        with nothing submitted, when too much waits already and after `close()`.
        """
        if not items:
            return []
        own = tuple(items)  # the caller may go away and change its list
        weight = len(own) if self._weigh is None else sum(map(self._weigh, own))
        if self._closed or self._waiting_weight + weight > self._max_waiting:
            raise UnavailableError
        call: _Call[Item, Result] = _Call(own, weight, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._waiting_weight += weight
        self._start()
        return await call.answer

    async def close(self) -> None:
        """Refuse new calls, and return when everything submitted has been carried out; `run` bounds how long."""
        self._closed = True
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _start(self) -> None:
        """Have a batch begin, if something waits and there is room, after the callers whose turn it is."""
        if self._waiting and len(self._in_flight) < self._max_in_flight and not self._waiting[0].running:
            # An empty context: nothing of the caller who happened to come first.
            task = asyncio.get_running_loop().create_task(self._carry_out(), context=Context())
            self._in_flight.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        broken_off = task.cancelling() or (not task.cancelled() and task.exception() is not None)
        if broken_off:  # the event loop is ending, and a batch begun now would be left behind
            self._give_up()
        else:
            self._start()

    async def _carry_out(self) -> None:
        """Run the next batch and answer its calls, whatever happens."""
        parts = self._take()
        if not parts:  # they went with the batch before
            return
        self._start()  # what did not fit may have a place of its own
        batch = tuple(item for _, items in parts for item in items)
        if len(batch) >= CROWD:
            self._crowded_at = time.monotonic()
        outcomes: list[Result | Exception] | Exception = OutcomeUnknownError()
        try:
            outcomes = await self._outcomes(batch)
        finally:
            _answer(parts, outcomes)

    def _take(self) -> list[_Part[Item, Result]]:
        """The next batch: whole calls as far as they fit, or a part of one that is too large for any batch."""
        parts: list[_Part[Item, Result]] = []
        room = self._max_size
        while self._waiting and self._waiting[0].weight <= room and not self._waiting[0].running:
            call = self._waiting.popleft()
            room -= call.weight
            parts.append((call, call.items[call.begun :] if call.begun else call.items))
        self._waiting_weight -= self._max_size - room
        if not parts and self._waiting and not self._waiting[0].running:
            parts.append(self._take_a_part(self._waiting[0]))
        return parts

    def _take_a_part(self, call: _Call[Item, Result]) -> _Part[Item, Result]:
        """As many of its next items as fit, and one in any case; the others stay where they are."""
        weight, end = 0, call.begun
        for item in call.items[call.begun :]:
            heavier = weight + (1 if self._weigh is None else self._weigh(item))
            if heavier > self._max_size and end > call.begun:
                break
            weight, end = heavier, end + 1
        items = call.items[call.begun : end]
        call.begun, call.weight, call.running = end, call.weight - weight, True
        self._waiting_weight -= weight
        if end == len(call.items):
            self._waiting.popleft()
        return call, items

    def _give_up(self) -> None:
        """Refuse what waits."""
        for call in self._waiting:
            call.refused = UnavailableError()
            if not call.running:  # else when its part of another batch has ended
                call.learn([])
        self._waiting.clear()
        self._waiting_weight = 0

    async def _outcomes(self, items: tuple[Item, ...]) -> list[Result | Exception]:
        enter_context()  # anew for each part: what a stuck item used up is not its neighbours' time
        try:
            results = await self._run(items)
        except self._concerns_all as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - an item may be refused in any way
            if len(items) == 1:
                return [error]
        else:
            if isinstance(results, Sequence) and len(results) == len(items):
                return list(results)
            return [RuntimeError("a batch was not answered with one outcome an item")] * len(items)
        half = len(items) // 2
        return [*await self._outcomes(items[:half]), *await self._outcomes(items[half:])]


def _answer(parts: Sequence[_Part[Item, Result]], outcomes: list[Result | Exception] | Exception) -> None:
    """Give each call its part of the outcomes, or each of its items the same exception."""
    end = 0
    for call, items in parts:
        begin, end = end, end + len(items)
        call.learn([outcomes] * len(items) if isinstance(outcomes, Exception) else outcomes[begin:end])
