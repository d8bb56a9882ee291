"""What notification-service is told from outside."""

from shared.settings import DatabaseSettings


class NotificationSettings(DatabaseSettings):
    """Read from the environment and the root `.env`."""

    service = "notification-service"
    schema_name = "notifications"
