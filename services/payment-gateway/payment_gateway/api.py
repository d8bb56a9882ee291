"""HTTP of payment-gateway: `/payments` for people, `/internal` for transaction-service."""

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from payment_gateway.domain import Kind, Order, Status
from payment_gateway.service import Payments
from shared.auth import Principal, ServiceTokens
from shared.authentication import Authenticates
from shared.http.app import service_of, strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import AmountOut, CurrencyCode, UtcTime
from shared.money import MAX_MINOR, Money

MAX_ORDERS = 256


class PaymentOut(BaseModel):
    """An operation at a provider, with the provider's reference once it has succeeded.

    `reversal` says that its money came back afterwards: a charge was disputed, or a payout returned.
    """

    id: UUID
    transaction_id: UUID
    kind: Literal["charge", "refund", "payout"]
    provider: Literal["stripe", "paypal"]
    amount: AmountOut
    currency: str
    status: Literal["pending", "succeeded", "declined"]
    provider_reference: str | None
    decline_code: str | None
    reversal: Literal["disputed", "returned"] | None
    created_at: UtcTime
    updated_at: UtcTime


def payments_router(payments: Payments, authenticator: Authenticates) -> APIRouter:
    """The public operations under `/payments`."""
    router = strict_router("payments")
    current_user: Any = user_of(authenticator)

    @router.get("/payments/{payment_id}", responses=problems(401, 404))
    async def get_payment(payment_id: UUID, caller: Annotated[Principal, current_user]) -> PaymentOut:
        """One charge, refund or payout."""
        row = await payments.get(caller, payment_id)
        return PaymentOut.model_validate(
            {name: getattr(row, name) for name in PaymentOut.model_fields if name != "amount"}
            | {"amount": str(Money(row.amount_minor, row.currency))}
        )

    return router


class OrderIn(BaseModel):
    """An operation to execute for a transaction, or with `cancel` one that is not to happen any more.

    `original_id` is the transaction whose charge a refund gives back; without it, it is the refund's own.
    """

    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    kind: Kind
    user_id: UUID
    method: Annotated[str, Field(min_length=1, max_length=64)]
    amount_minor: Annotated[int, Field(gt=0, le=MAX_MINOR)]
    currency: CurrencyCode
    original_id: UUID | None = None
    cancel: bool = False

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.cancel if self.kind is Kind.REFUND else self.original_id is not None:
            raise ValueError("A refund cannot be cancelled, and nothing else has an original.")
        return self


class OrdersIn(BaseModel):
    """A batch of orders."""

    model_config = ConfigDict(extra="forbid")

    orders: Annotated[list[OrderIn], Field(min_length=1, max_length=MAX_ORDERS)]


class OrderOut(BaseModel):
    """What became of one order; `code` says why it was declined, or why nothing is known of it.

    A refund of the transaction's own charge may be answered with that charge.
    """

    model_config = ConfigDict(from_attributes=True)

    transaction_id: UUID
    kind: Kind
    payment_id: UUID | None
    provider: str
    status: Status
    code: str | None


class OrdersOut(BaseModel):
    """One answer an order, in the orders' order."""

    outcomes: list[OrderOut]


def internal_router(payments: Payments, tokens: ServiceTokens) -> APIRouter:
    """Operations for other services."""
    router = APIRouter(include_in_schema=False, dependencies=[service_of(tokens)])

    @router.post("/internal/orders")
    async def execute_orders(body: OrdersIn) -> OrdersOut:
        outcomes = await payments.execute([_order(item) for item in body.orders])
        return OrdersOut(outcomes=[OrderOut.model_validate(outcome) for outcome in outcomes])

    return router


def _order(item: OrderIn) -> Order:
    return Order(
        transaction_id=item.transaction_id,
        kind=item.kind,
        user_id=item.user_id,
        method=item.method,
        amount=Money(item.amount_minor, item.currency),
        original_id=None if item.original_id == item.transaction_id else item.original_id,
        cancel=item.cancel,
    )
