"""The migrations make exactly the tables that the code describes."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from agent_relay.shared.database import SCHEMA
from agent_relay.shared.database.tables import Base

OF_THE_SAMPLE = "bank_customers"


def _is_ours(_object: Any, name: str | None, *_: Any) -> bool:
    return name != OF_THE_SAMPLE


def test_the_migrated_tables_are_those_of_the_code(database_url: str) -> None:
    options = {"compare_type": True, "compare_server_default": True, "include_object": _is_ours}
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    with create_engine(url, poolclass=NullPool).connect() as connection:
        context = MigrationContext.configure(connection, opts=options)

        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == SCHEMA
