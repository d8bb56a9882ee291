"""Creations that the gateway sends together: one call, and an answer for each."""

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from shared.auth import Principal, ServiceTokens
from shared.authentication import Authenticator
from shared.errors import AppError, UnauthorizedError, UnavailableError
from shared.http import bundle
from shared.http.app import BatchRoute
from shared.http.bundle import Parcel, Replies, Reply
from shared.http.context import Trace
from shared.http.problems import MEDIA_TYPE, problem_body
from transaction_service.answers import CREATE_PATH, Answer
from transaction_service.domain import Command
from transaction_service.service import Transactions
from transaction_service.wire import read_plain

_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_JSON: Final = "application/json"

_log = logging.getLogger(__name__)


def bundles_route(transactions: Transactions, callers: Authenticator, tokens: ServiceTokens) -> BatchRoute:
    """`POST /internal/transactions`, for the gateway."""
    bundles = Bundles(transactions, callers)

    async def create_transactions(request: Request) -> Response:
        try:
            parcels = bundle.read_parcels(await request.body())
        except bundle.DecodeError:
            raise AppError("bundle_invalid", 422, "Is not a bundle of requests.") from None
        replies = await bundles.create(parcels)
        return Response(bundle.write_replies(replies), media_type=bundle.MEDIA_TYPE)

    return BatchRoute("/internal/transactions", tokens, create_transactions)


class Bundles:
    """Carries out plain transfers and payments together.

    What is not plain, or not in order, is handed back: sent by itself it gets the answer that anything else gets.
    """

    def __init__(self, transactions: Transactions, callers: Authenticator) -> None:
        self._transactions = transactions
        self._callers = callers

    async def create(self, parcels: Sequence[Parcel]) -> Replies:
        """One reply a parcel, None for those that are handed back."""
        callers = {parcel.authorization: self._callers.recognise(parcel.authorization) for parcel in parcels}
        strangers = [authorization for authorization, caller in callers.items() if caller is None]
        if strangers:
            found = await asyncio.gather(*map(self._authenticate, strangers))
            callers |= dict(zip(strangers, found, strict=True))
        commands = [_command(parcel, callers[parcel.authorization]) for parcel in parcels]
        answers = iter(await self._answers([command for command in commands if command is not None]))
        return [
            None if command is None else _reply(next(answers), parcel)
            for command, parcel in zip(commands, parcels, strict=True)
        ]

    async def _authenticate(self, authorization: str) -> Principal | None:
        try:
            return await self._callers.authenticate(authorization)
        except UnauthorizedError:
            return None

    async def _answers(self, commands: Sequence[Command]) -> Sequence[Answer | AppError]:
        if not commands:
            return []
        try:
            return await self._transactions.create(commands)
        except AppError as error:
            return [error] * len(commands)
        except OSError as error:  # a time-out of asyncio's, too
            _log.warning("a bundle was not opened: %s: %s", type(error).__name__, error)
            return [UnavailableError()] * len(commands)


def _command(parcel: Parcel, caller: Principal | None) -> Command | None:
    """What is asked for, if that is plain and there is nothing to be said about the request."""
    key = parcel.idempotency_key
    if caller is None or parcel.content_type != _JSON or not (key is None or _KEY.fullmatch(key)):
        return None
    wish = read_plain(parcel.body)
    if wish is None:
        return None
    return Command(
        type=wish.type,
        user_id=caller.user_id,
        amount=wish.amount,
        from_wallet_id=wish.from_wallet_id,
        to_wallet_id=wish.to_wallet_id,
        description=wish.description,
        key=key,
        trace=Trace(parcel.request_id, parcel.traceparent, parcel.ip),
    )


def _reply(answer: Answer | AppError, parcel: Parcel) -> Reply:
    if isinstance(answer, AppError):
        body = problem_body(answer, CREATE_PATH, parcel.request_id)
        return Reply(answer.status, body, [("content-type", MEDIA_TYPE), *_lower(answer.headers)])
    headers = [("content-type", answer.media_type)]
    if answer.replayed:
        headers.append(("idempotent-replayed", "true"))
    return Reply(answer.status, answer.body.encode(), headers)


def _lower(headers: dict[str, str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items()]
