"""ES256: what user-service alone can sign and everybody can verify, and what key confusion comes to."""

import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from shared.auth import KeyPair, Principal, ServiceTokens, UserTokens
from shared.errors import UnauthorizedError
from shared.ids import new_id
from shared.settings import README_JWT_SECRET, Settings, SettingsError, load
from shared.signing_keys import main, new_pair, private_number, private_pem, public_of, public_pem
from shared.testing.tokens import access_claims, base64url

ALICE, SESSION = new_id(), new_id()
SECRET = "a secret that only the tests know, 40 bytes"
PRIVATE, PUBLIC = new_pair()

issuer = UserTokens(KeyPair(PUBLIC, PRIVATE))
verifier = UserTokens(KeyPair(PUBLIC))


def claims(**changes: Any) -> dict[str, Any]:
    return access_claims(ALICE, SESSION, **changes)


def by_hmac(secret: bytes, alg: str, payload: dict[str, Any] | None = None) -> str:
    """A token by RFC 7515 alone, under any secret and whatever algorithm it claims."""
    header = {"alg": alg, "typ": "JWT"}
    head = b".".join(base64url(json.dumps(part).encode()) for part in (header, payload or claims()))
    return (head + b"." + base64url(hmac.digest(secret, head, hashlib.sha256))).decode()


def by_pyjwt(payload: dict[str, Any], key: Any = PRIVATE, headers: dict[str, Any] | None = None) -> str:
    return jwt.encode(payload, key, algorithm="ES256", headers=headers)


def assert_refused(token: str, tokens: UserTokens = verifier) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.verify(token)


def test_what_one_signs_all_can_verify() -> None:
    for tokens in (issuer, verifier):
        assert tokens.verify(issuer.issue(ALICE, "merchant", SESSION)) == Principal(ALICE, "merchant", SESSION)


def test_whoever_has_only_the_public_key_signs_nothing() -> None:
    with pytest.raises(RuntimeError, match="private key"):
        verifier.issue(ALICE, "user", SESSION)


def test_another_implementation_reads_what_we_write_and_the_other_way() -> None:
    ours = issuer.issue(ALICE, "user", SESSION)
    under_a_secret = UserTokens(SECRET).issue(ALICE, "user", SESSION)
    checks: dict[str, Any] = {"audience": "payment-system-api", "issuer": "payment-system"}

    for token, key, algorithm in ((ours, PUBLIC, "ES256"), (under_a_secret, SECRET, "HS256")):
        read = jwt.decode(token, key, algorithms=[algorithm], **checks)
        assert (read["sub"], read["role"], read["sid"]) == (str(ALICE), "user", str(SESSION))
        assert jwt.get_unverified_header(token) == {"alg": algorithm, "typ": "JWT"}
    assert verifier.verify(by_pyjwt(claims())) == Principal(ALICE, "user", SESSION)
    theirs = jwt.encode(claims(), SECRET, algorithm="HS256")
    assert UserTokens(SECRET).verify(theirs) == Principal(ALICE, "user", SESSION)


VECTORS: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(time.time()) - 60},
    "no exp": {"exp": ...},
    "no aud": {"aud": ...},
    "other aud": {"aud": "wallet-service"},
    "no iss": {"iss": ...},
    "other iss": {"iss": "somebody-else"},
    "future iat": {"iat": int(time.time()) + 3600},
    "no iat": {"iat": ...},
}


@pytest.mark.parametrize("changes", VECTORS.values(), ids=VECTORS)
def test_what_another_implementation_refuses_is_refused_here(changes: dict[str, Any]) -> None:
    payload = claims(**changes)
    required = ["exp", "aud", "iss", "iat"]
    for token, key, algorithm, tokens in (
        (by_pyjwt(payload), PUBLIC, "ES256", verifier),
        (jwt.encode(payload, SECRET, algorithm="HS256"), SECRET, "HS256", UserTokens(SECRET)),
    ):
        with pytest.raises(jwt.PyJWTError):
            jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience="payment-system-api",
                issuer="payment-system",
                leeway=30,
                options={"require": required},
            )
        assert_refused(token, tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": ...},
        {"typ": "refresh"},
        {"typ": "service"},
        {"sid": ...},
        {"sid": "x"},
        {"jti": ...},
        {"sub": ...},
        {"sub": "alice"},
        {"role": "root"},
    ],
    ids=str,
)
def test_what_only_we_ask_for_is_asked_for(changes: dict[str, Any]) -> None:
    assert_refused(by_pyjwt(claims(**changes)))


def _forms_of_the_public_key() -> dict[str, bytes]:
    key = load_pem_public_key(PUBLIC.encode())
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "pem": PUBLIC.encode(),
        "pem-stripped": PUBLIC.strip().encode(),
        "pem-crlf": PUBLIC.replace("\n", "\r\n").encode(),
        "pem-literal-newlines": PUBLIC.replace("\n", "\\n").encode(),
        "pem-body": "".join(PUBLIC.splitlines()[1:-1]).encode(),
        "der": der,
        "point": key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
        "compressed": key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint),
        "der-sha256": hashlib.sha256(der).digest(),
        "empty": b"",
    }


@pytest.mark.parametrize("alg", ["HS256", "ES256"])
@pytest.mark.parametrize("form", _forms_of_the_public_key())
def test_the_public_key_is_no_secret_to_sign_with(form: str, alg: str) -> None:
    assert_refused(by_hmac(_forms_of_the_public_key()[form], alg))


def test_each_mode_refuses_the_tokens_of_the_other() -> None:
    assert_refused(UserTokens(SECRET).issue(ALICE, "admin", SESSION))
    assert_refused(issuer.issue(ALICE, "admin", SESSION), UserTokens(SECRET))
    assert_refused(by_hmac(README_JWT_SECRET.encode(), "HS256"))
    with pytest.raises(UnauthorizedError):
        ServiceTokens(SECRET, "payment-system-api").verify(issuer.issue(ALICE, "admin", SESSION))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
