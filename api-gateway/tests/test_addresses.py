"""Whose request it is: nothing that a client writes itself moves it to another bucket."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_gateway.addresses import MAX_HOPS, ClientAddresses, Network, parse_networks
from api_gateway.settings import GatewaySettings
from shared.settings import SettingsError, load

PROXY = "10.0.0.7"
CLIENT = "203.0.113.9"


def networks(text: str) -> tuple[Network, ...]:
    found = parse_networks(text)
    assert isinstance(found, tuple)
    return found


BEHIND_PROXIES = ClientAddresses(trusted=networks("10.0.0.0/8, fd00::/8"))


def is_stranger(text: str) -> bool:
    known = BEHIND_PROXIES._known(text)
    return known is not None and not known[1]


addresses = st.ip_addresses().map(str)
strangers = addresses.filter(is_stranger)
proxies = st.integers(0, 2**24 - 1).map(lambda n: str(IPv4Address((10 << 24) + n)))
headers = st.lists(st.binary(max_size=200), max_size=5)


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ([], PROXY),
        ([b"203.0.113.9"], CLIENT),
        ([b"203.0.113.9:50123"], CLIENT),
        ([b" 203.0.113.9\t"], CLIENT),
        ([b"6.6.6.6, 203.0.113.9"], CLIENT),
        ([b"6.6.6.6", b"203.0.113.9"], CLIENT),
        ([b"203.0.113.9, 10.1.1.1"], CLIENT),
        ([b"203.0.113.9", b"10.1.1.1,10.2.2.2"], CLIENT),
        ([b"6.6.6.6, nonsense, 10.1.1.1"], "10.1.1.1"),
        ([b"6.6.6.6,, 10.1.1.1"], "10.1.1.1"),
        ([b"6.6.6.6, "], PROXY),
        ([b"unknown"], PROXY),
        ([b"203.0.113.009"], PROXY),
        ([b"203.0.113.9:123456"], PROXY),
        (["２０３.0.113.9".encode()], PROXY),
        ([b"10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        ([b"2001:db8::1"], "2001:db8::1"),
        ([b"[2001:DB8:0::1]:443"], "2001:db8::1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"[2001:db8::1"], PROXY),
        ([b"::ffff:203.0.113.9"], CLIENT),
        ([b"::ffff:203.0.113.9, ::ffff:10.1.1.1"], CLIENT),
        ([b"203.0.113.9, fd00::1"], CLIENT),
        ([b"1" * 5000], PROXY),
    ],
)
def test_the_last_address_that_is_no_proxy_of_ours_is_the_client(forwarded_for: list[bytes], client: str) -> None:
    assert BEHIND_PROXIES.client_address(PROXY, forwarded_for) == client


@given(strangers, headers)
def test_of_a_peer_that_is_no_proxy_no_header_counts(peer: str, forwarded_for: list[bytes]) -> None:
    found = BEHIND_PROXIES.client_address(peer, forwarded_for)

    assert found == BEHIND_PROXIES.client_address(peer)


@given(addresses, headers)
def test_without_configured_proxies_no_header_counts(peer: str, forwarded_for: list[bytes]) -> None:
    alone = ClientAddresses()

    assert alone.client_address(peer, forwarded_for) == alone.client_address(peer)


@given(headers, strangers, st.lists(proxies, max_size=5), proxies)
def test_whatever_a_client_writes_before_the_proxies_do_changes_nothing(
    written: list[bytes], client: str, way: list[str], peer: str
) -> None:
    appended = ", ".join([client, *way]).encode()
    in_one_header = [*written[:-1], b", ".join([*written[-1:], appended])]

    expected = BEHIND_PROXIES.client_address(client)
    assert BEHIND_PROXIES.client_address(peer, [*written, appended]) == expected
    assert BEHIND_PROXIES.client_address(peer, in_one_header) == expected


@given(proxies, headers)
def test_the_answer_is_always_an_address(peer: str, forwarded_for: list[bytes]) -> None:
    ip_address(BEHIND_PROXIES.client_address(peer, forwarded_for))


def test_a_header_of_thousands_of_proxies_is_read_no_further_than_a_bound() -> None:
    way = [str(IPv4Address(f"10.1.0.{n}")) for n in range(MAX_HOPS)]

    assert BEHIND_PROXIES.client_address(PROXY, [b"6.6.6.6," * 5000 + ",".join(way).encode()]) == way[0]
    assert (
        BEHIND_PROXIES.client_address(PROXY, [b"6.6.6.6"] * 5000 + [way_part.encode() for way_part in way]) == way[0]
    )


@pytest.mark.parametrize("peer", ["", "testclient", "unix:"])
def test_a_peer_without_an_address_is_itself(peer: str) -> None:
    assert BEHIND_PROXIES.client_address(peer, [b"203.0.113.9"]) == peer
    assert BEHIND_PROXIES.counted_as(peer) == peer


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_is_counted_as_itself_and_one_of_ipv6_with_its_64(address: str, key: str) -> None:
    assert ClientAddresses().counted_as(address) == key


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_address_within_a_64_gets_a_bucket_of_its_own(network: int, one: int, other: int) -> None:
    addresses = ClientAddresses()

    buckets = {addresses.counted_as(str(IPv6Address(network << 64 | host))) for host in (one, other)}

    assert len(buckets) == 1


def test_exempt_networks_are_not_counted_and_their_neighbours_are() -> None:
    addresses = ClientAddresses(exempt=networks("192.0.2.0/24, 2001:db8::/32, ::ffff:198.51.100.0/120"))

    exempt = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "198.51.100.1")
    assert [addresses.counted_as(address) for address in exempt] == [None] * 4
    counted = ("192.0.3.1", "2001:db9::1", "198.51.101.1")
    assert [addresses.counted_as(address) for address in counted] == ["192.0.3.1", "2001:db9::/64", "198.51.101.1"]


def test_networks_come_from_settings_and_no_network_is_an_empty_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv("TRUSTED_PROXY_CIDRS", "10.0.0.0/8, 192.0.2.1 ,fd00::/8,")
    monkeypatch.setenv("RATE_LIMIT_EXEMPT_CIDRS", "")

    settings = load(GatewaySettings)

    assert list(map(str, settings.trusted_proxy_cidrs)) == ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]
    assert settings.rate_limit_exempt_cidrs == ()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "TRUSTED_PROXY_CIDRS",
            "10.0.0.0/8, proxy.internal",
            "TRUSTED_PROXY_CIDRS: 'proxy.internal' is no network such as 10.0.0.0/8 or 2001:db8::/32.",
        ),
        (
            "TRUSTED_PROXY_CIDRS",
            "0.0.0.0/0",
            "TRUSTED_PROXY_CIDRS: A network of all addresses would let everybody choose an address; "
            "name the proxies' own.",
        ),
        (
            "RATE_LIMIT_EXEMPT_CIDRS",
            "10.1.2.3/8",
            "RATE_LIMIT_EXEMPT_CIDRS: '10.1.2.3/8' has bits set beyond its prefix; the network is 10.0.0.0/8.",
        ),
        (
            "RATE_LIMIT_EXEMPT_CIDRS",
            ",".join(["192.0.2.1"] * 257),
            "RATE_LIMIT_EXEMPT_CIDRS: At most 256 networks can be named.",
        ),
    ],
)
def test_a_wrong_network_stops_the_start_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as stopped:
        load(GatewaySettings)

    assert str(stopped.value) == sentence
