"""Whose request it is, by address: behind the proxies that are ours, and counted with its neighbours."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Any, Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_HOPS: Final = 32
MAX_ENTRY_BYTES: Final = 64
MAX_NETWORKS: Final = 256
MAX_REMEMBERED: Final = 16_384
IPV6_PREFIX_BITS: Final = 64  # what one customer is given, who may use any address of it

_ENTRY: Final = re.compile(
    rb"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?"  # [2001:db8::1]:443
    rb"|([0-9.]+)(?::[0-9]{1,5})?"  # 192.0.2.1:443
    rb"|([0-9A-Fa-f:.]+)"  # 2001:db8::1
)
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


class ClientAddresses:
    """Finds the client's address, and what its requests are counted under.

    `trusted` are the proxies whose word on the address before them counts; requests from `exempt` are not counted.
    """

    def __init__(self, trusted: Sequence[Network] = (), exempt: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self.trusts_somebody = bool(trusted)  # whether anybody's X-Forwarded-For may count
        self._exempt = tuple(exempt)
        self._known = lru_cache(MAX_REMEMBERED)(self._look_at)
        self._keys = lru_cache(MAX_REMEMBERED)(self._find_key)

    def client_address(self, peer: str, forwarded_for: Sequence[bytes] = ()) -> str:
        """The address that reached the first trusted proxy; `forwarded_for` are the header's values in their order.

        Without a trusted peer nothing of the header counts. With one it is read from the right, and what stands left
        of an address that is not trusted, or of what is no address, was written by anybody. A peer that has no IP
        address is answered as it is.
        """
        known = self._known(peer)
        if known is None:
            return peer
        client, trusted = known
        if not (trusted and forwarded_for):
            return client
        for entry in islice(_from_the_right(forwarded_for), MAX_HOPS):
            known = self._known(_address_in(entry))
            if known is None:
                break
            client, trusted = known
            if not trusted:
                break
        return client

    def counted_as(self, address: str) -> str | None:
        """The key under which requests from this address are counted; None where they are not.

        An IPv6 address counts with its /64, one that stands for an IPv4 address as that.
        """
        return self._keys(address)

    def _look_at(self, text: str) -> tuple[str, bool] | None:
        """The address as it is usually written, and whether it is trusted; None when it is no address."""
        address = _parse(text)
        return None if address is None else (str(address), _within(address, self._trusted))

    def _find_key(self, text: str) -> str | None:
        address = _parse(text)
        if address is None:
            return text
        if _within(address, self._exempt):
            return None
        if isinstance(address, IPv6Address):
            return str(IPv6Network((int(address), IPV6_PREFIX_BITS), strict=False))
        return str(address)


def parse_networks(value: Any) -> Any:
    """Networks from a comma-separated setting; anything but a string is left as it is.

    Raises ValueError with a sentence that names the one that is wrong.
    """
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",") if name.strip()]
    if len(names) > MAX_NETWORKS:
        raise ValueError(f"At most {MAX_NETWORKS} networks can be named.")
    return tuple(_parse_network(name) for name in names)


def _parse_network(name: str) -> Network:
    try:
        network = ip_network(name, strict=False)
    except ValueError:
        raise ValueError(f"{name!r} is no network such as 10.0.0.0/8 or 2001:db8::/32.") from None
    if "/" in name and str(network.network_address) != str(ip_address(name.partition("/")[0])):
        raise ValueError(f"{name!r} has bits set beyond its prefix; the network is {network}.")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        address = IPv4Address(int(network.network_address) & 0xFFFF_FFFF)
        return IPv4Network((address, network.prefixlen - _MAPPED.prefixlen))
    return network


def _parse(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _from_the_right(values: Sequence[bytes]) -> Iterator[bytes]:
    for value in reversed(values):
        yield from reversed(value.rsplit(b",", MAX_HOPS))


def _address_in(entry: bytes) -> str:
    """The address in an entry, without brackets and port; empty when it cannot be one."""
    match = _ENTRY.fullmatch(entry.strip(b" \t")) if len(entry) <= MAX_ENTRY_BYTES else None
    return "" if match is None else match[match.lastindex or 0].decode()
