"""What wallet-service is told from outside."""

from shared.settings import DatabaseSettings


class WalletSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "wallet-service"
    schema_name = "wallets"
