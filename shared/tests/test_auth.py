"""Tokens: who may speak for whom, and every way of pretending that was thought of."""

import base64
import hmac
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.auth import Principal, ServiceTokens, UserTokens, bearer_token
from shared.errors import UnauthorizedError
from shared.ids import new_id
from shared.testing.tokens import access_claims, base64url

SECRET = "a secret that only the tests know, 40 bytes"
HEADER = {"alg": "HS256", "typ": "JWT"}
ALICE, SESSION = new_id(), new_id()

users = UserTokens(SECRET)


def claims(**changes: Any) -> dict[str, Any]:
    return access_claims(ALICE, SESSION, **changes)


def signed(payload: Any, header: Any = HEADER, secret: bytes = SECRET.encode(), digest: str = "sha256") -> str:
    """A token by RFC 7515 alone; `header` and `payload` may be bytes as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    head = b".".join(base64url(part) for part in parts)
    return (head + b"." + base64url(hmac.digest(secret, head, digest))).decode()


def assert_refused(token: str) -> None:
    with pytest.raises(UnauthorizedError) as refused:
        users.verify(token)
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert refused.value.headers == {"WWW-Authenticate": "Bearer"}
    with pytest.raises(UnauthorizedError):
        ServiceTokens(SECRET, "wallet-service").verify(token)


@pytest.mark.parametrize("role", ["user", "merchant", "admin"])
def test_an_issued_token_says_who_calls(role: str) -> None:
    assert users.verify(users.issue(ALICE, role, SESSION)) == Principal(ALICE, role, SESSION)


def test_the_tests_own_signature_is_the_standards() -> None:
    assert users.verify(signed(claims())) == Principal(ALICE, "user", SESSION)


def test_an_issued_token_has_every_claim_and_ends_after_fifteen_minutes() -> None:
    header, payload, _ = users.issue(ALICE, "user", SESSION).split(".")
    found = json.loads(base64.urlsafe_b64decode(payload + "=="))

    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"alg": "HS256", "typ": "JWT"}
    assert found.keys() == {"iss", "aud", "sub", "typ", "iat", "exp", "jti", "role", "sid"}
    assert found["exp"] - found["iat"] == 15 * 60
    assert (found["iss"], found["aud"], found["typ"]) == ("payment-system", "payment-system-api", "access")


def test_no_two_tokens_are_the_same() -> None:
    assert users.issue(ALICE, "user", SESSION) != users.issue(ALICE, "user", SESSION)


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "", "HS384", "HS512", "RS256", "ES256", "hs256", None]
)
def test_another_algorithm_is_refused_even_with_the_right_key(alg: str | None) -> None:
    digest = {"HS384": "sha384", "HS512": "sha512"}.get(alg or "", "sha256")

    assert_refused(signed(claims(), {"alg": alg, "typ": "JWT"}, digest=digest))


@pytest.mark.parametrize("alg", ["none", "HS256"])
def test_a_token_without_a_signature_is_refused(alg: str) -> None:
    token = signed(claims(), {"alg": alg, "typ": "JWT"})

    assert_refused(token.rpartition(".")[0] + ".")
    assert_refused(token.rpartition(".")[0])


@pytest.mark.parametrize("secret", [b"", b"secret", SECRET[:-1].encode(), SECRET.encode() + b"\n", b"\x00" * 32])
def test_a_forged_key_is_refused(secret: bytes) -> None:
    assert_refused(signed(claims(), secret=secret))


@pytest.mark.parametrize("junk", ["=", "==", "!", "*" * 3_000, " ", "\n", "é"])
def test_a_token_has_one_spelling(junk: str) -> None:
    """Base64 passes over what does not belong there, and so one token could be remembered as thousands."""
    head, payload, signature = signed(claims()).split(".")

    for spelled in (f"{head}{junk}.{payload}.{signature}", f"{head}.{payload}.{signature}{junk}"):
        assert_refused(spelled)
    assert_refused(f"{head}.{payload}.{junk}{signature}")


def test_the_bits_of_a_signature_that_no_byte_needs_are_none_to_play_with() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = signed(claims())

    assert_refused(token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1])


@given(position=st.integers(0, 10_000), bit=st.integers(0, 5))
def test_one_changed_letter_breaks_the_signature(position: int, bit: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = signed(claims())
    position %= token.rindex(".")  # the last letters of a signature carry spare bits
    if token[position] == ".":
        return
    changed = alphabet[alphabet.index(token[position]) ^ (1 << bit)]

    assert_refused(token[:position] + changed + token[position + 1 :])


@pytest.mark.parametrize("missing", ["iss", "aud", "sub", "typ", "iat", "exp", "jti", "role", "sid"])
def test_every_claim_is_required(missing: str) -> None:
    assert_refused(signed(claims(**{missing: ...})))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iss", "somebody-else"),
        ("iss", ""),
        ("iss", None),
        ("iss", ["payment-system"]),
        ("iss", {"payment-system": 1}),
        ("aud", "wallets"),
        ("aud", ""),
        ("aud", None),
        ("aud", 1),
        ("aud", {}),
        ("aud", ["payment-system-api"]),
        ("aud", ["payment-system-api", "wallet-service"]),
        ("sub", "alice"),
        ("sub", ""),
        ("sub", None),
        ("sub", 7),
        ("sub", [str(ALICE)]),
        ("typ", "refresh"),
        ("typ", "service"),
        ("typ", "ACCESS"),
        ("typ", None),
        ("typ", ["access"]),
        ("jti", None),
        ("jti", 7),
        ("jti", {}),
        ("role", "root"),
        ("role", "ADMIN"),
        ("role", None),
        ("role", ["admin"]),
        ("role", {"admin": 1}),
        ("role", True),
        ("sid", ""),
        ("sid", "session"),
        ("sid", None),
        ("sid", 7),
        ("sid", [str(SESSION)]),
        ("sid", {}),
        ("exp", 0),
        ("exp", -1),
        ("exp", None),
        ("exp", "soon"),
        ("exp", "99999999999"),
        ("exp", []),
        ("exp", {}),
        ("exp", True),
        ("exp", float("nan")),
        ("exp", float("inf")),
        ("iat", None),
        ("iat", "now"),
        ("iat", "1"),
        ("iat", True),
        ("iat", 1.5),
        ("iat", []),
        ("iat", {}),
        ("iat", float("nan")),
        ("iat", float("inf")),
        ("iat", 10**400),
        ("nbf", 2**40),
        ("nbf", "x"),
    ],
)
def test_a_claim_of_the_wrong_value_or_type_is_refused_although_the_signature_is_right(name: str, value: Any) -> None:
    assert_refused(signed(claims(**{name: value})))


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"exp": -20}, True),
        ({"exp": -40}, False),
        ({"iat": 20}, True),
        ({"iat": 40}, False),
        ({"iat": 7200, "exp": 8000}, False),
        ({"iat": -7200, "exp": -6300}, False),
    ],
)
def test_clocks_may_differ_by_thirty_seconds(changes: dict[str, int], accepted: bool) -> None:
    now = int(time.time())
    token = signed(claims(**{name: now + seconds for name, seconds in changes.items()}))

    if accepted:
        assert users.verify(token) == Principal(ALICE, "user", SESSION)
    else:
        assert_refused(token)


@pytest.mark.parametrize(
    "more",
    [
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"jku": "http://169.254.169.254/keys"},
        {"x5u": "http://attacker.example/cert"},
        {"x5c": ["AAAA"]},
        {"kid": "../../../dev/null"},
        {"kid": "' union select 'key' --"},
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"cty": "JWT"},
        {"zip": "DEF"},
        {"typ": "jwt"},
        {"typ": None},
    ],
    ids=lambda more: "-".join(more),
)
def test_a_header_that_says_how_to_verify_it_is_refused(more: dict[str, Any]) -> None:
    assert_refused(signed(claims(), HEADER | more))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b'"HS256"',
        b"{",
        b"\xff\xfe",
        b"[" * 2_900,
        b'{"a":' * 500,
        b"{}",
        b'{"alg":"HS256"}',
        b"1" * 2_900,
    ],
    ids=range(11),
)
def test_a_header_that_is_none_is_refused(header: bytes) -> None:
    assert_refused(signed(claims(), header))


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b'"x"', b"1", b"{", b"\xff\xfe", b"[" * 2_900, b'{"a":' * 500, b"{}", b"9" * 2_900, b"NaN"],
    ids=range(12),
)
def test_a_signed_payload_that_is_no_set_of_claims_is_refused(payload: bytes) -> None:
    assert_refused(signed(payload))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b.c.d.e",
        "null",
        "Bearer x",
        " ",
        "\x00",
        "\n",
        "=" * 100,
        "é.é.é",
        "\ud800",
        "😀",
        "１.２.３",
        pytest.param("a" * 2**20, id="one-megabyte"),
        pytest.param("." * 4096, id="dots"),
        pytest.param(signed(claims(), b"[" * 100_000), id="100000-deep"),
        pytest.param(signed(claims(more="x" * 2**20)), id="good-but-one-megabyte"),
        pytest.param(signed(claims()) + "é", id="good-then-not-ascii"),
        pytest.param(signed(claims()) + ".", id="good-then-dot"),
        pytest.param(signed(claims()) + "." + signed(claims()), id="twice"),
    ],
)
def test_garbage_is_refused(token: str) -> None:
    assert_refused(token)


@given(token=st.text(max_size=300) | st.from_regex(r"\A[A-Za-z0-9_=-]{0,40}(\.[A-Za-z0-9_=-]{0,40}){0,4}\Z"))
def test_any_text_is_refused(token: str) -> None:
    assert_refused(token)


@given(
    payload=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2),
        max_leaves=3,
    ),
    name=st.sampled_from(["iss", "aud", "sub", "typ", "jti", "role", "sid", "nbf", "exp", "iat"]),
)
def test_any_value_of_a_claim_is_accepted_or_refused_and_breaks_nothing(payload: Any, name: str) -> None:
    try:
        principal = users.verify(signed(claims(**{name: payload})))
    except UnauthorizedError:
        return
    assert principal == Principal(ALICE, "user", SESSION)


def test_a_service_proves_its_name_to_the_one_it_calls_and_to_no_other() -> None:
    token = ServiceTokens(SECRET, "transaction-service").issue("wallet-service")

    assert ServiceTokens(SECRET, "wallet-service").verify(token) == "transaction-service"
    for other in ("payment-gateway", "transaction-service", ""):
        with pytest.raises(UnauthorizedError):
            ServiceTokens(SECRET, other).verify(token)


def test_a_service_uses_one_token_for_many_calls_and_another_for_each_callee() -> None:
    tokens = ServiceTokens(SECRET, "transaction-service")

    assert tokens.issue("wallet-service") == tokens.issue("wallet-service")
    assert tokens.issue("wallet-service") != tokens.issue("payment-gateway")


def test_a_token_of_a_person_is_none_of_a_service_and_the_other_way_even_under_one_secret() -> None:
    service = ServiceTokens(SECRET, "payment-system-api")

    with pytest.raises(UnauthorizedError):
        service.verify(users.issue(ALICE, "admin", SESSION))
    with pytest.raises(UnauthorizedError):
        users.verify(service.issue("payment-system-api"))
    with pytest.raises(UnauthorizedError):
        users.verify(signed(claims(typ="service")))
    with pytest.raises(UnauthorizedError):
        users.verify(signed(claims(typ="refresh")))


def test_one_secret_does_not_open_the_other_kind_of_door() -> None:
    people, services = UserTokens("p" * 40), ServiceTokens("s" * 40, "wallet-service")

    with pytest.raises(UnauthorizedError):
        services.verify(people.issue(ALICE, "user", SESSION))
    with pytest.raises(UnauthorizedError):
        people.verify(services.issue("wallet-service"))


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER abc"])
def test_the_scheme_is_bearer_in_any_case(header: str) -> None:
    assert bearer_token(header) == "abc"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic abc", "abc", " Bearer abc", "Bearer\tabc", "Token abc"]
)
def test_another_authorization_header_is_refused(header: str) -> None:
    with pytest.raises(UnauthorizedError):
        bearer_token(header)
