"""A page of a list is read along an index, however many rows there are, whatever is asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent_relay.api.batches.queries import owned_batches
from agent_relay.api.queries import Place, owned_deliveries, owned_runs
from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.pagination import Rows
from agent_relay.shared import api_keys
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.runs.dead_letters import dead_letters
from agent_relay.shared.webhooks import DeliveryStatus

OTHERS = 21_000
"""Rows of each user that are in another status, and newer than those that are looked for."""
FEWER = 5_000
"""Batches of a user, and API keys."""
WANTED = 30
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
"""When the oldest rows were made; the others follow, each a millisecond later."""
LIMIT = 21
MOST_READ = 10 * LIMIT
"""Entries of indexes and rows that may be read for a page; an index and its table count apart."""

Read = Callable[[AsyncEngine, Place], Awaitable[Sequence[Any] | Rows[Any]]]


def owner(name: str) -> Owner:
    """Name the user whose rare status is this one."""
    return Owner("acme", uuid5(NAMESPACE_OID, name))


@pytest.fixture(scope="module")
def filled_url(new_database: Callable[[], str]) -> str:
    """A database in which each user has few old rows in one status and many newer ones in another."""
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # Nobody is to be told of these rows.
        for status in RunStatus:
            usual = "failed" if status is RunStatus.SUCCEEDED else "succeeded"
            connection.execute(
                """
                INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata, user_message_id,
                    message_id, status, created_at, deadline_at, finished_at, error, end_told)
                SELECT gen_random_uuid(), 'acme', %(user)s, 'echo', 'default', true, '?', '{}', gen_random_uuid(),
                    gen_random_uuid(), status, at, at + interval '1 hour',
                    CASE WHEN status NOT IN ('queued', 'running') THEN at END,
                    CASE WHEN status = 'failed' AND n <= %(wanted)s THEN '{"code": "worker_crashed"}'::jsonb
                        WHEN status = 'failed' AND mod(n, 2) = 0 THEN '{"code": "model_unavailable"}'::jsonb
                        WHEN status = 'failed' THEN '{"code": "output_invalid"}'::jsonb END, true
                FROM (
                    SELECT n, CASE WHEN n <= %(wanted)s THEN %(status)s ELSE %(usual)s END AS status,
                        %(first)s + make_interval(secs => n / 1000.0) AS at
                    FROM generate_series(1, %(others)s) AS n
                ) AS rows
                """,
                {
                    "user": owner(status).user_id,
                    "status": status,
                    "usual": usual,
                    "wanted": WANTED,
                    "others": OTHERS,
                    "first": FIRST,
                },
            )
        for status in DeliveryStatus:
            usual = "failed" if status is DeliveryStatus.DELIVERED else "delivered"
            connection.execute(
                """
                INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at, status,
                    created_at)
                SELECT gen_random_uuid(), 'acme', %(user)s, 'run.succeeded', gen_random_uuid(), 'https://a.example',
                    now(), CASE WHEN n <= %(wanted)s THEN %(status)s ELSE %(usual)s END,
                    %(first)s + make_interval(secs => n / 1000.0)
                FROM generate_series(1, %(others)s) AS n
                """,
                {
                    "user": owner(status).user_id,
                    "status": status,
                    "usual": usual,
                    "wanted": WANTED,
                    "others": OTHERS,
                    "first": FIRST,
                },
            )
        connection.execute(
            """
            INSERT INTO batches (id, tenant, user_id, agent_type, metadata, run_seconds, total, created_at, deadline_at)
            SELECT gen_random_uuid(), 'acme', %s, 'echo', '{}', 60, 1, %s + make_interval(secs => n / 1000.0), now()
            FROM generate_series(1, %s) AS n
            """,
            (owner("batches").user_id, FIRST, FEWER),
        )
        connection.execute(
            """
            INSERT INTO api_keys (id, tenant, label, prefix, key_hash, created_at)
            SELECT gen_random_uuid(), 'tenant-' || mod(n, 3), '', '', n, %s + make_interval(secs => n / 1000.0)
            FROM generate_series(1, %s) AS n
            """,
            (FIRST, FEWER),
        )
        connection.execute("VACUUM ANALYZE")
    return url


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
async def filled(request: pytest.FixtureRequest, filled_url: str) -> AsyncGenerator[AsyncEngine]:
    """A single connection, whose statements are planned for their values, or once for all values."""
    engine = create_async_engine(
        filled_url.replace("postgresql://", "postgresql+psycopg://"),
        connect_args={"options": f"-c plan_cache_mode={request.param}", "prepare_threshold": 0},
        pool_size=1,
        max_overflow=0,
    )
    yield engine
    await engine.dispose()


_READ = text("""
    SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables)
        + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)
""")


async def read_so_far(engine: AsyncEngine) -> int:
    """Count the rows and the entries of indexes that were read in the database."""
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_stat_force_next_flush()"))
    async with engine.begin() as connection:
        return int(await connection.scalar(_READ))


def lists() -> Iterator[tuple[str, Read]]:
    """Name the reads of all lists."""
    for status in (*RunStatus, None):

        def of_runs(engine: AsyncEngine, before: Place, status: RunStatus | None = status) -> Awaitable[Rows[Any]]:
            caller = owner(status or RunStatus.FAILED)
            return owned_runs(
                engine,
                caller,
                thread_id=None,
                batch_id=None,
                schedule_id=None,
                status=status,
                before=before,
                limit=LIMIT - 1,
            )

        yield f"runs that are {status}", of_runs
    for status in (*DeliveryStatus, None):

        def of_deliveries(
            engine: AsyncEngine, before: Place, status: DeliveryStatus | None = status
        ) -> Awaitable[Rows[Any]]:
            caller = owner(status or DeliveryStatus.FAILED)
            return owned_deliveries(engine, caller, status=status, before=before, limit=LIMIT - 1)

        yield f"deliveries that are {status}", of_deliveries
    yield "batches", lambda engine, before: owned_batches(engine, owner("batches"), before=before, limit=LIMIT - 1)
    yield "dead letters", lambda engine, before: dead_letters(engine, code=None, before=before, limit=LIMIT)
    yield (
        "dead letters of a rare code",
        lambda engine, before: dead_letters(engine, code=FailureCode.WORKER_CRASHED, before=before, limit=LIMIT),
    )
    yield "API keys of a tenant", lambda engine, before: api_keys.list_page(engine, "tenant-1", before, LIMIT)


@pytest.mark.parametrize("read", [pytest.param(read, id=name) for name, read in lists()])
async def test_a_page_reads_little_more_than_it_shows(read: Read, filled: AsyncEngine) -> None:
    before = await read_so_far(filled)
    first = await read(filled, (None, None))
    after_first = await read_so_far(filled)
    last = await read(filled, (FIRST + timedelta(milliseconds=WANTED), UUID(int=0)))
    after_last = await read_so_far(filled)

    assert len(first if isinstance(first, Sequence) else first.rows) == LIMIT
    assert last if isinstance(last, Sequence) else last.rows
    assert after_first - before <= MOST_READ
    assert after_last - after_first <= MOST_READ
