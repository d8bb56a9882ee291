"""ES256 key pairs, by which one service signs what all others can only verify.

`python -m shared.signing_keys` prints a fresh pair as lines for a `.env`.
"""

import sys
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

_NOT_PUBLIC: Final = "Must be a public key on the curve P-256 in PEM; `make keys` makes a pair."
_NOT_PRIVATE: Final = "Must be a private key on the curve P-256 in PEM without a password; `make keys` makes a pair."


def public_pem(text: str) -> str:
    """The public key in `text`, PEM whose line ends may be written `\\n`, in its one form; raises ValueError."""
    try:
        key = load_pem_public_key(_lines(text))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(_NOT_PUBLIC) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(_NOT_PUBLIC)
    return _public(key)


def private_pem(text: str) -> str:
    """The private key in `text`, as `public_pem`; raises ValueError."""
    return _private(_load_private(text))


def public_of(private: str) -> str:
    """The public key that belongs to a private one; raises ValueError."""
    return _public(_load_private(private).public_key())


def private_number(private: str) -> bytes:
    """The 32 bytes that the private key is, however its PEM is written; raises ValueError."""
    return _load_private(private).private_numbers().private_value.to_bytes(32)


def new_pair() -> tuple[str, str]:
    """A fresh private key and its public one, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _private(key), _public(key.public_key())


def _load_private(text: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(_lines(text), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(_NOT_PRIVATE) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(_NOT_PRIVATE)
    return key


def _lines(text: str) -> bytes:
    return text.replace("\\n", "\n").encode()


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _public(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def main() -> None:
    """Print a fresh pair, each key in one line of a `.env`."""
    private, public = new_pair()
    for name, pem, whose in (
        ("JWT_PRIVATE_KEY", private, "user-service alone"),
        ("JWT_PUBLIC_KEY", public, "every service"),
    ):
        one_line = pem.replace("\n", "\\n")
        sys.stdout.write(f'# for {whose}\n{name}="{one_line}"\n')


if __name__ == "__main__":
    main()
