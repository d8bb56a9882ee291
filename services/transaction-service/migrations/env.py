"""Alembic's way into this service's schema."""

from shared.database import run_migrations
from shared.settings import load
from transaction_service.models import metadata
from transaction_service.settings import TransactionSettings

run_migrations(load(TransactionSettings), metadata)
