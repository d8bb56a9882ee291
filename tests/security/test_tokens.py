"""Tokens: every way of pretending that was thought of, at the gateway and at each service's own port.

Both ways of signing are attacked: HS256 by a common secret, and ES256 by a key pair. Each token differs in one thing
from one that is accepted, and speaks for a session that is alive.
"""

import base64
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from shared.ids import new_id
from shared.settings import DEVELOPMENT_SERVICE_SECRET, README_JWT_SECRET
from shared.signing_keys import new_pair
from shared.testing.sandbox import sandbox_on
from shared.testing.tokens import base64url, service_headers
from tests.platform import Platform, platform_on
from tests.security.people import Actor, newcomer
from tests.security.wire import head, status_of, talk

SERVICES: Final = {
    "user-service": "/users/me",
    "wallet-service": "/wallets",
    "transaction-service": "/transactions",
    "payment-gateway": "/payments/01980000-0000-7000-8000-000000000001",
}
PLACES: Final = SERVICES | {"api-gateway": "/wallets"}
NOWHERE: Final = dict.fromkeys(PLACES, 401)
INTERNAL: Final = {
    "user-service": ("GET", "/internal/sessions/01980000-0000-7000-8000-000000000001"),
    "wallet-service": ("POST", "/internal/postings"),
    "transaction-service": ("POST", "/internal/transactions"),
    "payment-gateway": ("POST", "/internal/orders"),
}


@dataclass(frozen=True)
class Forger:
    """Somebody who holds a live token, knows the public key, and now and then even the key that signs."""

    alice: Actor
    algorithm: str
    key: str
    public_pem: str

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of the live token, with changes; `...` leaves a claim out."""
        good = jwt.decode(self.alice.access, options={"verify_signature": False})
        return {name: value for name, value in (good | changes).items() if value is not ...}

    def signed(self, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token with the right signature, by another implementation than the platform's."""
        headers = {"typ": "JWT"} | (header or {})
        return jwt.encode(self.claims(**changes), self.key, self.algorithm, headers=headers)

    def with_header(self, header: Any, secret: bytes | None = None, digest: str = "sha256") -> str:
        """A token with this header, and a MAC as a signature."""
        parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, self.claims())]
        signed = b".".join(map(base64url, parts))
        mac = hmac.digest(self.key.encode() if secret is None else secret, signed, digest)
        return (signed + b"." + base64url(mac)).decode()

    def confused(self, secret: bytes) -> str:
        """The public key as the secret of a MAC: what a server believes that asks the token how to verify it."""
        return self.with_header({"alg": "HS256", "typ": "JWT"}, secret)

    @property
    def public_der(self) -> bytes:
        """The public key as bytes."""
        return load_pem_public_key(self.public_pem.encode()).public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )


def by_another_key(forger: Forger) -> str:
    """Signed by a key of the forger's own, which the header brings along or says where to find."""
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return jwt.encode(forger.claims(), key, "ES256", headers={"jwk": jwk})


def by_rsa(forger: Forger) -> str:
    return jwt.encode(forger.claims(), rsa.generate_private_key(65537, 2048), "RS256")


def without_signature(forger: Forger) -> str:
    return forger.alice.access.rpartition(".")[0] + "."


def unsigned(forger: Forger) -> str:
    """As RFC 7519 section 6.1 has it."""
    return forger.with_header({"alg": "none", "typ": "JWT"}).rpartition(".")[0] + "."


def spliced(forger: Forger) -> str:
    """An admin's claims under the signature of somebody else's."""
    first, _, last = forger.alice.access.split(".")
    return f"{first}.{base64url(json.dumps(forger.claims(role='admin')).encode()).decode()}.{last}"


ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def now() -> int:
    return int(time.time())


