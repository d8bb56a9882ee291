"""HTTP of transaction-service."""

from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Query, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from shared.auth import Principal
from shared.authentication import Authenticates
from shared.errors import AppError
from shared.http.app import IdempotencyKey, strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import SINGLE_LINE, AmountIn, CurrencyCode, InstantIn, PageLimit
from shared.money import InvalidAmountError, Money, to_money
from transaction_service.answers import Answer, TransactionOut, TransactionType, transaction_out
from transaction_service.domain import Command, Filters, Status, Type
from transaction_service.service import RefundWish, Transactions

MAX_METADATA_KEYS = 50


def _few(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_METADATA_KEYS:
        raise PydanticCustomError("too_many_keys", "Must have at most 50 keys.")
    return value


def _fitting(amount: Decimal, currency: str) -> Decimal:
    """The amount, if the currency has such a one."""
    try:
        to_money(amount, currency)
    except InvalidAmountError as error:
        raise PydanticCustomError(error.code, "{reason}", {"reason": str(error)}) from error
    return amount


Description = Annotated[str, Field(max_length=500, examples=["Payment for services"]), SINGLE_LINE]
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=40), SINGLE_LINE],
        Annotated[str, Field(max_length=500), SINGLE_LINE],
    ],
    AfterValidator(_few),
    Field(description="Up to 50 pairs of your own.", examples=[{"order": "6735"}]),
]
PaymentMethod = Annotated[
    str,
    Field(
        pattern=r"^(credit_card|debit_card|paypal|bank_account|pm_[A-Za-z0-9_]{1,60})$",
        description="A kind of payment method (the sandbox's default one), or a method's id.",
        examples=["credit_card"],
    ),
]


class CreateIn(BaseModel):
    """What every type of transaction has in common."""

    model_config = ConfigDict(extra="forbid")

    currency: CurrencyCode
    amount: AmountIn
    description: Description | None = None
    metadata: Metadata = {}

    @field_validator("amount", mode="after")
    @classmethod
    def _fits_the_currency(cls, amount: Any, info: ValidationInfo) -> Any:
        return _fitting(amount, info.data["currency"]) if "currency" in info.data else amount

    @property
    def money(self) -> Money:
        """The amount in minor units."""
        return to_money(self.amount, self.currency)


class DepositIn(CreateIn):
    """Charge a payment method and credit a wallet of one's own."""

    transaction_type: Literal["deposit"]
    to_wallet_id: UUID
    payment_method: PaymentMethod


class WithdrawalIn(CreateIn):
    """Pay out from a wallet of one's own to a payment method."""

    transaction_type: Literal["withdrawal"]
    from_wallet_id: UUID
    payment_method: PaymentMethod


class BetweenWalletsIn(CreateIn):
    """What a transfer and a payment have in common."""

    from_wallet_id: UUID
    to_wallet_id: UUID

    @field_validator("to_wallet_id", mode="after")
    @classmethod
    def _another_wallet(cls, to_wallet_id: UUID, info: ValidationInfo) -> UUID:
        if to_wallet_id == info.data.get("from_wallet_id"):
            raise PydanticCustomError("same_wallet", "A wallet cannot pay itself.")
        return to_wallet_id


class TransferIn(BetweenWalletsIn):
    """Move money from a wallet of one's own to another one of the same currency."""

    transaction_type: Literal["transfer"]


class PaymentIn(BetweenWalletsIn):
    """Pay a merchant, whose wallet is in the same currency."""

    transaction_type: Literal["payment"]


class RefundIn(BaseModel):
    """What to give back: all that is left without an `amount`."""

    model_config = ConfigDict(extra="forbid")

    amount: AmountIn | None = None
    description: Description | None = None
    metadata: Metadata = {}


def _example(kind: str, amount: float, **fields: str) -> dict[str, Any]:
    return {
        "summary": kind.capitalize(),
        "value": {"transaction_type": kind, "amount": amount, "currency": "USD"} | fields,
    }


_MINE, _THEIRS = "01980000-0000-7000-8000-000000000001", "01980000-0000-7000-8000-000000000002"
_EXAMPLES: dict[str, Any] = {
    "deposit": _example(
        "deposit", 100.00, to_wallet_id=_MINE, payment_method="credit_card", description="Initial deposit"
    ),
    "transfer": _example(
        "transfer", 50.00, from_wallet_id=_MINE, to_wallet_id=_THEIRS, description="Payment for services"
    ),
    "payment": _example("payment", 20.00, from_wallet_id=_MINE, to_wallet_id=_THEIRS, description="Order 6735"),
    "withdrawal": _example("withdrawal", 30.00, from_wallet_id=_MINE, payment_method="bank_account"),
}
TransactionIn = Annotated[
    DepositIn | WithdrawalIn | TransferIn | PaymentIn,
    Field(discriminator="transaction_type"),
    Body(openapi_examples=_EXAMPLES),
]


_CREATED: dict[int | str, dict[str, Any]] = {
    201: {"model": TransactionOut, "description": "Done."},
    202: {"model": TransactionOut, "description": "On record; somebody else has yet to answer."},
}


_ASKED_FOR: dict[int | str, dict[str, Any]] = {
    202: {"model": TransactionOut, "description": "Asked for; the provider has yet to answer."}
}


