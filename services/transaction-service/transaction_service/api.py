"""HTTP of transaction-service."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from shared.auth import Principal, UserTokens
from shared.errors import AppError
from shared.http.app import IdempotencyKey, strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import SINGLE_LINE, AmountIn, CurrencyCode, PageLimit
from shared.money import InvalidAmountError, Money, to_money
from transaction_service.answers import TransactionOut, transaction_out
from transaction_service.domain import Command, Type
from transaction_service.service import Transactions

MAX_METADATA_KEYS = 50


def _few(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_METADATA_KEYS:
        raise PydanticCustomError("too_many_keys", "Must have at most 50 keys.")
    return value


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
        if "currency" in info.data:
            try:
                to_money(amount, info.data["currency"])
            except InvalidAmountError as error:
                raise PydanticCustomError(error.code, "{reason}", {"reason": str(error)}) from error
        return amount

    @property
    def money(self) -> Money:
        """The amount in minor units."""
        return to_money(self.amount, self.currency)


class DepositIn(CreateIn):
    """Charge a payment method and credit a wallet of one's own."""

    transaction_type: Literal["deposit"]
    to_wallet_id: UUID
    payment_method: PaymentMethod


class TransferIn(CreateIn):
    """Move money from a wallet of one's own to another one of the same currency."""

    transaction_type: Literal["transfer"]
    from_wallet_id: UUID
    to_wallet_id: UUID

    @field_validator("to_wallet_id", mode="after")
    @classmethod
    def _another_wallet(cls, to_wallet_id: UUID, info: ValidationInfo) -> UUID:
        if to_wallet_id == info.data.get("from_wallet_id"):
            raise PydanticCustomError("same_wallet", "A wallet cannot pay itself.")
        return to_wallet_id


_EXAMPLES: dict[str, Any] = {
    "deposit": {
        "summary": "Deposit",
        "value": {
            "transaction_type": "deposit",
            "amount": 100.00,
            "currency": "USD",
            "to_wallet_id": "01980000-0000-7000-8000-000000000001",
            "payment_method": "credit_card",
            "description": "Initial deposit",
        },
    },
    "transfer": {
        "summary": "Transfer",
        "value": {
            "transaction_type": "transfer",
            "amount": 50.00,
            "currency": "USD",
            "from_wallet_id": "01980000-0000-7000-8000-000000000001",
            "to_wallet_id": "01980000-0000-7000-8000-000000000002",
            "description": "Payment for services",
        },
    },
}
TransactionIn = Annotated[
    DepositIn | TransferIn, Field(discriminator="transaction_type"), Body(openapi_examples=_EXAMPLES)
]


_CREATED: dict[int | str, dict[str, Any]] = {
    201: {"model": TransactionOut, "description": "Done."},
    202: {"model": TransactionOut, "description": "On record; somebody else has yet to answer."},
}


class TransactionList(BaseModel):
    """Transactions, newest first."""

    data: list[TransactionOut]
    has_more: bool


def transactions_router(transactions: Transactions, tokens: UserTokens) -> APIRouter:
    """The public operations under `/transactions`."""
    router = strict_router("transactions")
    current_user: Any = user_of(tokens)

    @router.post(
        "/transactions/create",
        status_code=201,
        response_class=Response,
        responses=_CREATED | problems(400, 401, 402, 404, 409, 413, 415),
    )
    async def create_transaction(
        body: TransactionIn, caller: Annotated[Principal, current_user], key: IdempotencyKey = None
    ) -> Response:
        """Deposit or transfer money, once for each Idempotency-Key."""
        [answer] = await transactions.create([_command(body, caller, key)])
        if isinstance(answer, AppError):
            raise answer
        headers = {"Idempotent-Replayed": "true"} if answer.replayed else None
        return Response(answer.body, answer.status, headers=headers, media_type=answer.media_type)

    @router.get("/transactions", responses=problems(401, 404))
    async def list_transactions(
        caller: Annotated[Principal, current_user], limit: PageLimit = 20, starting_after: UUID | None = None
    ) -> TransactionList:
        """What the caller has paid and received, newest first."""
        found, has_more = await transactions.page(caller, limit, starting_after)
        return TransactionList(data=[transaction_out(transaction) for transaction in found], has_more=has_more)

    @router.get("/transactions/{transaction_id}", responses=problems(401, 404))
    async def get_transaction(transaction_id: UUID, caller: Annotated[Principal, current_user]) -> TransactionOut:
        """One transaction."""
        return transaction_out(await transactions.get(caller, transaction_id))

    return router


def _command(body: DepositIn | TransferIn, caller: Principal, key: str | None) -> Command:
    return Command(
        type=Type(body.transaction_type),
        user_id=caller.user_id,
        amount=body.money,
        from_wallet_id=body.from_wallet_id if isinstance(body, TransferIn) else None,
        to_wallet_id=body.to_wallet_id,
        payment_method=body.payment_method if isinstance(body, DepositIn) else None,
        description=body.description,
        metadata=body.metadata,
        key=key,
    )
