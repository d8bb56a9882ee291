"""What transaction-service is told from outside."""

from shared.settings import DatabaseSettings, ServiceUrl


class TransactionSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "transaction-service"
    schema_name = "transactions"

    wallet_service_url: ServiceUrl = "http://localhost:8002"
    payment_gateway_url: ServiceUrl = "http://localhost:8004"
