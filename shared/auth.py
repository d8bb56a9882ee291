"""Tokens: who calls, proven by a signature. The only file that imports python-jose.

A token is never trusted for how it wants to be verified: the algorithm and the required claims are fixed here, and
whatever goes wrong inside the library ends as UnauthorizedError.
"""

import base64
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final, Self
from uuid import UUID

from jose import jwk, jwt
from jose.backends import ECKey, HMACKey
from jose.backends.base import Key

from shared.errors import UnauthorizedError
from shared.ids import new_id
from shared.settings import Settings

HS256: Final = "HS256"
ES256: Final = "ES256"
ISSUER: Final = "payment-system"
USER_AUDIENCE: Final = "payment-system-api"
ACCESS: Final = "access"
SERVICE: Final = "service"
MAX_TOKEN_BYTES: Final = 4096
LEEWAY_SECONDS: Final = 30
ACCESS_TOKEN_SECONDS: Final = 15 * 60
SERVICE_TOKEN_SECONDS: Final = 60
MAX_SERVICE_TOKENS: Final = 256  # remembered as verified
ROLES: Final = frozenset({"user", "merchant", "admin"})

_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_REQUIRED: Final = ("exp", "iat", "iss", "aud", "sub", "jti")

# python-jose falls back to pure Python back ends when `cryptography` is missing; those are not wanted here.
for _key in (ECKey, HMACKey):
    if _key is None or "cryptography" not in _key.__module__:
        raise ImportError("python-jose must run on its cryptography back end.")


@dataclass(frozen=True, slots=True)
class Principal:
    """A person whose access token was verified; it expires at `expires_at`, in seconds since 1970."""

    user_id: UUID
    role: str
    session_id: UUID
    expires_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ES256 pair in PEM; without the private key tokens can be verified only."""

    public_pem: str
    private_pem: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class _Keys:
    """One algorithm and its keys; nothing in a token ever chooses among algorithms."""

    algorithm: str
    verifying: Key
    signing: Key | None

    @classmethod
    def shared(cls, secret: str) -> Self:
        key = jwk.construct(secret, HS256)
        return cls(HS256, key, key)

    @classmethod
    def pair(cls, pair: KeyPair) -> Self:
        signing = jwk.construct(pair.private_pem, ES256) if pair.private_pem else None
        return cls(ES256, jwk.construct(pair.public_pem, ES256), signing)


class UserTokens:
    """Access tokens of people, signed by user-service and verified by every service.

    HS256 with a shared secret, or ES256 with a key pair.
    """

    def __init__(self, key: str | KeyPair, expire_seconds: int = ACCESS_TOKEN_SECONDS) -> None:
        self._keys = _Keys.pair(key) if isinstance(key, KeyPair) else _Keys.shared(key)
        self.expire_seconds = expire_seconds

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What verifies tokens by these settings."""
        if settings.jwt_public_key:
            return cls(KeyPair(settings.jwt_public_key))
        return cls(settings.jwt_secret_key.get_secret_value())

    def issue(self, user_id: UUID, role: str, session_id: UUID) -> str:
        """An access token for this person in this session, valid for `expire_seconds`."""
        more = {"role": role, "sid": str(session_id)}
        return _sign(self._keys, ACCESS, str(user_id), USER_AUDIENCE, self.expire_seconds, more)

    def verify(self, token: str) -> Principal:
        """Who the token speaks for; raises UnauthorizedError."""
        claims = _verify(self._keys, token, ACCESS, USER_AUDIENCE)
        role, session_id = claims.get("role"), claims.get("sid")
        if not isinstance(role, str) or role not in ROLES or not isinstance(session_id, str):
            raise UnauthorizedError
        try:
            return Principal(UUID(claims["sub"]), role, UUID(session_id), claims["exp"])
        except ValueError:
            raise UnauthorizedError from None


class ServiceTokens:
    """Tokens by which one service shows another who it is; the callee is the audience."""

    def __init__(self, secret: str, service: str) -> None:
        self._keys = _Keys.shared(secret)
        self._service = service
        self._issued: dict[str, tuple[str, float]] = {}
        self._verified: dict[str, tuple[str, float]] = {}

    def issue(self, audience: str) -> str:
        """A token for calls to `audience`; one is used for half of its life."""
        token, fresh_until = self._issued.get(audience, ("", 0.0))
        if time.monotonic() >= fresh_until:
            token = _sign(self._keys, SERVICE, self._service, audience, SERVICE_TOKEN_SECONDS, {})
            self._issued[audience] = (token, time.monotonic() + SERVICE_TOKEN_SECONDS / 2)
        return token

    def verify(self, token: str) -> str:
        """The name of the calling service; raises UnauthorizedError. A token is verified once, and remembered."""
        caller, expires_at = self._verified.get(token, ("", 0.0))
        if time.time() < expires_at:
            return caller
        claims = _verify(self._keys, token, SERVICE, self._service)
        if len(self._verified) >= MAX_SERVICE_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified.pop(token, None)
        self._verified[token] = str(claims["sub"]), claims["exp"]
        return str(claims["sub"])


def bearer_token(authorization: str) -> str:
    """The token of an `Authorization: Bearer …` header's value; raises UnauthorizedError."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError
    return token


def _sign(keys: _Keys, kind: str, subject: str, audience: str, expire_seconds: int, more: dict[str, str]) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": audience,
        "sub": subject,
        "typ": kind,
        "iat": now,
        "exp": now + expire_seconds,
        "jti": str(new_id()),
    } | more
    if keys.signing is None:
        raise RuntimeError("tokens are issued by the service that has the private key")
    return jwt.encode(claims, keys.signing, algorithm=keys.algorithm)


def _verify(keys: _Keys, token: str, kind: str, audience: str) -> dict[str, Any]:
    if len(token) > MAX_TOKEN_BYTES or not _is_compact(token):
        raise UnauthorizedError
    try:
        _check_header(token, keys.algorithm)
        claims: dict[str, Any] = jwt.decode(
            token,
            keys.verifying,
            algorithms=[keys.algorithm],
            audience=audience,
            issuer=ISSUER,
            options={"leeway": LEEWAY_SECONDS} | {f"require_{claim}": True for claim in _REQUIRED},
        )
    except Exception:  # noqa: BLE001 - whatever a hostile token breaks, the answer is 401
        raise UnauthorizedError from None
    if claims.get("typ") != kind or not isinstance(claims["aud"], str):
        raise UnauthorizedError
    if type(claims["iat"]) is not int or type(claims["exp"]) is not int:  # python-jose takes "1" and true for numbers
        raise UnauthorizedError
    if claims["iat"] > time.time() + LEEWAY_SECONDS:
        raise UnauthorizedError
    return claims


def _is_compact(token: str) -> bool:
    """Whether it is spelled as RFC 7515 has it, in the one way there is.

    Python's base64 passes over what does not belong there: one token could be sent, and remembered, as very many.
    """
    if not _COMPACT.fullmatch(token):
        return False
    signature = token.rpartition(".")[2].encode()
    try:
        decoded = base64.urlsafe_b64decode(signature + b"=" * (-len(signature) % 4))
    except ValueError:
        return False
    return base64.urlsafe_b64encode(decoded).rstrip(b"=") == signature


def _check_header(token: str, algorithm: str) -> None:
    """Only the header that this module writes is accepted: no `jwk`, `jku`, `kid`, `crit` or other algorithm."""
    encoded = token.split(".", 1)[0]
    header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    if header != {"alg": algorithm, "typ": "JWT"}:
        raise UnauthorizedError
