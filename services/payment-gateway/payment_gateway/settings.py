"""What payment-gateway is told from outside."""

from pydantic import Field

from shared.settings import DatabaseSettings


class PaymentSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "payment-gateway"
    schema_name = "payments"

    sandbox_settle_seconds: float = Field(default=2.0, ge=0)
    sandbox_reversal_seconds: float = Field(default=2.0, ge=0)
