"""Tables of the schema `notifications`."""

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase

from shared.inbox import inbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="notifications")


metadata = Base.metadata
inbox = inbox_table(metadata)
