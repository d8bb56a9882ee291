"""Alembic's way into this service's schema."""

from payment_gateway.models import metadata
from payment_gateway.settings import PaymentSettings
from shared.database import run_migrations
from shared.settings import load

run_migrations(load(PaymentSettings), metadata)
