"""Refresh tokens: opaque to clients, proven by a MAC over what the database alone does not tell."""

import base64
import binascii
import hmac
import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from user_service.domain import InvalidRefreshTokenError

NONCE_BYTES: Final = 16
_CLAIMS: Final = struct.Struct(">16sQ")  # session, generation
_MAC_BYTES: Final = 32
_LENGTH: Final = -(-(_CLAIMS.size + _MAC_BYTES) * 4 // 3)  # in base64url without padding
_PURPOSE: Final = b"payment-system refresh tokens"


@dataclass(frozen=True, slots=True)
class Presented:
    """A token as it came: what it says of itself, and its MAC."""

    session_id: UUID
    generation: int
    mac: bytes


class RefreshTokens:
    """Makes and reads refresh tokens under a key derived from the one that signs access tokens.

    A token is base64url(session, generation, HMAC-SHA256(key, session, generation, nonce)); the nonce is in the
    session's row. So whoever reads the database cannot make one, and the successor of a token is the same each time.
    """

    def __init__(self, signing_secret: bytes) -> None:
        self._key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(signing_secret)

    def issue(self, session_id: UUID, generation: int, nonce: bytes) -> str:
        """The token of this generation."""
        claims = _CLAIMS.pack(session_id.bytes, generation)
        return _encoded(claims + self._mac(claims, nonce))

    def read(self, token: str) -> Presented:
        """What a token says of itself, yet unproven; raises InvalidRefreshTokenError."""
        if len(token) != _LENGTH or not token.isascii():
            raise InvalidRefreshTokenError
        try:
            decoded = base64.b64decode(token + "=" * (-_LENGTH % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            raise InvalidRefreshTokenError from None
        if _encoded(decoded) != token:  # Python's base64 reads one token in several spellings
            raise InvalidRefreshTokenError
        session_id, generation = _CLAIMS.unpack_from(decoded)
        return Presented(UUID(bytes=session_id), generation, decoded[_CLAIMS.size :])

    def prove(self, presented: Presented, nonce: bytes) -> bool:
        """Whether the token is one of ours."""
        claims = _CLAIMS.pack(presented.session_id.bytes, presented.generation)
        return hmac.compare_digest(presented.mac, self._mac(claims, nonce))

    def _mac(self, claims: bytes, nonce: bytes) -> bytes:
        return hmac.digest(self._key, claims + nonce, "sha256")


def _encoded(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()
