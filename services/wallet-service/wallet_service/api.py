"""HTTP of wallet-service: `/wallets` for people, `/internal` for transaction-service."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from shared.auth import Principal, ServiceTokens
from shared.authentication import Authenticates
from shared.errors import FieldInvalidError
from shared.http.app import service_of, strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import AmountOut, CurrencyCode, InstantIn, PageLimit, UtcTime
from shared.money import Money
from wallet_service.models import AccountRow, EntryRow
from wallet_service.service import Ledger, Wallets
from wallet_service.wire import read_units, write_outcomes


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
    """What is in a wallet; of the past only the balance is known."""

    wallet_id: UUID
    currency: str
    balance: AmountOut
    held: AmountOut | None
    available: AmountOut | None


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


def wallets_router(wallets: Wallets, authenticator: Authenticates) -> APIRouter:
    """The public operations under `/wallets`."""
    router = strict_router("wallets")
    current_user: Any = user_of(authenticator)

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
    async def get_balance(
        wallet_id: UUID,
        caller: Annotated[Principal, current_user],
        at: Annotated[InstantIn | None, Query(description="As it was at this instant, from the ledger.")] = None,
    ) -> BalanceOut:
        """The balance of one wallet, now or at an instant of the past."""
        if at is not None:
            money = await wallets.balance_at(caller, wallet_id, at)
            return BalanceOut(
                wallet_id=wallet_id, currency=money.currency, balance=str(money), held=None, available=None
            )
        return BalanceOut(wallet_id=wallet_id, **_amounts(await wallets.get(caller, wallet_id)))

    @router.post("/wallets/{wallet_id}/freeze", responses=problems(401, 403, 404, 409))
    async def freeze_wallet(wallet_id: UUID, caller: Annotated[Principal, current_user]) -> WalletOut:
        """Let no money out of a wallet (admins); it still receives."""
        return _wallet_out(await wallets.freeze(caller, wallet_id))

    @router.post("/wallets/{wallet_id}/unfreeze", responses=problems(401, 403, 404, 409))
    async def unfreeze_wallet(wallet_id: UUID, caller: Annotated[Principal, current_user]) -> WalletOut:
        """Let money out of a wallet again (admins)."""
        return _wallet_out(await wallets.unfreeze(caller, wallet_id))

    @router.post("/wallets/{wallet_id}/close", responses=problems(401, 404, 409))
    async def close_wallet(wallet_id: UUID, caller: Annotated[Principal, current_user]) -> WalletOut:
        """Close an empty wallet. Asking for one in its currency again reopens it."""
        return _wallet_out(await wallets.close(caller, wallet_id))

    @router.get("/wallets/{wallet_id}/entries", responses=problems(401, 404))
    async def list_entries(
        wallet_id: UUID,
        caller: Annotated[Principal, current_user],
        limit: PageLimit = 20,
        starting_after: Annotated[
            int | None, Query(ge=1, le=2**63 - 1, description="The `version` of the last entry seen.")
        ] = None,
        ending_before: Annotated[
            int | None, Query(ge=1, le=2**63 - 1, description="The `version` of the first entry seen.")
        ] = None,
    ) -> EntryList:
        """The ledger entries of one wallet, newest first."""
        if starting_after is not None and ending_before is not None:
            raise FieldInvalidError("ending_before", "two_cursors", "Cannot stand beside `starting_after`.")
        row, entries, has_more = await wallets.entries(
            caller, wallet_id, limit, after=starting_after, before=ending_before
        )
        return EntryList(data=[_entry_out(entry, row.currency) for entry in entries], has_more=has_more)

    return router


# ---------------------------------------------------------------------------------------- internal


def internal_router(ledger: Ledger, tokens: ServiceTokens) -> APIRouter:
    """Operations for other services."""
    router = APIRouter(include_in_schema=False, dependencies=[service_of(tokens)])

    @router.post("/internal/postings")
    async def apply_postings(request: Request) -> Response:
        """`{"units": [[posting, …], …]}` → `{"outcomes": [[outcome, …], …]}`, see `wire.py`."""
        units = read_units(await request.body())
        applied = iter(await ledger.apply([unit for unit in units if not isinstance(unit, Exception)]))
        answers = [unit if isinstance(unit, Exception) else next(applied) for unit in units]
        return Response(write_outcomes(answers), media_type="application/json")

    return router


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
