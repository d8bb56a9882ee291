"""What transaction-service is told from outside."""

from typing import Annotated

from pydantic import Field

from shared.settings import DatabaseSettings, ServiceUrl

MAX_FEE_BPS = 5000  # above a half, a fee of a single minor unit could be all of it


class TransactionSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "transaction-service"
    schema_name = "transactions"

    wallet_service_url: ServiceUrl = "http://localhost:8002"
    payment_gateway_url: ServiceUrl = "http://localhost:8004"
    payment_fee_bps: Annotated[int, Field(ge=0, le=MAX_FEE_BPS)] = 0
