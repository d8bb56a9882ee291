"""What payment-gateway is told from outside."""

from shared.settings import DatabaseSettings


class PaymentSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "payment-gateway"
    schema_name = "payments"
