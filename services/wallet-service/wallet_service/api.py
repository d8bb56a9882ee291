"""HTTP of wallet-service: `/wallets` for people, `/internal` for transaction-service."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from shared.auth import Principal, ServiceTokens, UserTokens
from shared.http.app import service_of, strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import AmountOut, CurrencyCode, PageLimit, UtcTime
from shared.money import MAX_MINOR, Money
from wallet_service.domain import AccountRef, Outcome, Posting, UnknownAccountError, account_ref
from wallet_service.models import AccountRow, EntryRow
from wallet_service.service import Ledger, Wallets

MAX_POSTINGS = 256


class WalletIn(BaseModel):
    """A wallet to open."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID
    currency: CurrencyCode


class WalletOut(BaseModel):
    """A wallet; `available` is `balance` less what is `held`."""

    id: UUID
    user_id: UUID
    currency: str
    status: Literal["active", "frozen", "closed"]
    balance: AmountOut
    held: AmountOut
    available: AmountOut
    created_at: UtcTime


class BalanceOut(BaseModel):
    """What is in a wallet."""

    wallet_id: UUID
    currency: str
    balance: AmountOut
    held: AmountOut
    available: AmountOut


class WalletList(BaseModel):
    """A person's wallets: one for each currency, so never more than there are currencies."""

    data: list[WalletOut]
    has_more: Literal[False] = False


class EntryOut(BaseModel):
    """One movement of a wallet and the balance after it; `version` counts from 1."""

    version: int
    transaction_id: UUID
    amount: AmountOut
    balance: AmountOut
    currency: str
    created_at: UtcTime


class EntryList(BaseModel):
    """Entries, newest first."""

    data: list[EntryOut]
    has_more: bool


def wallets_router(wallets: Wallets, tokens: UserTokens) -> APIRouter:
    """The public operations under `/wallets`."""
    router = strict_router("wallets")
    current_user: Any = user_of(tokens)

    @router.post("/wallets/create", status_code=201, responses=problems(400, 401, 403, 409, 413, 415))
    async def create_wallet(body: WalletIn, caller: Annotated[Principal, current_user]) -> WalletOut:
        """Open a wallet in a currency."""
        return _wallet_out(await wallets.create(caller, body.user_id, body.currency))

    @router.get("/wallets", responses=problems(401))
    async def list_wallets(caller: Annotated[Principal, current_user]) -> WalletList:
        """The caller's wallets, newest first."""
        return WalletList(data=[_wallet_out(row) for row in await wallets.of(caller)])

    @router.get("/wallets/{wallet_id}", responses=problems(401, 404))
    async def get_wallet(wallet_id: UUID, caller: Annotated[Principal, current_user]) -> WalletOut:
        """One wallet."""
        return _wallet_out(await wallets.get(caller, wallet_id))

    @router.get("/wallets/{wallet_id}/balance", responses=problems(401, 404))
    async def get_balance(wallet_id: UUID, caller: Annotated[Principal, current_user]) -> BalanceOut:
        """The balance of one wallet."""
        return BalanceOut(wallet_id=wallet_id, **_amounts(await wallets.get(caller, wallet_id)))

    @router.get("/wallets/{wallet_id}/entries", responses=problems(401, 404))
    async def list_entries(
        wallet_id: UUID,
        caller: Annotated[Principal, current_user],
        limit: PageLimit = 20,
        starting_after: Annotated[
            int | None, Query(ge=1, le=2**63 - 1, description="The `version` of the last entry seen.")
        ] = None,
    ) -> EntryList:
        """The ledger entries of one wallet, newest first."""
        row, entries, has_more = await wallets.entries(caller, wallet_id, limit, starting_after)
        return EntryList(data=[_entry_out(entry, row.currency) for entry in entries], has_more=has_more)

    return router


# ---------------------------------------------------------------------------------------- internal


def _known_account(text: Any) -> AccountRef:
    try:
        return account_ref(str(text))
    except UnknownAccountError:
        raise PydanticCustomError("account_unknown", "Must be a wallet's id or a system account.") from None


Account = Annotated[AccountRef, BeforeValidator(_known_account)]


class PostingIn(BaseModel):
    """One movement of `amount_minor` between two accounts."""

    model_config = ConfigDict(extra="forbid")

    id: UUID
    user_id: UUID
    source: Account
    target: Account
    amount_minor: Annotated[int, Field(gt=0, le=MAX_MINOR)]
    currency: CurrencyCode


class PostingsIn(BaseModel):
    """A batch of postings."""

    model_config = ConfigDict(extra="forbid")

    postings: Annotated[list[PostingIn], Field(min_length=1, max_length=MAX_POSTINGS)]


class OutcomeOut(BaseModel):
    """What became of one posting."""

    id: UUID
    status: Literal["applied", "refused"]
    code: str | None
    available_minor: int | None
    target_user_id: UUID | None


class OutcomesOut(BaseModel):
    """One outcome a posting, in the postings' order."""

    outcomes: list[OutcomeOut]


def internal_router(ledger: Ledger, tokens: ServiceTokens) -> APIRouter:
    """Operations for other services."""
    router = APIRouter(include_in_schema=False, dependencies=[service_of(tokens)])

    @router.post("/internal/postings")
    async def apply_postings(body: PostingsIn) -> OutcomesOut:
        return _outcomes_out(await ledger.apply([_posting(item) for item in body.postings]))

    @router.post("/internal/postings/check")
    async def check_postings(body: PostingsIn) -> OutcomesOut:
        return _outcomes_out(await ledger.check([_posting(item) for item in body.postings]))

    return router


def _posting(item: PostingIn) -> Posting:
    return Posting(item.id, item.user_id, item.source, item.target, Money(item.amount_minor, item.currency))


def _outcomes_out(outcomes: list[Outcome]) -> OutcomesOut:
    return OutcomesOut(
        outcomes=[
            OutcomeOut(
                id=outcome.posting_id,
                status="refused" if outcome.refusal else "applied",
                code=outcome.refusal,
                available_minor=outcome.available_minor,
                target_user_id=outcome.target_user_id,
            )
            for outcome in outcomes
        ]
    )


def _amounts(row: AccountRow) -> dict[str, str]:
    balance, held = Money(row.balance_minor, row.currency), Money(row.held_minor, row.currency)
    return {
        "currency": row.currency,
        "balance": str(balance),
        "held": str(held),
        "available": str(balance - held),
    }


def _wallet_out(row: AccountRow) -> WalletOut:
    return WalletOut.model_validate(
        {"id": row.id, "user_id": row.user_id, "status": row.status, "created_at": row.created_at} | _amounts(row)
    )


def _entry_out(row: EntryRow, currency: str) -> EntryOut:
    return EntryOut(
        version=row.version,
        transaction_id=row.posting_id,
        amount=str(Money(row.amount_minor, currency)),
        balance=str(Money(row.balance_minor, currency)),
        currency=currency,
        created_at=row.created_at,
    )
