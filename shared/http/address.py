"""From which address a request comes, as far as it can be believed."""

from ipaddress import IPv6Address, ip_address
from typing import Final

from starlette.types import Scope

from shared.auth import ServiceTokens, bearer_token
from shared.errors import UnauthorizedError

FORWARDED_FOR_HEADER: Final = "X-Forwarded-For"
GATEWAY_TOKEN_HEADER: Final = "X-Gateway-Token"  # noqa: S105 - a header's name
GATEWAY: Final = "api-gateway"
INTERNAL_PATH: Final = "/internal/"

_FORWARDED_FOR: Final = FORWARDED_FOR_HEADER.lower().encode()
_GATEWAY_TOKEN: Final = GATEWAY_TOKEN_HEADER.lower().encode()


def caller_address(scope: Scope, tokens: ServiceTokens) -> str | None:
    """The IP address that a request comes from; None where there is none.

    It is the peer's, unless the request proves to come from the gateway, which says whom it speaks for. Calls under
    `/internal/` come from services, which say for whom they are at work: what is no service's gets no further.
    """
    headers = scope["headers"]
    forwarded = [value for name, value in headers if name == _FORWARDED_FOR]
    if scope["path"].startswith(INTERNAL_PATH):
        return plain_address(forwarded[0].decode("latin-1")) or None if len(forwarded) == 1 else None
    proofs = [value for name, value in headers if name == _GATEWAY_TOKEN]
    if len(forwarded) == len(proofs) == 1 and _is_gateway(tokens, proofs[0].decode("latin-1")):
        address = plain_address(forwarded[0].decode("latin-1"))
        if address:
            return address
    return plain_address(scope["client"][0]) or None if scope["client"] else None


def plain_address(text: str) -> str:
    """An IP address in its one form, an IPv4 address in IPv6's clothes as IPv4; empty for what is none."""
    try:
        address = ip_address(text.strip().partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _is_gateway(tokens: ServiceTokens, proof: str) -> bool:
    try:
        return tokens.verify(bearer_token(proof)) == GATEWAY
    except UnauthorizedError:
        return False
