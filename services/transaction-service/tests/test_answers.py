"""What is stored as an answer is what the public model says."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared.ids import new_id
from shared.money import Money
from transaction_service.answers import answer, event_of, transaction_out
from transaction_service.domain import Status, Transaction, Type

ids = st.none() | st.builds(new_id)
times = st.datetimes(timezones=st.just(UTC)) | st.just(datetime(2026, 11, 25, 1, tzinfo=UTC) + timedelta(hours=5))
transactions = st.builds(
    Transaction,
    id=st.builds(new_id),
    type=st.sampled_from(Type),
    status=st.sampled_from([Status.PENDING, Status.COMPLETED]),
    user_id=st.builds(new_id),
    amount=st.builds(Money, st.integers(1, 10**15), st.sampled_from(["USD", "JPY", "KWD"])),
    fee=st.builds(Money, st.integers(0, 10**6), st.just("USD")),
    refunded=st.builds(Money, st.integers(0, 10**6), st.just("USD")),
    from_wallet_id=ids,
    to_wallet_id=ids,
    payment_method=st.none() | st.just("credit_card"),
    description=st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
    metadata=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5), st.text(st.characters(codec="utf-8"))
    ),
    created_at=times,
    completed_at=st.none() | times,
    original_id=ids,
    payee_user_id=ids,
    failure_code=st.none(),
)


@given(transactions)
def test_the_stored_answer_is_the_public_model_to_the_byte(transaction: Transaction) -> None:
    assert answer(transaction).body == transaction_out(transaction).model_dump_json()
    assert answer(transaction).status == (201 if transaction.status is Status.COMPLETED else 202)


@given(transactions, st.sampled_from(Status))
def test_an_event_has_what_its_kind_has(transaction: Transaction, status: Status) -> None:
    transaction.status = status
    transaction.failure_code = "cancelled" if status is Status.FAILED else None

    kind, data = event_of(transaction)

    assert kind.model_validate(data).model_dump() == data
