"""Settings that every service shares, read once from the environment and a root `.env`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.signing_keys import public_pem

if TYPE_CHECKING:
    from sqlalchemy import URL

ROOT: Final = Path(__file__).resolve().parent.parent

README_JWT_SECRET: Final = "your-super-secret-jwt-key-change-in-production"  # noqa: S105 - refused in production
DEVELOPMENT_SERVICE_SECRET: Final = "development-only-service-secret-change-me"  # noqa: S105 - same
README_POSTGRES_PASSWORD: Final = "paymentpass"  # noqa: S105 - same
README_MONGO_PASSWORD: Final = "mongopass"  # noqa: S105 - same
MIN_SECRET_BYTES: Final = 32


class SettingsError(Exception):
    """A setting that stops the start; the text says which one and what to do."""


def _public_key(pem: str) -> str:
    return public_pem(pem) if pem.strip() else ""


def _no_trailing_slash(url: str) -> str:
    return url.rstrip("/")


SettingsT = TypeVar("SettingsT", bound="Settings")
ServiceUrl = Annotated[str, AfterValidator(_no_trailing_slash)]


def env_file() -> Path | None:
    """The `.env` to read: `ENV_FILE` names another one, and an empty `ENV_FILE` none."""
    named = os.environ.get("ENV_FILE")
    if named is None:
        return ROOT / ".env"
    return Path(named) if named else None


class Settings(BaseSettings):
    """What all services read. The environment wins over `.env`; one `.env` serves all services."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8")

    service: ClassVar[str]  # "wallet-service"

    environment: Literal["development", "staging", "production"] = "development"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    jwt_secret_key: SecretStr = SecretStr(README_JWT_SECRET)
    jwt_public_key: Annotated[str, AfterValidator(_public_key)] = ""
    service_secret_key: SecretStr = SecretStr(DEVELOPMENT_SERVICE_SECRET)

    user_service_url: ServiceUrl = "http://localhost:8001"

    redis_host: str = "localhost"
    redis_port: int = Field(default=6379, ge=1, le=65535)
    redis_db: int = Field(default=0, ge=0, le=15)
    redis_password: SecretStr = SecretStr("")
    redis_timeout_ms: int = Field(default=50, ge=1, le=5_000)  # whoever waits longer does without
    redis_key_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._:-]*$")

    @model_validator(mode="after")
    def _refuse_known_secrets(self) -> Self:
        if self.environment == "development":
            return self
        known = {"service_secret_key": DEVELOPMENT_SERVICE_SECRET}
        if not self.jwt_public_key:  # with a key pair, the secret signs nothing
            known = {"jwt_secret_key": README_JWT_SECRET} | known
        for name, default in known.items():
            secret = getattr(self, name).get_secret_value()
            if secret == default or len(secret.encode()) < MIN_SECRET_BYTES:
                raise ValueError(
                    f"{name.upper()} must be set to a secret of at least {MIN_SECRET_BYTES} bytes "
                    f"of your own when ENVIRONMENT is {self.environment}."
                )
        return self


class DatabaseSettings(Settings):
    """Settings of a service that has a Postgres schema, an outbox, an audit collection and Kafka."""

    schema_name: ClassVar[str]  # "wallets": the Postgres schema, the topic's and the audit collection's first part

    postgres_user: str = "paymentuser"
    postgres_password: SecretStr = SecretStr(README_POSTGRES_PASSWORD)
    postgres_host: str = "localhost"
    postgres_port: int = Field(default=5432, ge=1, le=65535)
    postgres_db: str = "payment_system"
    migrate_at_start: bool | None = None  # None: in development only

    mongo_user: str = ""
    mongo_password: SecretStr = SecretStr("")
    mongo_host: str = "localhost"
    mongo_port: int = Field(default=27017, ge=1, le=65535)
    mongo_db: str = "payment_logs"

    kafka_bootstrap_servers: str = "localhost:9092"
    kafka_producer_idempotence: bool = True
    kafka_replication_factor: int = Field(default=1, ge=1, le=7)
    kafka_topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")

    @model_validator(mode="after")
    def _refuse_known_passwords(self) -> Self:
        if self.environment == "development":
            return self
        known = {"postgres_password": README_POSTGRES_PASSWORD, "mongo_password": README_MONGO_PASSWORD}
        for name, default in known.items():
            if getattr(self, name).get_secret_value() == default:
                raise ValueError(
                    f"{name.upper()} must be set to a password of your own when ENVIRONMENT is {self.environment}."
                )
        return self

    def postgres_url(self) -> "URL":
        """SQLAlchemy's URL of the database, for asyncpg."""
        from sqlalchemy import URL  # a service without a database does without it

        return URL.create(
            "postgresql+asyncpg",
            username=self.postgres_user,
            password=self.postgres_password.get_secret_value(),
            host=self.postgres_host,
            port=self.postgres_port,
            database=self.postgres_db,
        )

    @property
    def role(self) -> str:
        """The database role that this service's connections take: `wallet_service`."""
        return self.service.replace("-", "_")

    @property
    def topic(self) -> str:
        """The Kafka topic that this service publishes to."""
        return f"{self.kafka_topic_prefix}{self.schema_name}.events"


def load(kind: type[SettingsT]) -> SettingsT:
    """The settings of this kind; raises SettingsError with one sentence a person can act on."""
    try:
        return kind(_env_file=env_file())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        message = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"{name}: {message}" if name else message) from None
