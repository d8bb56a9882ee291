"""What the reconciler is told from outside."""

from pydantic import Field

from shared.settings import DatabaseSettings


class ReconcilerSettings(DatabaseSettings):
    """Read from the environment and the root `.env`. It has no schema; its name is that of the role that it takes."""

    service = "reconciler"
    schema_name = "reconciler"

    reconcile_interval_seconds: float = Field(default=5.0, gt=0)
    reconcile_full_interval_minutes: float = Field(default=30.0, gt=0)
