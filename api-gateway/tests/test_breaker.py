"""A service that cannot be reached is left alone, and found again by one call at a time."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from prometheus_client import CollectorRegistry

from api_gateway.breaker import (
    FAILURES_TO_OPEN,
    OPEN_SECONDS,
    PROBE_SECONDS,
    Breaker,
    CircuitOpenError,
    State,
    breakers,
)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def breaker(clock: Clock, registry: CollectorRegistry) -> Breaker:
    return breakers(["user-service", "wallet-service"], registry, clock)["wallet-service"]


def fail(breaker: Breaker, times: int = FAILURES_TO_OPEN) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin())


def state_of(breaker: Breaker) -> State:
    return breaker.state


def is_refused(breaker: Breaker) -> bool:
    try:
        breaker.begin()
    except CircuitOpenError:
        return True
    return False


def test_it_opens_after_failures_in_a_row_and_says_when_to_come_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_TO_OPEN - 1)
    assert not is_refused(breaker)
    fail(breaker, 1)
    clock.now += 0.5

    with pytest.raises(CircuitOpenError) as refused:
        breaker.begin()

    assert (refused.value.status, refused.value.code) == (503, "service_unavailable")
    assert refused.value.headers == {"Retry-After": "2"}


def test_an_answer_between_failures_keeps_it_closed(breaker: Breaker) -> None:
    for _ in range(10):
        fail(breaker, FAILURES_TO_OPEN - 1)
        breaker.succeeded(breaker.begin())

    assert state_of(breaker) is State.CLOSED


def test_after_a_while_one_call_finds_out_and_the_others_are_refused_meanwhile(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker)
    clock.now += OPEN_SECONDS

    probe = breaker.begin()
    assert [is_refused(breaker) for _ in range(3)] == [True] * 3
    breaker.succeeded(probe)

    assert state_of(breaker) is State.CLOSED
    assert [is_refused(breaker) for _ in range(3)] == [False] * 3


def test_a_probe_that_fails_opens_it_for_as_long_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += OPEN_SECONDS
    breaker.failed(breaker.begin())

    clock.now += OPEN_SECONDS - 0.01
    assert is_refused(breaker)
    clock.now += 0.01
    assert not is_refused(breaker)


def test_a_probe_whose_caller_hangs_up_leaves_it_to_the_next_call(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += OPEN_SECONDS
    breaker.given_up(breaker.begin())

    breaker.succeeded(breaker.begin())

    assert state_of(breaker) is State.CLOSED


def test_a_probe_that_never_ends_is_followed_by_another(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += OPEN_SECONDS
    lost = breaker.begin()
    clock.now += PROBE_SECONDS
    second = breaker.begin()

    breaker.failed(lost)
    assert state_of(breaker) is State.HALF_OPEN
    breaker.succeeded(second)

    assert state_of(breaker) is State.CLOSED


def test_calls_from_before_it_opened_say_nothing_about_now(breaker: Breaker, clock: Clock) -> None:
    early = [breaker.begin() for _ in range(20)]
    fail(breaker)
    for call in early[:10]:
        breaker.succeeded(call)
    assert state_of(breaker) is State.OPEN
    clock.now += OPEN_SECONDS
    breaker.succeeded(breaker.begin())

    for call in early[10:]:
        breaker.failed(call)

    assert state_of(breaker) is State.CLOSED
    assert not is_refused(breaker)


def test_a_caller_that_hangs_up_while_it_is_closed_is_no_failure(breaker: Breaker) -> None:
    for _ in range(10 * FAILURES_TO_OPEN):
        breaker.given_up(breaker.begin())

    assert state_of(breaker) is State.CLOSED


def test_each_service_has_its_own_and_a_metric_shows_it(
    breaker: Breaker, registry: CollectorRegistry, clock: Clock
) -> None:
    def shown(service: str) -> float | None:
        return registry.get_sample_value("circuit_breaker_state", {"service": service})

    assert (shown("wallet-service"), shown("user-service")) == (State.CLOSED, State.CLOSED)
    fail(breaker)
    assert (shown("wallet-service"), shown("user-service")) == (State.OPEN, State.CLOSED)
    clock.now += OPEN_SECONDS
    probe = breaker.begin()
    assert shown("wallet-service") == State.HALF_OPEN
    breaker.succeeded(probe)
    assert shown("wallet-service") == State.CLOSED


class AnyOrder(RuleBasedStateMachine):
    """Calls that begin and end in any order, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = breakers(["wallet-service"], CollectorRegistry(), self.clock)["wallet-service"]
        self.under_way: list[int] = []
        self.probe: int | None = None
        self.probe_until = 0.0
        self.closed_to_all_until = 0.0

    @rule()
    def begin(self) -> None:
        before = state_of(self.breaker)
        if is_refused(self.breaker):
            assert before is not State.CLOSED
            return
        assert self.clock.now >= self.closed_to_all_until
        call = self.breaker.begin() if before is State.CLOSED else self._begun_probe()
        self.under_way.append(call)

    def _begun_probe(self) -> int:
        """The number of the probe that `is_refused` has just begun: only one may be under way."""
        assert self.probe is None or self.clock.now >= self.probe_until
        self.probe, self.probe_until = self.breaker._period, self.clock.now + PROBE_SECONDS
        return self.probe

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "given_up"]))
    def end(self, data: st.DataObject, how: str) -> None:
        call = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        before = state_of(self.breaker)
        getattr(self.breaker, how)(call)
        after = state_of(self.breaker)
        if before is State.HALF_OPEN and call != self.probe:
            assert after is before
        if before is State.OPEN:
            assert after is State.OPEN  # only a probe changes that
        if before is State.CLOSED and after is not State.CLOSED:
            assert (how, after) == ("failed", State.OPEN)
        if how == "failed" and after is State.OPEN and before is not State.OPEN:
            self.closed_to_all_until = self.clock.now + OPEN_SECONDS
        if call == self.probe:
            self.probe = None

    @rule(seconds=st.sampled_from([0.1, 1.0, OPEN_SECONDS, PROBE_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def teardown(self) -> None:
        """However calls have ended or not, in the end one is let through."""
        self.clock.now += max(PROBE_SECONDS, OPEN_SECONDS)
        assert not is_refused(self.breaker)


TestAnyOrder = AnyOrder.TestCase
