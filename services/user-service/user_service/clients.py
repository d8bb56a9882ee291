"""What user-service asks of other services."""

from uuid import UUID

from shared.errors import UnavailableError
from shared.http.client import ServiceCallError, ServiceClient, ServiceConflictError
from user_service.domain import WalletNotEmptyError


class WalletClient:
    """wallet-service."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def close_all_of(self, user_id: UUID) -> None:
        """Close a person's wallets, all or none; may be repeated. Raises WalletNotEmptyError, UnavailableError."""
        try:
            await self._client.post(f"/internal/people/{user_id}/close", {})
        except ServiceConflictError as error:
            if error.code == "wallet_not_empty":
                raise WalletNotEmptyError from None
            raise UnavailableError from error
        except ServiceCallError as error:
            raise UnavailableError from error