ATTACKS: Final[dict[str, Callable[[Forger], str]]] = {
    "garbage": lambda _: "x.y.z",
    "alg none": unsigned,
    "alg None": lambda f: f.with_header({"alg": "None", "typ": "JWT"}, b""),
    "no alg": lambda f: f.with_header({"typ": "JWT"}),
    "alg null": lambda f: f.with_header({"alg": None, "typ": "JWT"}),
    "alg list": lambda f: f.with_header({"alg": ["HS256"], "typ": "JWT"}),
    "no signature": without_signature,
    "spliced": spliced,
    "HS512": lambda f: f.with_header({"alg": "HS512", "typ": "JWT"}, digest="sha512"),
    "RS256": by_rsa,
    "empty secret": lambda f: f.with_header({"alg": "HS256", "typ": "JWT"}, b""),
    "another secret": lambda f: f.with_header({"alg": "HS256", "typ": "JWT"}, secrets.token_bytes(32)),
    "the services' secret": lambda f: f.with_header(
        {"alg": "HS256", "typ": "JWT"}, DEVELOPMENT_SERVICE_SECRET.encode()
    ),
    "another key in jwk": by_another_key,
    "jku": lambda f: f.signed({"jku": "http://127.0.0.1:1/keys"}),
    "x5u": lambda f: f.signed({"x5u": "http://127.0.0.1:1/keys"}),
    "kid": lambda f: f.signed({"kid": "../../../dev/null"}),
    "kid of SQL": lambda f: f.signed({"kid": "' union select 'key' --"}),
    "crit": lambda f: f.signed({"crit": ["exp"], "exp": 1}),
    "zip": lambda f: f.signed({"zip": "DEF"}),
    "expired": lambda f: f.signed(exp=now() - 31),
    "no exp": lambda f: f.signed(exp=...),
    "exp as text": lambda f: f.signed(exp=str(now() + 900)),
    "exp infinite": lambda f: f.signed(exp=float("inf")),
    "future iat": lambda f: f.signed(iat=now() + 3600, exp=now() + 4000),
    "not before": lambda f: f.signed(nbf=now() + 3600),
    "no iat": lambda f: f.signed(iat=...),
    "no iss": lambda f: f.signed(iss=...),
    "another iss": lambda f: f.signed(iss="somebody-else"),
    "no aud": lambda f: f.signed(aud=...),
    "another aud": lambda f: f.signed(aud="wallet-service"),
    "more aud": lambda f: f.signed(aud=["payment-system-api", "wallet-service"]),
    "no typ": lambda f: f.signed(typ=...),
    "typ refresh": lambda f: f.signed(typ="refresh"),
    "typ service": lambda f: f.signed(typ="service"),
    "no sub": lambda f: f.signed(sub=...),
    "sub of SQL": lambda f: f.signed(sub="' or '1'='1"),
    "no sid": lambda f: f.signed(sid=...),
    "sid null": lambda f: f.signed(sid=None),
    "no jti": lambda f: f.signed(jti=...),
    "no role": lambda f: f.signed(role=...),
    "role root": lambda f: f.signed(role="root"),
    "role list": lambda f: f.signed(role=["admin"]),
    "refresh token": lambda f: f.alice.refresh,
    "too long": lambda f: f.signed(more="x" * 4096),
    "3000 deep header": lambda f: f.with_header(b"[" * 3_000),
    "3000 deep payload": lambda f: f".{base64url(b'[' * 3_000).decode()}.".join(f.alice.access.split(".")[::2]),
    "twice": lambda f: f"{f.alice.access}.{f.alice.access}",
    "two tokens": lambda f: f"{f.alice.access} {f.alice.access}",
}


@pytest.fixture(scope="module")
async def with_pair(engines: dict[str, str]) -> AsyncIterator[tuple[Platform, str, str]]:
    """A platform as in production: user-service signs with a private key, all verify with the public one."""
    private, public = new_pair()
    async with (
        sandbox_on(engines) as sandbox,
        platform_on(sandbox, users={"jwt_private_key": private}, jwt_public_key=public) as platform,
    ):
        yield platform, private, public


@dataclass(frozen=True)
class Place:
    """A platform under attack."""

    platform: Platform
    forger: Forger
    client: httpx.AsyncClient

    async def statuses(self, authorization: str) -> dict[str, int]:
        """What this header is worth at the gateway and at each service's own port."""
        found = {}
        for place, path in PLACES.items():
            url = self.platform.direct(place) or self.platform.gateway
            response = await self.client.get(url + path, headers={"Authorization": authorization})
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"
                assert (response.json()["code"], response.headers["cache-control"]) == ("unauthorized", "no-store")
            found[place] = response.status_code
        return found