class FilterIn(BaseModel):
    """Which transactions to list. Amounts are compared within one currency, so they need `currency`."""

    model_config = ConfigDict(extra="forbid")

    wallet_id: UUID | None = None
    transaction_type: TransactionType | None = None
    status: Literal["pending", "completed", "failed"] | None = None
    currency: CurrencyCode | None = None
    min_amount: AmountIn | None = None
    max_amount: AmountIn | None = None
    created_from: InstantIn | None = None
    created_to: InstantIn | None = None
    limit: PageLimit = 20
    starting_after: UUID | None = None
    ending_before: UUID | None = None

    @field_validator("ending_before", mode="after")
    @classmethod
    def _one_direction(cls, ending_before: UUID | None, info: ValidationInfo) -> UUID | None:
        if ending_before is not None and info.data.get("starting_after") is not None:
            raise PydanticCustomError("two_cursors", "Cannot stand beside `starting_after`.")
        return ending_before

    @field_validator("min_amount", "max_amount", mode="after")
    @classmethod
    def _in_a_currency(cls, amount: Any, info: ValidationInfo) -> Any:
        if info.data.get("currency") is None:
            raise PydanticCustomError("currency_missing", "Needs `currency` beside it.")
        return _fitting(amount, info.data["currency"])

    def filters(self) -> Filters:
        """The filters in minor units."""
        return Filters(
            wallet_id=self.wallet_id,
            type=Type(self.transaction_type) if self.transaction_type else None,
            status=Status(self.status) if self.status else None,
            currency=self.currency,
            min_minor=self._minor(self.min_amount),
            max_minor=self._minor(self.max_amount),
            created_from=self.created_from,
            created_to=self.created_to,
        )

    def _minor(self, amount: Decimal | None) -> int | None:
        return to_money(amount, self.currency).minor if amount is not None and self.currency else None


class TransactionList(BaseModel):
    """Transactions, newest first."""

    data: list[TransactionOut]
    has_more: bool


def transactions_router(transactions: Transactions, authenticator: Authenticates) -> APIRouter:
    """The public operations under `/transactions`."""
    router = strict_router("transactions")
    current_user: Any = user_of(authenticator)

    @router.post(
        "/transactions/create",
        status_code=201,
        response_class=Response,
        responses=_CREATED | problems(400, 401, 402, 404, 409, 413, 415),
    )
    async def create_transaction(
        body: TransactionIn, caller: Annotated[Principal, current_user], key: IdempotencyKey = None
    ) -> Response:
        """Deposit, withdraw, transfer or pay, once for each Idempotency-Key."""
        [answer] = await transactions.create([_command(body, caller, key)])
        return _response(answer)

    @router.post(
        "/transactions/{transaction_id}/refund",
        status_code=201,
        response_class=Response,
        responses=_CREATED | problems(400, 401, 402, 403, 404, 409, 413, 415),
    )
    async def refund_transaction(
        transaction_id: UUID,
        body: RefundIn,
        caller: Annotated[Principal, current_user],
        key: IdempotencyKey = None,
    ) -> Response:
        """Give back all or part of a payment or transfer received, or of one's own deposit."""
        wish = RefundWish(body.amount, body.description, body.metadata, key)
        return _response(await transactions.refund(caller, transaction_id, wish))

    @router.post(
        "/transactions/{transaction_id}/cancel",
        responses={**_ASKED_FOR, **problems(401, 404, 409)},
    )
    async def cancel_transaction(
        transaction_id: UUID, caller: Annotated[Principal, current_user], response: Response
    ) -> TransactionOut:
        """Stop a deposit or withdrawal that still waits for its provider; it ends as failed, `cancelled`."""
        cancelled = await transactions.cancel(caller, transaction_id)
        response.status_code = 202 if cancelled.status is Status.PENDING else 200
        return transaction_out(cancelled, caller.user_id)

    @router.get("/transactions", responses=problems(401, 404))
    async def list_transactions(
        caller: Annotated[Principal, current_user], query: Annotated[FilterIn, Query()]
    ) -> TransactionList:
        """What the caller has paid and received, newest first."""
        found, has_more = await transactions.page(
            caller, query.filters(), query.limit, after=query.starting_after, before=query.ending_before
        )
        shown = [transaction_out(transaction, caller.user_id) for transaction in found]
        return TransactionList(data=shown, has_more=has_more)

    @router.get("/transactions/{transaction_id}", responses=problems(401, 404))
    async def get_transaction(transaction_id: UUID, caller: Annotated[Principal, current_user]) -> TransactionOut:
        """One transaction."""
        return transaction_out(await transactions.get(caller, transaction_id), caller.user_id)

    return router


def _command(body: DepositIn | WithdrawalIn | TransferIn | PaymentIn, caller: Principal, key: str | None) -> Command:
    return Command(
        type=Type(body.transaction_type),
        user_id=caller.user_id,
        amount=body.money,
        from_wallet_id=None if isinstance(body, DepositIn) else body.from_wallet_id,
        to_wallet_id=None if isinstance(body, WithdrawalIn) else body.to_wallet_id,
        payment_method=body.payment_method if isinstance(body, DepositIn | WithdrawalIn) else None,
        description=body.description,
        metadata=body.metadata,
        key=key,
    )


def _response(answer: Answer | AppError) -> Response:
    if isinstance(answer, AppError):
        raise answer
    headers = {"Idempotent-Replayed": "true"} if answer.replayed else None
    return Response(answer.body, answer.status, headers=headers, media_type=answer.media_type)
