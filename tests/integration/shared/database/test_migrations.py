"""The migrations make exactly the tables that the code describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from agent_relay.shared import migrations
from agent_relay.shared.database import SCHEMA
from agent_relay.shared.database.tables import Base
from agent_relay.shared.migrations.upgrade import upgrade

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


def test_what_batches_had_used_before_is_summed_and_a_way_back_is_left(database_url: str) -> None:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    batch = uuid4()
    with engine.begin() as connection:
        configuration = Config(attributes={"connection": connection, "schema": "public"})
        configuration.set_main_option("script_location", str(Path(migrations.__file__).parent))
        command.downgrade(configuration, "0030")
        connection.execute(
            text(
                "INSERT INTO batches (id, tenant, user_id, agent_type, metadata, run_seconds, total, deadline_at)"
                " VALUES (:id, 'acme', gen_random_uuid(), 'echo', '{}', 600, 3, now())"
            ),
            {"id": batch},
        )
        for usage in ('{"requests": 1, "cost_usd": 0.5}', '{"requests": 2, "tool_calls": null}', '{"requests": 4}'):
            connection.execute(
                text(
                    "INSERT INTO runs (id, tenant, user_id, agent_type, pool, query, metadata, user_message_id,"
                    " message_id, deadline_at, text_output, batch_id, usage) SELECT gen_random_uuid(), tenant, user_id,"
                    " agent_type, 'default', '', '{}', gen_random_uuid(), gen_random_uuid(), now(), true, id, :usage"
                    " FROM batches WHERE id = :id"
                ),
                {"id": batch, "usage": usage},
            )
        end = "UPDATE runs SET status = 'succeeded', finished_at = now() WHERE usage ->> 'requests' = :requests"
        connection.execute(text(end), [{"requests": "1"}, {"requests": "2"}])
    upgrade(database_url)
    with engine.begin() as connection:
        connection.execute(text(end), {"requests": "4"})
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT usage FROM batches")) == {"requests": 7, "cost_usd": 0.5}
        assert connection.scalar(text("SELECT status FROM batches")) == "completed"