@pytest.fixture(scope="module", params=["HS256", "ES256"])
async def place(
    request: pytest.FixtureRequest, platform: Platform, with_pair: tuple[Platform, str, str]
) -> AsyncIterator[Place]:
    private, public = README_JWT_SECRET, ""
    if request.param == "ES256":
        platform, private, public = with_pair
    async with httpx.AsyncClient(base_url=platform.gateway, timeout=30) as client:
        yield Place(platform, Forger(await newcomer(client), request.param, private, public), client)


async def test_a_live_token_counts_everywhere_by_whomever_it_is_written(place: Place) -> None:
    """The forger's own signature is the standard's, so what is refused below is refused for its one difference."""
    expected = dict.fromkeys(PLACES, 200) | {"payment-gateway": 404}

    assert await place.statuses(f"Bearer {place.forger.alice.access}") == expected
    assert await place.statuses(f"Bearer {place.forger.signed()}") == expected
    assert await place.statuses(f"bearer {place.forger.signed()}") == expected


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_forged_token_is_worth_nothing_anywhere(place: Place, attack: str) -> None:
    token = ATTACKS[attack](place.forger)

    assert await place.statuses(f"Bearer {token}") == NOWHERE


@pytest.mark.parametrize(
    "scheme", ["", "Bearer \t", "Basic ", "Token ", "Bearer", "Bearer\u00a0", "JWT ", "Bearer Bearer "]
)
async def test_a_token_counts_as_a_bearer_token_only(place: Place, scheme: str) -> None:
    header = scheme.encode("latin-1").decode("latin-1") + place.forger.alice.access
    statuses = set()
    for url in (place.platform.gateway, place.platform.direct("wallet-service")):
        response = await place.client.get(f"{url}/wallets", headers={b"Authorization": header.encode("latin-1")})
        statuses.add(response.status_code)

    assert statuses == {401}


async def test_the_public_key_is_nobodys_secret(with_pair: tuple[Platform, str, str]) -> None:
    platform, private, public = with_pair
    async with httpx.AsyncClient(base_url=platform.gateway, timeout=30) as client:
        place = Place(platform, Forger(await newcomer(client), "ES256", private, public), client)
        der = place.forger.public_der
        for secret in (
            public.encode(),
            public.strip().encode(),
            public.replace("\n", "\\n").encode(),
            public.replace("\n", "\r\n").encode(),
            der,
            base64.b64encode(der),
            der[-65:],
            b"",
            README_JWT_SECRET.encode(),
        ):
            assert await place.statuses(f"Bearer {place.forger.confused(secret)}") == NOWHERE


async def test_a_token_of_the_other_algorithm_counts_nowhere(
    platform: Platform, with_pair: tuple[Platform, str, str]
) -> None:
    """Nobody's token on one platform is a token on the other, whichever way each signs."""
    async with (
        httpx.AsyncClient(base_url=platform.gateway, timeout=30) as by_secret,
        httpx.AsyncClient(base_url=with_pair[0].gateway, timeout=30) as by_pair,
    ):
        alice, bob = await newcomer(by_secret), await newcomer(by_pair)
        assert (await by_pair.get("/wallets", headers=alice.headers)).status_code == 401
        assert (await by_secret.get("/wallets", headers=bob.headers)).status_code == 401
        for client, actor in ((by_pair, alice), (by_secret, bob)):
            response = await client.post("/users/refresh", json={"refresh_token": actor.refresh})
            assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")


@pytest.mark.parametrize("service", INTERNAL)
async def test_a_users_token_opens_no_internal_door(place: Place, admin: Actor, service: str) -> None:
    method, path = INTERNAL[service]
    forger = place.forger
    own = ServiceToken(forger, service)
    for authorization in (
        "",
        f"Bearer {forger.alice.access}",
        f"Bearer {forger.signed(role='admin', aud=service)}",
        f"Bearer {forger.signed(typ='service', aud=service, sub='api-gateway')}",
        admin.headers["Authorization"],
        own.by(README_JWT_SECRET),
        own.by(DEVELOPMENT_SERVICE_SECRET, aud="another-service"),
        own.by(DEVELOPMENT_SERVICE_SECRET, typ="access"),
        own.by(DEVELOPMENT_SERVICE_SECRET, exp=now() - 31),
        own.by(DEVELOPMENT_SERVICE_SECRET, iss="somebody-else"),
    ):
        response = await place.client.request(
            method, place.platform.direct(service) + path, headers={"Authorization": authorization}
        )
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized"), authorization

    right = await place.client.request(
        method, place.platform.direct(service) + path, headers=service_headers("api-gateway", service)
    )
    assert right.status_code in {200, 415, 422}


