"""Alembic's way into this service's schema."""

from shared.database import run_migrations
from shared.settings import load
from user_service.models import metadata
from user_service.settings import UserSettings

run_migrations(load(UserSettings), metadata)
