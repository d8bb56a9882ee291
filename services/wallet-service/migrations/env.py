"""Alembic's way into this service's schema."""

from shared.database import run_migrations
from shared.settings import load
from wallet_service.models import metadata
from wallet_service.settings import WalletSettings

run_migrations(load(WalletSettings), metadata)
