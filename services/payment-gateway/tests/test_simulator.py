"""The sandbox's answers follow from the order, the key and the age alone."""

from hypothesis import given
from hypothesis import strategies as st

from payment_gateway.domain import Answer, Kind, Order, Reversal, Status
from payment_gateway.simulator import SandboxProvider
from shared.ids import new_id
from shared.money import Money

PROVIDER = SandboxProvider(settle_seconds=2.0, reversal_seconds=5.0)
METHODS = st.sampled_from(
    [
        "credit_card",
        "pm_card_chargeDeclined",
        "pm_card_createDispute",
        "pm_usBankAccount_success",
        "pm_usBankAccount_noAccount",
        "pm_usBankAccount_processing",
        "pm_usBankAccount_payoutReturned",
        "pm_unheardOf",
    ]
)


def order(kind: Kind, method: str) -> Order:
    return Order(new_id(), kind, new_id(), method, Money(10_000, "USD"))


@given(st.sampled_from(Kind), METHODS, st.floats(0, 10), st.floats(0, 10))
async def test_a_definite_answer_never_changes(kind: Kind, method: str, one: float, other: float) -> None:
    wanted = order(kind, method)
    earlier, later = [await PROVIDER.execute(wanted, "key", age) for age in sorted((one, other))]

    if earlier.status is not Status.PENDING:
        assert (later.status, later.reference, later.decline_code) == (
            earlier.status,
            earlier.reference,
            earlier.decline_code,
        )
    if earlier.reversal:
        assert later == earlier
    if not earlier.expects_more:
        assert not later.expects_more


@given(st.sampled_from(Kind), METHODS, st.floats(0, 10))
async def test_only_what_is_pending_can_be_cancelled(kind: Kind, method: str, age: float) -> None:
    wanted = order(kind, method)
    answer = await PROVIDER.execute(wanted, "key", age)

    cancelled = await PROVIDER.cancel(wanted, "key", age)

    if answer.status is Status.PENDING:
        assert cancelled == Answer(Status.DECLINED, decline_code="cancelled")
    else:
        assert cancelled == answer


async def test_a_payment_settles_and_comes_back_at_exactly_its_age() -> None:
    delayed, disputed = (
        order(Kind.CHARGE, "pm_usBankAccount_success"),
        order(Kind.CHARGE, "pm_card_createDispute"),
    )

    assert [(await PROVIDER.execute(delayed, "key", age)).status for age in (1.999, 2.0)] == [
        Status.PENDING,
        Status.SUCCEEDED,
    ]
    assert [(await PROVIDER.execute(disputed, "key", age)).reversal for age in (4.999, 5.0)] == [
        None,
        Reversal.DISPUTED,
    ]
