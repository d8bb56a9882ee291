"""Who may do what: a rule for each operation that the gateway's OpenAPI document has."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from shared.ids import new_id
from tests.security.people import PASSWORD, Actor, registration


@dataclass(frozen=True)
class Cast:
    """Somebody who owns one of everything, and a stranger with a wallet of their own to take it to."""

    owner: Actor
    stranger: Actor
    things: dict[str, str]
    strangers_wallet_id: str


Body = Callable[[Cast], dict[str, Any]]


@dataclass(frozen=True)
class Rule:
    """The status that each gets who calls the operation on what is the owner's.

    `other` and `merchant` are strangers. `body` is what they send; `things` says which of the owner's things a path
    parameter stands for where it is not the one of its name. With `as_missing`, strangers get the answer that a thing
    gets that does not exist, but for the ids in it; `missing_body` then is the body that names one in the body.
    """

    anonymous: int
    other: int
    merchant: int
    owner: int
    admin: int
    body: Body | None = None
    things: dict[str, str] | None = None
    as_missing: bool = False
    missing_body: Body | None = None

    @property
    def refused(self) -> dict[str, int]:
        """Who is not let in."""
        return {role: status for role, status in self.statuses.items() if status >= 400}

    @property
    def statuses(self) -> dict[str, int]:
        """All of them, the refused ones first, the owner last."""
        names = ("anonymous", "other", "merchant", "admin", "owner")
        return dict(sorted(((name, getattr(self, name)) for name in names), key=lambda item: item[1] < 400))


def _open_to_all(status: int, body: Body | None = None) -> Rule:
    return Rule(status, status, status, status, status, body)


def _about_oneself(status: int, body: Body | None = None) -> Rule:
    """Everybody gets their own; nothing of the owner's can even be named."""
    return Rule(401, status, status, status, status, body)


def _owners(
    status: int, body: Body | None = None, *, admin: int | None = None, things: dict[str, str] | None = None
) -> Rule:
    """The owner's, and an admin's; to others it is not there."""
    return Rule(401, 404, 404, status, status if admin is None else admin, body, things, as_missing=True)


def _admins(status: int) -> Rule:
    return Rule(401, 403, 403, 403, status)


def _transfer(source: str) -> Body:
    def body(cast: Cast) -> dict[str, Any]:
        return {
            "transaction_type": "transfer",
            "amount": "1.00",
            "currency": "USD",
            "from_wallet_id": source or cast.things["wallet_id"],
            "to_wallet_id": cast.strangers_wallet_id,
        }

    return body


_CURRENCIES: Final = itertools.cycle(("CHF", "GBP", "JPY", "KWD", "SEK"))  # one wallet each

RULES: Final[dict[tuple[str, str], Rule]] = {
    ("GET", "/health"): _open_to_all(200),
    ("POST", "/users/register"): _open_to_all(201, lambda _: registration()),
    ("POST", "/users/login"): _open_to_all(200, lambda cast: {"email": cast.stranger.email, "password": PASSWORD}),
    ("POST", "/users/refresh"): _open_to_all(401, lambda _: {"refresh_token": "A" * 75}),
    ("POST", "/users/logout"): _about_oneself(204),
    ("GET", "/users/sessions"): _about_oneself(200),
    ("DELETE", "/users/sessions/{session_id}"): _owners(204, admin=404),
    ("GET", "/users/me"): _about_oneself(200),
    ("PATCH", "/users/me"): _about_oneself(200, lambda _: {"first_name": "Jane"}),
    # A token alone is not enough for these two: the owner of the session has to give the password as well.
    ("POST", "/users/me/password"): _about_oneself(
        403, lambda _: {"current_password": "WrongPass789", "new_password": "BetterPass456"}
    ),
    ("DELETE", "/users/me"): _about_oneself(403, lambda _: {"password": "WrongPass789"}),
    ("GET", "/users"): _admins(200),
    ("GET", "/users/audit"): _admins(200),
    ("GET", "/users/{user_id}"): _admins(200),
    ("POST", "/users/{user_id}/disable"): _admins(200),
    ("POST", "/users/{user_id}/enable"): _admins(200),
    ("POST", "/wallets/create"): Rule(
        401, 403, 403, 201, 201, lambda cast: {"user_id": cast.owner.id, "currency": next(_CURRENCIES)}
    ),
    ("GET", "/wallets"): _about_oneself(200),
    ("GET", "/wallets/audit"): _admins(200),
    ("GET", "/wallets/{wallet_id}"): _owners(200),
    ("GET", "/wallets/{wallet_id}/balance"): _owners(200),
    ("GET", "/wallets/{wallet_id}/entries"): _owners(200),
    ("POST", "/wallets/{wallet_id}/freeze"): Rule(401, 404, 404, 403, 200, as_missing=True),
    ("POST", "/wallets/{wallet_id}/unfreeze"): Rule(401, 404, 404, 403, 200, as_missing=True),
    ("POST", "/wallets/{wallet_id}/close"): _owners(200, things={"wallet_id": "empty_wallet_id"}),
    # An admin may look at everybody's money, and move nobody's.
    ("POST", "/transactions/create"): Rule(
        401, 404, 404, 201, 404, _transfer(""), as_missing=True, missing_body=_transfer(str(new_id()))
    ),
    ("GET", "/transactions"): _about_oneself(200),
    ("GET", "/transactions/audit"): _admins(200),
    ("GET", "/transactions/{transaction_id}"): _owners(200),
    ("POST", "/transactions/{transaction_id}/refund"): _owners(201, lambda _: {"amount": "1.00"}, admin=403),
    ("POST", "/transactions/{transaction_id}/cancel"): _owners(
        200, admin=404, things={"transaction_id": "pending_transaction_id"}
    ),
    ("GET", "/payments/audit"): _admins(200),
    ("GET", "/payments/{payment_id}"): _owners(200),
    ("GET", "/notifications"): _about_oneself(200),
    ("GET", "/notifications/audit"): _admins(200),
    ("GET", "/notifications/preferences"): _about_oneself(200),
    ("PUT", "/notifications/preferences"): _about_oneself(
        200, lambda _: {"preferences": [{"kind": "deposit", "email": True, "sms": True}]}
    ),
    ("POST", "/notifications/{notification_id}/read"): _owners(200, admin=404),
}
