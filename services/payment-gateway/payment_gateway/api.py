"""HTTP of payment-gateway: `/payments` for people, `/internal` for transaction-service."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from payment_gateway.domain import Kind, Order
from payment_gateway.models import PaymentRow
from payment_gateway.service import OrderChangedError, Payments
from shared.auth import Principal, ServiceTokens, UserTokens
from shared.errors import AppError
from shared.http.app import service_of, strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import AmountOut, CurrencyCode, UtcTime
from shared.money import MAX_MINOR, Money

MAX_ORDERS = 256


class PaymentOut(BaseModel):
    """An operation at a provider, with the provider's reference once it has succeeded."""

    id: UUID
    transaction_id: UUID
    kind: Literal["charge", "refund"]
    provider: Literal["stripe", "paypal"]
    amount: AmountOut
    currency: str
    status: Literal["pending", "succeeded", "declined"]
    provider_reference: str | None
    decline_code: str | None
    created_at: UtcTime
    updated_at: UtcTime


def payments_router(payments: Payments, tokens: UserTokens) -> APIRouter:
    """The public operations under `/payments`."""
    router = strict_router("payments")
    current_user: Any = user_of(tokens)

    @router.get("/payments/{payment_id}", responses=problems(401, 404))
    async def get_payment(payment_id: UUID, caller: Annotated[Principal, current_user]) -> PaymentOut:
        """One charge or refund."""
        row = await payments.get(caller, payment_id)
        return PaymentOut.model_validate(
            {name: getattr(row, name) for name in PaymentOut.model_fields if name != "amount"}
            | {"amount": str(Money(row.amount_minor, row.currency))}
        )

    return router


class OrderIn(BaseModel):
    """An operation to execute for a transaction."""

    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    kind: Kind
    user_id: UUID
    method: Annotated[str, Field(min_length=1, max_length=64)]
    amount_minor: Annotated[int, Field(gt=0, le=MAX_MINOR)]
    currency: CurrencyCode


class OrdersIn(BaseModel):
    """A batch of orders."""

    model_config = ConfigDict(extra="forbid")

    orders: Annotated[list[OrderIn], Field(min_length=1, max_length=MAX_ORDERS)]


class OrderOut(BaseModel):
    """What became of one order; `code` says why it was declined. A refund may be answered with its charge."""

    transaction_id: UUID
    kind: Kind
    payment_id: UUID
    provider: str
    status: Literal["pending", "succeeded", "declined"]
    code: str | None


class OrdersOut(BaseModel):
    """One answer an order, in the orders' order."""

    outcomes: list[OrderOut]


def internal_router(payments: Payments, tokens: ServiceTokens) -> APIRouter:
    """Operations for other services."""
    router = APIRouter(include_in_schema=False, dependencies=[service_of(tokens)])

    @router.post("/internal/orders")
    async def execute_orders(body: OrdersIn) -> OrdersOut:
        try:
            rows = await payments.execute([_order(item) for item in body.orders])
        except OrderChangedError:
            raise AppError("order_changed", 409, "The transaction has such an order with other terms.") from None
        return OrdersOut(outcomes=[_order_out(row) for row in rows])

    return router


def _order(item: OrderIn) -> Order:
    return Order(item.transaction_id, item.kind, item.user_id, item.method, Money(item.amount_minor, item.currency))


def _order_out(row: PaymentRow) -> OrderOut:
    return OrderOut.model_validate(
        {
            "transaction_id": row.transaction_id,
            "kind": row.kind,
            "payment_id": row.id,
            "provider": row.provider,
            "status": row.status,
            "code": row.decline_code,
        }
    )