def test_a_token_without_a_signature_is_refused(alg: str) -> None:
    header = base64url(json.dumps({"alg": alg, "typ": "JWT"}).encode()).decode()
    good = issuer.issue(ALICE, "user", SESSION)
    payload = good.split(".")[1]

    assert_refused(f"{header}.{payload}.")
    assert_refused(f"{header}.{payload}")
    assert_refused(f"{header}.{payload}.{good.split('.')[2]}")
    assert_refused(good.rpartition(".")[0] + ".")


@pytest.mark.parametrize(
    "headers",
    [
        {"kid": "1"},
        {"jku": "http://169.254.169.254/keys"},
        {"x5u": "http://attacker.example/cert"},
        {"crit": ["exp"]},
        {"b64": False},
        {"typ": "at+jwt"},
    ],
    ids=str,
)
def test_a_header_with_advice_on_keys_is_refused(headers: dict[str, Any]) -> None:
    header = {"alg": "ES256", "typ": "JWT"} | headers
    head = b".".join(base64url(json.dumps(part).encode()) for part in (header, claims()))
    signature = jwt.get_algorithm_by_name("ES256").sign(head, jwt.get_algorithm_by_name("ES256").prepare_key(PRIVATE))

    assert_refused((head + b"." + base64url(signature)).decode())


def test_a_key_that_comes_along_is_refused() -> None:
    stranger, its_public = new_pair()
    jwk = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(load_pem_public_key(its_public.encode())))

    assert_refused(by_pyjwt(claims(), stranger))
    assert_refused(by_pyjwt(claims(), stranger, {"jwk": jwk}))


def test_zeros_are_no_signature() -> None:
    """The trivial pair of r and s that some verifiers of ECDSA let pass (CVE-2022-21449)."""
    head = issuer.issue(ALICE, "user", SESSION).rpartition(".")[0]

    for signature in (b"", b"\x00" * 64, b"\x00" * 63, b"\x00" * 31 + b"\x01" + b"\x00" * 31 + b"\x01"):
        assert_refused(f"{head}.{base64url(signature).decode()}")


@pytest.mark.parametrize("size", [4097, 2**20])
def test_a_long_token_is_refused_before_it_is_read(size: int) -> None:
    assert_refused(by_pyjwt(claims(more="x" * size)))


def test_a_deep_header_is_refused() -> None:
    assert_refused(base64url(b"[" * 100_000).decode() + "." + issuer.issue(ALICE, "user", SESSION).partition(".")[2])


# ---------------------------------------------------------------------------------------------- keys and settings


def test_a_key_may_be_written_in_one_line() -> None:
    assert public_pem(PUBLIC.replace("\n", "\\n")) == public_pem(PUBLIC) == PUBLIC
    assert private_pem(PRIVATE.replace("\n", "\\n")) == PRIVATE
    assert public_of(PRIVATE) == PUBLIC
    assert len(private_number(PRIVATE)) == 32
    assert Settings(_env_file=None, jwt_public_key=PUBLIC.replace("\n", "\\n")).jwt_public_key == PUBLIC


def _wrong_keys() -> dict[str, str]:
    other_curve = ec.generate_private_key(ec.SECP384R1())
    rsa_key = rsa.generate_private_key(65537, 2048)
    return {
        "text": "a key",
        "private": PRIVATE,
        "half": PUBLIC[:-40],
        "p-384": other_curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "rsa": rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "private-rsa": rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "with-password": ec.generate_private_key(ec.SECP256R1())
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        .decode(),
    }


@pytest.mark.parametrize("kind", _wrong_keys())
def test_what_is_no_public_key_stops_the_start_with_one_sentence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = _wrong_keys()[kind]
    monkeypatch.setenv("JWT_PUBLIC_KEY", wrong)
    monkeypatch.setenv("ENV_FILE", "")

    with pytest.raises(SettingsError) as refused:
        load(Settings)

    assert str(refused.value) == (
        "JWT_PUBLIC_KEY: Must be a public key on the curve P-256 in PEM; `make keys` makes a pair."
    )
    with pytest.raises(ValueError, match="Must be a private key"):
        private_pem(wrong if kind != "private" else PUBLIC)


def test_with_a_key_pair_the_known_secret_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("SERVICE_SECRET_KEY", "s" * 32)
    monkeypatch.setenv("JWT_SECRET_KEY", README_JWT_SECRET)
    with pytest.raises(SettingsError, match="JWT_SECRET_KEY must be set to a secret of at least 32 bytes"):
        load(Settings)

    monkeypatch.setenv("JWT_PUBLIC_KEY", PUBLIC)

    assert load(Settings).jwt_public_key == PUBLIC


def test_make_keys_prints_a_pair_that_an_env_file_can_hold(
    capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main()

    printed = capsys.readouterr().out
    env = tmp_path / ".env"
    env.write_text(printed)
    monkeypatch.setenv("ENV_FILE", str(env))
    monkeypatch.delenv("JWT_PUBLIC_KEY", raising=False)
    private = next(line for line in printed.splitlines() if line.startswith("JWT_PRIVATE_KEY="))
    assert len([line for line in printed.splitlines() if not line.startswith("#")]) == 2
    pem = private.removeprefix("JWT_PRIVATE_KEY=").strip('"')
    pair = KeyPair(load(Settings).jwt_public_key, private_pem(pem))
    assert pair.public_pem == public_of(pair.private_pem)
    assert PRIVATE not in repr(KeyPair(PUBLIC, PRIVATE))
