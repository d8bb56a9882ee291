"""What user-service is told from outside."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from shared.auth import KeyPair, UserTokens
from shared.settings import DatabaseSettings, ServiceUrl
from shared.signing_keys import private_number, private_pem, public_of


def _private_key(given: SecretStr) -> SecretStr:
    pem = given.get_secret_value()
    return SecretStr(private_pem(pem) if pem.strip() else "")


class UserSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "user-service"
    schema_name = "users"

    jwt_private_key: Annotated[SecretStr, AfterValidator(_private_key)] = SecretStr("")
    access_token_expire_minutes: int = Field(default=15, ge=1, le=24 * 60)
    refresh_token_expire_days: int = Field(default=30, ge=1, le=365)
    bcrypt_rounds: int = Field(default=12, ge=4, le=16)
    wallet_service_url: ServiceUrl = "http://localhost:8002"

    @model_validator(mode="after")
    def _refuse_half_a_pair(self) -> Self:
        private = self.jwt_private_key.get_secret_value()
        if bool(private) != bool(self.jwt_public_key):
            raise ValueError("JWT_PRIVATE_KEY and JWT_PUBLIC_KEY must be set together; `make keys` makes a pair.")
        if private and public_of(private) != self.jwt_public_key:
            raise ValueError("JWT_PRIVATE_KEY and JWT_PUBLIC_KEY are not a pair; `make keys` makes one.")
        return self

    def access_tokens(self) -> UserTokens:
        """What issues and verifies access tokens."""
        private = self.jwt_private_key.get_secret_value()
        key = KeyPair(self.jwt_public_key, private) if private else self.jwt_secret_key.get_secret_value()
        return UserTokens(key, self.access_token_expire_minutes * 60)

    def signing_secret(self) -> bytes:
        """The secret that access tokens are signed with, for other keys to be derived from."""
        private = self.jwt_private_key.get_secret_value()
        return private_number(private) if private else self.jwt_secret_key.get_secret_value().encode()
