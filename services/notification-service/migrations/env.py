"""Alembic's way into this service's schema."""

from notification_service.models import metadata
from notification_service.settings import SchemaSettings
from shared.database import run_migrations
from shared.settings import load

run_migrations(load(SchemaSettings), metadata)
