"""Batches form by themselves, and what one caller or item does is nothing to the others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.batching import CROWD, CROWD_SECONDS, Batcher
from shared.database import CommitUnknownError, with_retries
from shared.errors import OutcomeUnknownError, UnavailableError
from shared.http.context import RequestContext, current_context, enter_context

LIMIT_SECONDS = 5.0

Answer = TypeVar("Answer")


class RefusedError(Exception):
    """An item that the whole batch is refused for."""


class Work:
    """A `run` that stops at a gate, and remembers its batches; it answers each item in capitals."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.poison: dict[str, Exception] = {}
        self._begun = asyncio.Condition()

    async def __call__(self, items: Sequence[str]) -> list[str | Exception]:
        async with self._begun:
            self.batches.append(list(items))
            self._begun.notify_all()
        await self.gate.wait()
        for item in items:
            if item in self.poison:
                raise self.poison[item]
        return [item.upper() for item in items]

    async def begun(self, count: int) -> None:
        """Returns once so many batches have begun."""
        async with asyncio.timeout(LIMIT_SECONDS), self._begun:
            await self._begun.wait_for(lambda: len(self.batches) >= count)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture(autouse=True)
async def clean_loop() -> AsyncIterator[None]:
    """Fails a test that leaves a task behind or an exception that nobody looked at."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, object]] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    yield
    loop.set_exception_handler(None)
    assert complaints == []
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


async def busy(batcher: Batcher[str, str], work: Work, *items: str) -> "asyncio.Task[list[str | Exception]]":
    """A call that is under way, and stays so until the gate opens."""
    work.gate.clear()
    begun = len(work.batches)
    call = asyncio.create_task(batcher.submit(items))
    await work.begun(begun + 1)
    return call


async def queued(batcher: Batcher[str, str], *calls: list[str]) -> "list[asyncio.Task[list[str | Exception]]]":
    """Calls that have been submitted, one after the other."""
    tasks = [asyncio.create_task(batcher.submit(items)) for items in calls]
    await asyncio.sleep(0)  # each task runs up to its wait
    return tasks


async def answers(*calls: Awaitable[Answer]) -> list[Answer]:
    """What the calls are answered, within a limit."""
    async with asyncio.timeout(LIMIT_SECONDS):
        return await asyncio.gather(*calls)


async def together(batcher: Batcher[str, str], *calls: list[str]) -> list[list[str | Exception]]:
    """The outcomes of calls that are made at the same time."""
    return await answers(*(batcher.submit(items) for items in calls))


async def refused(batcher: Batcher[str, str], items: list[str]) -> None:
    """Fails unless the call is refused."""
    async with asyncio.timeout(LIMIT_SECONDS):
        with pytest.raises(UnavailableError):
            await batcher.submit(items)


async def batch_tasks(work: Work, act: Callable[[], object]) -> "set[asyncio.Task[object]]":
    """The tasks that come into being until the next batch has begun."""
    before, begun = asyncio.all_tasks(), len(work.batches)
    act()
    await work.begun(begun + 1)
    return asyncio.all_tasks() - before


# ------------------------------------------------------------------------------------ which batches form


async def test_a_lone_call_starts_within_one_turn_of_the_loop_and_is_answered_in_order(work: Work) -> None:
    batcher = Batcher(work)

    call = asyncio.create_task(batcher.submit(["a", "b", "c"]))
    await asyncio.sleep(0)  # submits
    await asyncio.sleep(0)  # begins

    assert work.batches == [["a", "b", "c"]]
    assert await answers(call) == [["A", "B", "C"]]


async def test_an_empty_call_is_answered_without_a_batch_even_after_close(work: Work) -> None:
    batcher = Batcher(work)
    await batcher.close()

    assert await together(batcher, []) == [[]]
    assert work.batches == []


async def test_calls_of_the_same_turn_are_one_batch_and_each_gets_its_own_part(work: Work) -> None:
    batcher = Batcher(work)

    outcomes = await together(batcher, ["a"], ["b", "c"], ["d"])

    assert work.batches == [["a", "b", "c", "d"]]
    assert outcomes == [["A"], ["B", "C"], ["D"]]


async def test_what_arrives_while_a_batch_is_under_way_is_the_next_one(work: Work) -> None:
    batcher = Batcher(work)
    calls = [await busy(batcher, work, "a")]
    calls += await queued(batcher, ["b"])
    calls += await queued(batcher, ["c", "d"])
    assert work.batches == [["a"]]

    work.gate.set()

    assert await answers(*calls) == [["A"], ["B"], ["C", "D"]]
    assert work.batches == [["a"], ["b", "c", "d"]]


async def test_calls_that_fit_are_not_split_and_none_is_overtaken(work: Work) -> None:
    batcher = Batcher(work, max_size=3)

    outcomes = await together(batcher, *map(list, ("ab", "cd", "e", "fghi", "j")))

    assert work.batches == [["a", "b"], ["c", "d", "e"], ["f", "g", "h"], ["i", "j"]]
    assert outcomes == [["A", "B"], ["C", "D"], ["E"], ["F", "G", "H", "I"], ["J"]]


async def test_a_call_that_is_too_large_is_several_batches_one_after_the_other(work: Work) -> None:
    batcher = Batcher(work, max_size=2, max_in_flight=3)
    calls = [await busy(batcher, work, *"abcde")]
    calls += await queued(batcher, ["f"], ["g"])
    await asyncio.sleep(0)
    assert work.batches == [["a", "b"]]

    work.gate.set()

    assert await answers(*calls) == [["A", "B", "C", "D", "E"], ["F"], ["G"]]
    assert work.batches == [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]


async def test_a_large_call_is_split_by_what_its_items_weigh_and_a_heavy_item_is_alone(work: Work) -> None:
    batcher = Batcher(work, max_size=4, weigh=len)

    outcomes = await together(batcher, ["aaa", "b", "cc", "ddddd", "e", "f"], ["ggggg"], ["h"])

    assert work.batches == [["aaa", "b"], ["cc"], ["ddddd"], ["e", "f"], ["ggggg"], ["h"]]
    assert outcomes == [["AAA", "B", "CC", "DDDDD", "E", "F"], ["GGGGG"], ["H"]]


async def test_what_goes_wrong_with_a_part_of_a_call_is_the_outcome_of_that_part(work: Work) -> None:
    batcher = Batcher(work, max_size=2)
    lost, bad = ConnectionError(), RefusedError()
    work.poison = {"c": lost, "f": bad}

    assert await together(batcher, list("abcdefg")) == [["A", "B", lost, lost, "E", bad, "G"]]


async def test_the_parts_of_a_call_that_wait_are_counted_and_its_caller_may_go(work: Work) -> None:
    batcher = Batcher(work, max_size=2, max_waiting=5)
    call = await busy(batcher, work, *"abcde")
    others = await queued(batcher, ["f", "g"])
    await refused(batcher, ["h"])

    call.cancel()
    work.gate.set()
    await answers(*others, batcher.close())

    assert work.batches == [["a", "b"], ["c", "d"], ["e"], ["f", "g"]]


async def test_a_batch_is_measured_by_what_its_items_weigh(work: Work) -> None:
    batcher = Batcher(work, max_size=4, weigh=len)

    await together(batcher, *([item] for item in ("aaa", "b", "cc", "ddd", "eeeee", "f")))

    assert work.batches == [["aaa", "b"], ["cc"], ["ddd"], ["eeeee"], ["f"]]


async def test_no_more_batches_are_under_way_than_allowed(work: Work) -> None:
    batcher = Batcher(work, max_in_flight=2)
    calls = [await busy(batcher, work, "a"), await busy(batcher, work, "b")]
    calls += await queued(batcher, ["c"], ["d"])
    await asyncio.sleep(0)
    assert work.batches == [["a"], ["b"]]

    work.gate.set()

    assert await answers(*calls) == [["A"], ["B"], ["C"], ["D"]]
    assert work.batches == [["a"], ["b"], ["c", "d"]]


async def test_what_does_not_fit_takes_the_next_free_place_at_once(work: Work) -> None:
    batcher = Batcher(work, max_size=1, max_in_flight=2)
    work.gate.clear()

    calls = await queued(batcher, ["a"], ["b"], ["c"])
    await work.begun(2)
    await asyncio.sleep(0)
    assert work.batches == [["a"], ["b"]]

    work.gate.set()
    assert await answers(*calls) == [["A"], ["B"], ["C"]]


async def test_too_much_waiting_is_refused_and_nothing_of_it_is_queued(work: Work) -> None:
    batcher = Batcher(work, max_waiting=3, weigh=len)
    calls = [await busy(batcher, work, "a")]
    calls += await queued(batcher, ["bb"])

    await refused(batcher, ["c", "d"])
    calls += await queued(batcher, ["e"])  # the last that fits
    work.gate.set()

    assert await answers(*calls) == [["A"], ["BB"], ["E"]]
    assert work.batches == [["a"], ["bb", "e"]]


async def test_what_has_begun_no_longer_counts_as_waiting(work: Work) -> None:
    batcher = Batcher(work, max_size=2, max_waiting=2)
    for _ in range(3):
        calls = [await busy(batcher, work, "a", "b")]
        calls += await queued(batcher, ["c", "d"])
        work.gate.set()
        assert await answers(*calls) == [["A", "B"], ["C", "D"]]


@pytest.mark.parametrize("limit", ["max_size", "max_in_flight", "max_waiting"])
def test_a_limit_that_lets_nothing_through_is_refused(limit: str) -> None:
    async def run(items: Sequence[str]) -> Sequence[str]:
        return items

    with pytest.raises(ValueError, match="limit below 1"):
        Batcher(run, **{limit: 0})  # type: ignore[arg-type]


async def test_a_caller_that_changes_its_list_meanwhile_changes_nothing(work: Work) -> None:
    batcher = Batcher(work)
    first = await busy(batcher, work, "a")
    mine = ["b", "c"]
    second, third = await queued(batcher, mine, ["d"])
    mine.clear()

    work.gate.set()

    assert await answers(first, second, third) == [["A"], ["B", "C"], ["D"]]


# ------------------------------------------------------------------------------------ what goes wrong


async def test_the_culprit_of_a_refused_batch_is_found_and_its_neighbours_are_carried_out(work: Work) -> None:
    batcher = Batcher(work)
    refusal = work.poison["c"] = RefusedError()

    outcomes = await together(batcher, ["a", "b"], ["c", "d"], ["e"])

    assert outcomes == [["A", "B"], [refusal, "D"], ["E"]]
    assert work.batches == [
        ["a", "b", "c", "d", "e"],
        ["a", "b"],
        ["c", "d", "e"],
        ["c"],
        ["d", "e"],
    ]


async def test_each_of_several_culprits_has_its_own_exception(work: Work) -> None:
    batcher = Batcher(work)
    first, second = RefusedError("a"), LookupError("c")
    work.poison = {"a": first, "c": second}

    assert await together(batcher, ["a", "b", "c"]) == [[first, "B", second]]


async def test_an_exception_that_is_answered_is_the_outcome_of_its_item_alone() -> None:
    refusal = RefusedError()
    runs = 0

    async def run(items: Sequence[str]) -> list[str | Exception]:
        nonlocal runs
        runs += 1
        return [refusal if item == "b" else item for item in items]

    batcher = Batcher(run)

    assert await together(batcher, ["a"], ["b", "c"]) == [["a"], [refusal, "c"]]
    assert runs == 1


async def test_a_lost_connection_is_everybodys_outcome_and_nothing_is_run_again(work: Work) -> None:
    batcher = Batcher(work)
    lost = work.poison["b"] = ConnectionResetError()

    assert await together(batcher, ["a"], ["b", "c"]) == [[lost], [lost, lost]]
    assert work.batches == [["a", "b", "c"]]

    work.poison.clear()
    assert await together(batcher, ["d"]) == [["D"]]


async def test_the_user_of_a_batcher_says_what_concerns_all(work: Work) -> None:
    batcher = Batcher(work, concerns_all=(LookupError,))
    lost, alone = KeyError("out"), ConnectionError()
    work.poison = {"a": lost}
    assert await together(batcher, ["a", "b"]) == [[lost, lost]]

    work.poison = {"c": alone}
    assert await together(batcher, ["c", "d"]) == [[alone, "D"]]


async def test_a_connection_lost_while_the_culprit_is_sought_concerns_the_part_that_was_running(work: Work) -> None:
    batcher = Batcher(work)
    refusal, lost = RefusedError(), ConnectionResetError()
    work.poison = {"a": refusal, "d": lost}

    # The whole is refused for a; of its halves c and d, run together, find no connection.
    assert await together(batcher, ["a", "b", "c", "d"]) == [[refusal, "B", lost, lost]]
    assert work.batches[-1] == ["c", "d"]


@pytest.mark.parametrize("answer", [[], ["A"], ["A", "B", "C"], None])
async def test_a_wrong_number_of_answers_is_an_error_of_every_item_and_not_run_again(
    answer: list[str] | None,
) -> None:
    runs = 0

    async def run(items: Sequence[str]) -> Sequence[str]:
        nonlocal runs
        runs += 1
        return answer  # type: ignore[return-value]

    (outcomes,) = await together(Batcher(run), ["a", "b"])

    assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError]
    assert runs == 1


async def test_an_unknown_commit_is_run_again_with_the_same_items_and_answered_once() -> None:
    attempts: list[list[str]] = []

    async def transaction(items: Sequence[str]) -> list[str | Exception]:
        attempts.append(list(items))
        if len(attempts) == 1:
            raise CommitUnknownError("the database did not say")
        return [item.upper() for item in items]

    batcher = Batcher[str, str](lambda items: with_retries(lambda: transaction(items)))

    assert await together(batcher, ["a", "b"], ["c"]) == [["A", "B"], ["C"]]
    assert attempts == [["a", "b", "c"], ["a", "b", "c"]]


# ------------------------------------------------------------------------------------ who goes away


async def test_a_caller_cancelled_while_it_waits_is_carried_out_and_disturbs_nobody(work: Work) -> None:
    batcher = Batcher(work)
    first = await busy(batcher, work, "a")
    second, gone, fourth = await queued(batcher, ["b"], ["c", "d"], ["e"])

    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    work.gate.set()

    assert await answers(first, second, fourth) == [["A"], ["B"], ["E"]]
    assert work.batches == [["a"], ["b", "c", "d", "e"]]


async def test_a_caller_cancelled_while_its_batch_runs_disturbs_nobody(work: Work) -> None:
    batcher = Batcher(work)
    work.gate.clear()
    gone, neighbour = await queued(batcher, ["a"], ["b"])
    await work.begun(1)

    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    after = await queued(batcher, ["c"])
    work.gate.set()

    assert await answers(neighbour, *after) == [["B"], ["C"]]
    assert work.batches == [["a", "b"], ["c"]]


async def test_what_the_only_caller_submitted_is_carried_out_without_it(work: Work) -> None:
    batcher = Batcher(work)
    (gone,) = await queued(batcher, ["a"])
    gone.cancel()

    await answers(batcher.close())

    assert work.batches == [["a"]]


async def test_a_cancellation_inside_a_batch_leaves_its_outcomes_unknown_and_the_next_batch_alone() -> None:
    batches: list[list[str]] = []
    begun, inner = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def run(items: Sequence[str]) -> Sequence[str]:
        batches.append(list(items))
        if "a" in items:
            begun.set()
            await inner  # somebody else's, who gives it up
        return items

    batcher = Batcher(run)
    first = asyncio.create_task(batcher.submit(["a", "b"]))
    await begun.wait()
    second = asyncio.create_task(batcher.submit(["c"]))
    await asyncio.sleep(0)
    inner.cancel()

    unknown, carried_out = await answers(first, second)
    assert [type(outcome) for outcome in unknown] == [OutcomeUnknownError, OutcomeUnknownError]
    assert carried_out == ["c"]
    assert batches == [["a", "b"], ["c"]]


async def test_when_the_loop_ends_the_running_are_unknown_the_waiting_refused_and_no_batch_begins(work: Work) -> None:
    batcher = Batcher(work)
    calls: list[asyncio.Task[list[str | Exception]]] = []
    work.gate.clear()

    tasks = await batch_tasks(work, lambda: calls.append(asyncio.create_task(batcher.submit(["a", "b"]))))
    (batch,) = tasks - set(calls)
    calls += await queued(batcher, ["c"], ["d"])
    batch.cancel()

    outcomes = await answers(*calls)
    assert [[type(outcome) for outcome in call] for call in outcomes] == [
        [OutcomeUnknownError, OutcomeUnknownError],
        [UnavailableError],
        [UnavailableError],
    ]
    assert work.batches == [["a", "b"]]
    assert asyncio.all_tasks() <= {asyncio.current_task()}

    work.gate.set()
    assert await together(batcher, ["e"]) == [["E"]]  # nothing of it is left in the way or in the count
    assert work.batches == [["a", "b"], ["e"]]


async def test_a_batch_cancelled_before_its_first_step_leaves_nobody_hanging(work: Work) -> None:
    batcher = Batcher(work, max_waiting=1)
    before = asyncio.all_tasks()
    calls = await queued(batcher, ["a"])
    (batch,) = asyncio.all_tasks() - before - set(calls)
    batch.cancel()

    (outcomes,) = await answers(*calls)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError]
    assert await together(batcher, ["b"]) == [["B"]]
    assert work.batches == [["b"]]


async def test_a_batch_whose_calls_are_gone_when_it_begins_runs_nothing(work: Work) -> None:
    batcher = Batcher(work, max_in_flight=2)
    calls: list[asyncio.Task[list[str | Exception]]] = []
    work.gate.clear()
    tasks = await batch_tasks(work, lambda: calls.append(asyncio.create_task(batcher.submit(["a"]))))
    (batch,) = tasks - set(calls)

    # The batch ends in this order of one turn: cancelled; the second call makes its own; the first's end is seen.
    batch.cancel()
    calls += await queued(batcher, ["b"])

    outcomes = await answers(*calls)
    await answers(batcher.close())
    assert [[type(outcome) for outcome in call] for call in outcomes] == [[OutcomeUnknownError], [UnavailableError]]
    assert work.batches == [["a"]]


def test_a_loop_that_ends_in_the_middle_leaves_no_task_and_no_complaint() -> None:
    complaints: list[dict[str, object]] = []
    begun: list[list[str]] = []
    calls: list[asyncio.Task[list[str | Exception]]] = []

    async def run(items: Sequence[str]) -> Sequence[str]:
        begun.append(list(items))
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        batcher = Batcher(run, max_size=1)
        calls.extend(await queued(batcher, ["a"], ["b"], ["c"]))
        await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(main())

    assert [call.cancelled() for call in calls] == [True, True, True]
    assert begun == [["a"]]
    assert complaints == []


def test_an_exit_inside_a_batch_ends_the_loop_and_answers_its_callers() -> None:
    complaints: list[dict[str, object]] = []
    outcomes: list[list[type]] = []

    async def run(items: Sequence[str]) -> Sequence[str]:
        raise SystemExit(3)

    async def call(batcher: Batcher[str, str], items: list[str]) -> None:
        outcomes.append([type(outcome) for outcome in await batcher.submit(items)])

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        batcher = Batcher(run, max_size=2)
        tasks = [asyncio.create_task(call(batcher, items)) for items in (["a", "b"], ["c"])]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)

    loop = asyncio.new_event_loop()
    try:
        running = loop.create_task(main())
        with pytest.raises(SystemExit):
            loop.run_until_complete(running)
        loop.run_until_complete(running)
    finally:
        loop.close()

    assert outcomes == [[OutcomeUnknownError, OutcomeUnknownError], [UnavailableError]]
    assert complaints == []


async def test_of_a_large_call_what_has_not_begun_is_refused_when_the_loop_ends(work: Work) -> None:
    batcher = Batcher(work, max_size=2, max_in_flight=2)
    before = asyncio.all_tasks()
    first = await busy(batcher, work, "x")
    [broken] = asyncio.all_tasks() - before - {first}
    large = await busy(batcher, work, *"abcde")

    broken.cancel()
    await answers(first)
    assert not large.done()
    work.gate.set()

    [outcomes] = await answers(large)
    assert outcomes[:2] == ["A", "B"]
    assert [type(outcome) for outcome in outcomes[2:]] == [UnavailableError] * 3
    assert work.batches == [["x"], ["a", "b"]]


# ------------------------------------------------------------------------------------ closing


async def test_close_refuses_new_calls_and_returns_when_all_are_carried_out(work: Work) -> None:
    batcher = Batcher(work, max_size=1)
    calls = [await busy(batcher, work, "a")]
    calls += await queued(batcher, *([item] for item in "bcdefghij"))

    closing = [asyncio.create_task(batcher.close()) for _ in range(2)]
    await asyncio.sleep(0)
    await refused(batcher, ["k"])
    assert [task.done() for task in closing] == [False, False]
    work.gate.set()
    await answers(*closing)

    assert work.batches == [[item] for item in "abcdefghij"]
    assert asyncio.all_tasks() <= {asyncio.current_task(), *calls}
    assert await answers(*calls) == [[item] for item in "ABCDEFGHIJ"]
    await batcher.close()


async def test_giving_up_on_close_gives_up_nothing_else(work: Work) -> None:
    batcher = Batcher(work)
    calls = [await busy(batcher, work, "a")]
    calls += await queued(batcher, ["b"])

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await batcher.close()
    work.gate.set()

    assert await answers(*calls) == [["A"], ["B"]]


# ------------------------------------------------------------------------------------ contexts


async def test_a_batch_knows_nothing_of_the_caller_that_started_it() -> None:
    private = ContextVar("private", default="nobody's")
    seen: list[tuple[str, RequestContext]] = []

    async def run(items: Sequence[str]) -> Sequence[str]:
        seen.append((private.get(), current_context()))
        return items

    batcher = Batcher(run, max_size=1)

    async def call() -> RequestContext:
        context = enter_context(seconds=0.5)
        private.set("the caller's")
        await batcher.submit(["a"])
        assert current_context() is context
        return context

    callers = await answers(call(), call())

    assert [who for who, _ in seen] == ["nobody's", "nobody's"]
    assert len({context.trace for context in (*callers, *(context for _, context in seen))}) == 4
    assert min(context.deadline for _, context in seen) > max(context.deadline for context in callers) + 5.0


async def test_the_time_that_a_culprit_uses_up_is_not_its_neighbours() -> None:
    deadlines: dict[str, float] = {}

    async def run(items: Sequence[str]) -> Sequence[str]:
        deadlines["".join(items)] = current_context().deadline
        if "a" in items:
            enter_context(seconds=-1.0)  # as if all of it had gone by
            raise RefusedError
        return items

    await together(Batcher(run), ["a", "b"])

    assert deadlines["ab"] <= deadlines["a"] <= deadlines["b"]


# ------------------------------------------------------------------------------------ anything at all


@dataclass(frozen=True, slots=True)
class Thing:
    """An item: which it is, what it weighs, what becomes of it."""

    call: int
    place: int
    weight: int
    fate: str = field(compare=False)


FATES = st.sampled_from(["carried out"] * 6 + ["refused in the answer", "refused by an exception"])
CALLS = st.lists(st.lists(st.tuples(st.integers(1, 5), FATES), max_size=5), max_size=30)


@given(
    calls=CALLS,
    turns=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    max_size=st.integers(1, 12),
    max_in_flight=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_every_item_gets_its_own_outcome_whatever_comes_when(
    calls: list[list[tuple[int, str]]], turns: list[int], max_size: int, max_in_flight: int
) -> None:
    submitted = [[Thing(n, m, *item) for m, item in enumerate(items)] for n, items in enumerate(calls)]
    under_way = 0
    running: set[int] = set()
    begun: list[Thing] = []
    done: list[Thing] = []

    async def run(items: Sequence[Thing]) -> list[str | Exception]:
        nonlocal under_way
        under_way += 1
        assert under_way <= max_in_flight
        fresh = [thing for thing in items if thing not in begun]  # else a part of a batch that was refused
        assert fresh in ([], list(items))
        begun.extend(fresh)
        assert sum(thing.weight for thing in items) <= max_size or len(items) == 1
        calls_now = {thing.call for thing in items}
        assert calls_now.isdisjoint(running)  # one part of a call at a time
        running.update(calls_now)
        try:
            for _ in range(len(items) % 3):
                await asyncio.sleep(0)
            if any(thing.fate == "refused by an exception" for thing in items):
                raise RefusedError([thing for thing in items if thing.fate == "refused by an exception"])
        finally:
            under_way -= 1
            running.difference_update(calls_now)
        done.extend(items)
        return [LookupError(thing) if thing.fate == "refused in the answer" else str(thing) for thing in items]

    async def main() -> list[list[str | Exception]]:
        batcher = Batcher(run, max_size=max_size, max_in_flight=max_in_flight, weigh=lambda thing: thing.weight)
        tasks = []
        for items, pause in zip(submitted, turns, strict=False):
            tasks.append(asyncio.create_task(batcher.submit(items)))
            for _ in range(pause):
                await asyncio.sleep(0)
        outcomes = await answers(*tasks)
        await batcher.close()
        return outcomes

    def expected(thing: Thing) -> str:
        if thing.fate == "carried out":
            return str(thing)
        return repr(LookupError(thing) if thing.fate == "refused in the answer" else RefusedError([thing]))

    with asyncio.Runner() as runner:
        outcomes = runner.run(main())
    assert [[o if isinstance(o, str) else repr(o) for o in answer] for answer in outcomes] == [
        [expected(thing) for thing in items] for items in submitted
    ]
    everything = [thing for items in submitted for thing in items]
    assert begun == everything  # in the order of arrival
    assert sorted(done, key=everything.index) == [t for t in everything if t.fate != "refused by an exception"]


async def test_a_batch_of_a_dozen_is_a_crowd_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("shared.batching.time", SimpleNamespace(monotonic=lambda: now))
    batcher = Batcher[str, str](Work())

    assert not batcher.busy
    await batcher.submit(["a"] * (CROWD - 1))
    assert not batcher.busy
    await batcher.submit(["a"] * CROWD)
    assert batcher.busy
    await batcher.submit(["a"])
    assert batcher.busy
    now += 2 * CROWD_SECONDS
    assert not batcher.busy
