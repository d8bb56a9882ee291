"""HTTP of wallet-service: `/wallets` for people, `/internal` for transaction-service."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from shared.auth import Principal, ServiceTokens
from shared.authentication import Authenticates
from shared.errors import FieldInvalidError, ForbiddenError
from shared.http.app import BatchRoute, StrictRoute, service_of, user_of
from shared.http.problems import problems
from shared.http.wire import AmountOut, CurrencyCode, InstantIn, PageLimit, UtcTime, utc_text
from shared.money import Money
from wallet_service.models import EntryRow
from wallet_service.service import Ledger, Wallets
from wallet_service.states import WalletState
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


# Operations that answer a plain read: ids in the path, the caller, and no query.
_QUICK: Final = frozenset({"list_wallets", "get_wallet", "get_balance"})


def _quick_route(authenticate: Callable[[Request, None], Awaitable[Principal]]) -> type[StrictRoute]:
    """Routes that call the quick operations themselves: FastAPI's way to an operation's arguments takes longer than
    all that such a read does. What is not plain, or not right, goes that way."""

    class QuickRoute(StrictRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            operation = self.endpoint
            if self.name not in _QUICK:
                return handle

            async def handle_quickly(request: Request) -> Response:
                ids = None if request.scope["query_string"] else _ids(request.path_params)
                if ids is None:
                    return await handle(request)
                response: Response = await operation(**ids, caller=await authenticate(request, None))
                return response

            return handle_quickly

    return QuickRoute


def _ids(texts: Mapping[str, str]) -> dict[str, UUID] | None:
    """The ids in a path, where they are written as ids are."""
    try:
        ids = {name: UUID(text) for name, text in texts.items()}
    except ValueError:
        return None
    return ids if all(str(ids[name]) == text for name, text in texts.items()) else None


def wallets_router(wallets: Wallets, authenticator: Authenticates) -> APIRouter:
    """The public operations under `/wallets`."""
    current_user: Any = user_of(authenticator)
    router = APIRouter(route_class=_quick_route(current_user.dependency), tags=["wallets"])

    @router.post("/wallets/create", status_code=201, responses=problems(400, 401, 403, 404, 409, 413, 415))
    async def create_wallet(body: WalletIn, caller: Annotated[Principal, current_user]) -> WalletOut:
        """Open a wallet in a currency."""
        return _wallet_out(await wallets.create(caller, body.user_id, body.currency))

    @router.get("/wallets", response_model=WalletList, responses=problems(401))
    async def list_wallets(caller: Annotated[Principal, current_user]) -> Response:
        """The caller's wallets, newest first."""
        return _json({"data": [_wallet(state) for state in await wallets.of(caller)], "has_more": False})

    @router.get("/wallets/{wallet_id}", response_model=WalletOut, responses=problems(401, 404))
    async def get_wallet(wallet_id: UUID, caller: Annotated[Principal, current_user]) -> Response:
        """One wallet."""
        return _json(_wallet(await wallets.get(caller, wallet_id)))

    @router.get("/wallets/{wallet_id}/balance", response_model=BalanceOut, responses=problems(401, 404))
    async def get_balance(
        wallet_id: UUID,
        caller: Annotated[Principal, current_user],
        at: Annotated[InstantIn | None, Query(description="As it was at this instant, from the ledger.")] = None,
    ) -> Response:
        """The balance of one wallet, now or at an instant of the past."""
        if at is not None:
            money = await wallets.balance_at(caller, wallet_id, at)
            past = {"currency": money.currency, "balance": str(money), "held": None, "available": None}
            return _json({"wallet_id": wallet_id} | past)
        return _json(_balance(await wallets.get(caller, wallet_id)))

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
        currency, entries, has_more = await wallets.entries(
            caller, wallet_id, limit, after=starting_after, before=ending_before
        )
        return EntryList(data=[_entry_out(entry, currency) for entry in entries], has_more=has_more)

    return router


# ---------------------------------------------------------------------------------------- internal


def postings_route(ledger: Ledger, tokens: ServiceTokens) -> BatchRoute:
    """`POST /internal/postings`, for transaction-service."""

    async def apply_postings(request: Request) -> Response:
        """`{"units": [[posting, …], …]}` → `{"outcomes": [[outcome, …], …]}`, see `wire.py`."""
        units = read_units(await request.body())
        applied = iter(await ledger.apply([unit for unit in units if not isinstance(unit, Exception)]))
        answers = [unit if isinstance(unit, Exception) else next(applied) for unit in units]
        await ledger.settle()
        return Response(write_outcomes(answers), media_type="application/json")

    return BatchRoute("/internal/postings", tokens, apply_postings)


def internal_router(wallets: Wallets, tokens: ServiceTokens) -> APIRouter:
    """Operations for other services."""
    calling_service: Any = service_of(tokens)
    router = APIRouter(include_in_schema=False, dependencies=[calling_service])

    @router.post("/internal/people/{user_id}/close")
    async def close_wallets(user_id: UUID, caller: Annotated[str, calling_service]) -> dict[str, int]:
        """Close all wallets of a person who leaves, or none of them."""
        if caller != "user-service":
            raise ForbiddenError("Only user-service closes a person's wallets.")
        return {"closed": await wallets.close_all(user_id, caller)}

    return router


def _amounts(wallet: WalletState) -> tuple[str, str, str]:
    """What is in it, what of that is held, and what is available."""
    balance, held = Money(wallet.balance_minor, wallet.currency), Money(wallet.held_minor, wallet.currency)
    return str(balance), str(held), str(balance - held)


def _wallet(wallet: WalletState) -> dict[str, object]:
    """What `WalletOut` says."""
    balance, held, available = _amounts(wallet)
    return {
        "id": wallet.id,
        "user_id": wallet.user_id,
        "currency": wallet.currency,
        "status": wallet.status,
        "balance": balance,
        "held": held,
        "available": available,
        "created_at": utc_text(wallet.created_at),
    }


def _balance(wallet: WalletState) -> dict[str, object]:
    """What `BalanceOut` says."""
    balance, held, available = _amounts(wallet)
    return {
        "wallet_id": wallet.id,
        "currency": wallet.currency,
        "balance": balance,
        "held": held,
        "available": available,
    }


def _wallet_out(wallet: WalletState) -> WalletOut:
    return WalletOut.model_validate(_wallet(wallet))


def _json(content: object) -> Response:
    """An answer that is written as it is: pydantic would check what was made here a line before."""
    return Response(_encoder.encode(content), media_type="application/json")


_encoder: Final = msgspec.json.Encoder()


def _entry_out(row: EntryRow, currency: str) -> EntryOut:
    return EntryOut(
        version=row.version,
        transaction_id=row.posting_id,
        amount=str(Money(row.amount_minor, currency)),
        balance=str(Money(row.balance_minor, currency)),
        currency=currency,
        created_at=row.created_at,
    )
