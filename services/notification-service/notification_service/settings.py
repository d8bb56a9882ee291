"""What notification-service is told from outside."""

from email.errors import MessageError
from email.headerregistry import Address
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from shared.settings import ROOT, DatabaseSettings, ServiceUrl

DEVELOPMENT_SENDER: Final = "no-reply@payment-system.example"


def _address(value: str) -> str:
    try:
        address = Address(addr_spec=value)
    except (ValueError, IndexError, MessageError):
        raise ValueError("Must be an e-mail address.") from None
    if not (address.username and address.domain and value.isascii()):
        raise ValueError("Must be an e-mail address.")
    return value


def _line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("Must be one line of text.")
    return value


class SchemaSettings(DatabaseSettings):
    """What a migration has to know; it sends nothing."""

    service: ClassVar[str] = "notification-service"
    schema_name: ClassVar[str] = "notifications"


class NotificationSettings(SchemaSettings):
    """Read from the environment and the root `.env`."""

    # Without a host, mails are written to the folder.
    smtp_host: str = ""
    smtp_port: int = Field(default=1025, ge=1, le=65535)
    smtp_username: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    mail_folder: Path = ROOT / ".run" / "mail"
    mail_from: Annotated[str, AfterValidator(_address)] = DEVELOPMENT_SENDER
    mail_from_name: Annotated[str, Field(max_length=100), AfterValidator(_line)] = "Payment System"
    mail_preferences_link: Annotated[str, Field(pattern=r"^(https?://[!-~]+)?$")] = ""

    sms_provider: Literal["none", "console", "twilio"] = "console"
    twilio_account_sid: Annotated[str, Field(pattern=r"^[A-Za-z0-9]*$")] = ""
    twilio_auth_token: SecretStr = SecretStr("")
    twilio_from: str = ""
    twilio_api_url: ServiceUrl = "https://api.twilio.com"

    notification_retry_seconds: float = Field(default=5.0, gt=0, le=3600)
    notification_retry_max_seconds: float = Field(default=300.0, gt=0, le=86_400)
    notification_give_up_hours: float = Field(default=24.0, gt=0, le=168)
    notification_keep_days: int = Field(default=90, ge=1, le=3650)
    notification_per_second: int = Field(default=20, ge=1, le=1000)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.sms_provider == "twilio" and not (
            self.twilio_account_sid and self.twilio_auth_token.get_secret_value() and self.twilio_from
        ):
            raise ValueError("TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and TWILIO_FROM must be set for Twilio.")
        if self.environment == "development":
            return self
        if not self.smtp_host or self.mail_from == DEVELOPMENT_SENDER:
            raise ValueError(f"SMTP_HOST and MAIL_FROM must be set when ENVIRONMENT is {self.environment}.")
        if self.smtp_username and self.smtp_security == "none":
            raise ValueError(
                "SMTP_SECURITY must be starttls or tls where SMTP_USERNAME is set: the password is secret."
            )
        if self.sms_provider == "console":
            raise ValueError(f"SMS_PROVIDER must be twilio or none when ENVIRONMENT is {self.environment}.")
        return self
