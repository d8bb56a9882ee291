"""What user-service is told from outside."""

from pydantic import Field

from shared.settings import DatabaseSettings


class UserSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "user-service"
    schema_name = "users"

    access_token_expire_minutes: int = Field(default=15, ge=1, le=24 * 60)
    bcrypt_rounds: int = Field(default=12, ge=4, le=16)
