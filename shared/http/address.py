"""From which address a request comes, as far as it can be believed."""

from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from fastapi import Depends, Request

from shared.auth import ServiceTokens, bearer_token
from shared.errors import UnauthorizedError

FORWARDED_FOR_HEADER: Final = "X-Forwarded-For"
GATEWAY_TOKEN_HEADER: Final = "X-Gateway-Token"  # noqa: S105 - a header's name
GATEWAY: Final = "api-gateway"


def client_address_of(tokens: ServiceTokens) -> Any:
    """A dependency's type: the caller's IP address, or an empty text where there is none.

    It is the peer's, unless the request proves to come from the gateway, which says whom it speaks for.
    """

    async def find(request: Request) -> str:
        forwarded = request.headers.getlist(FORWARDED_FOR_HEADER)
        proofs = request.headers.getlist(GATEWAY_TOKEN_HEADER)
        if len(forwarded) == len(proofs) == 1 and _is_gateway(tokens, proofs[0]):
            address = plain_address(forwarded[0])
            if address:
                return address
        return plain_address(request.client.host) if request.client else ""

    return Depends(find)


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