@dataclass(frozen=True)
class ServiceToken:
    """A service's token as a forger writes one."""

    forger: Forger
    audience: str

    def by(self, secret: str, **changes: Any) -> str:
        claims = {
            "iss": "payment-system",
            "aud": self.audience,
            "sub": "api-gateway",
            "typ": "service",
            "iat": now(),
            "exp": now() + 60,
            "jti": str(new_id()),
        } | changes
        return f"Bearer {jwt.encode(claims, secret, 'HS256')}"


@pytest.mark.parametrize("service", SERVICES)
async def test_a_services_token_speaks_for_no_person(place: Place, service: str) -> None:
    """Neither that of the called service, nor one that says it is a person's."""
    forged = ServiceToken(place.forger, "payment-system-api")
    person = {"sub": str(new_id()), "role": "admin", "sid": str(new_id())}
    for authorization in (
        service_headers("api-gateway", service)["Authorization"],
        service_headers("api-gateway", "payment-system-api")["Authorization"],
        forged.by(DEVELOPMENT_SERVICE_SECRET, **person),
        forged.by(DEVELOPMENT_SERVICE_SECRET, typ="access", **person),
    ):
        assert set((await place.statuses(authorization)).values()) == {401}


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("a" * 2**20, id="1 MB"),
        pytest.param(base64url(b"[" * 100_000).decode() + ".e30.e30", id="100000 deep header"),
        pytest.param("." * 100_000, id="100000 dots"),
    ],
)
async def test_a_token_beyond_all_measure_is_refused_with_its_head(platform: Platform, token: str) -> None:
    for url in (platform.gateway, *(platform.direct(service) for service in SERVICES)):
        answer = await talk(url, head("GET", "/wallets", f"Authorization: Bearer {token}"))

        assert status_of(answer) == 431


@pytest.mark.parametrize("size", [4_097, 30_000])
async def test_a_token_that_is_too_long_is_a_401(place: Place, size: int) -> None:
    good = place.forger.alice.access

    assert await place.statuses(f"Bearer {good}{'A' * (size - len(good))}") == NOWHERE


async def test_two_authorizations_are_none(place: Place) -> None:
    """Two readers could choose differently; nobody is to choose."""
    good = f"Authorization: Bearer {place.forger.alice.access}"
    for first, second in ((good, "Authorization: Bearer x"), ("Authorization: Bearer x", good), (good, good)):
        through = await talk(place.platform.gateway, head("GET", "/wallets", first, second))
        around = await talk(place.platform.direct("wallet-service"), head("GET", "/wallets", first, second))

        assert (status_of(through), status_of(around)) == (400, 401)


async def test_a_good_token_has_one_spelling(place: Place) -> None:
    """Otherwise one token fills the memory of those that were verified with thousands of itself."""
    first, second, third = place.forger.alice.access.split(".")
    for token in (
        f"{first}=.{second}.{third}",
        f"{first}.{second}.{third}=",
        f"{first}.{second}.{third}==",
        f"{first}.{second}.{third}!",
        f"{first}.{second}.{third}!!!!",
        f"{first}.{second}.{third}{'*' * 3000}",
        f"{first}.{second}.{third[:10]}.{third[10:]}",
        f"{first}.{second}.{third[:10]} {third[10:]}",
        f"{first}.{second}.\t{third}",
        f"{first}.{second}.{third[:-1]}{ALPHABET[ALPHABET.index(third[-1]) ^ 1]}",  # bits that no byte needs
    ):
        assert await place.statuses(f"Bearer {token}") == NOWHERE, token
