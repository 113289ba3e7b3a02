"""Retention: erases threads, runs, batches, deliveries, files, idempotency keys and workers that are no longer kept.

Each statement takes rows that no other transaction holds, so that any number of processes may erase at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.database.set_aside import Aside, NoRows, among
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks.outbox import none_waits


@dataclass(frozen=True, slots=True)
class _Old:
    """Rows of a table that are kept no longer."""

    candidates: TextClause
    erase: TextClause

    @classmethod
    def of(cls, table: str, chosen: str) -> _Old:
        """Take the query that chooses some of them."""
        return cls(text(chosen), text(f"DELETE FROM {table} WHERE id IN ({chosen})"))  # noqa: S608  (constants)


_OLD = (
    _Old.of(
        "threads",
        f"""
            SELECT id FROM threads WHERE deleted_at < now() - interval '1 minute' AND {among("id")}
              AND NOT EXISTS (SELECT FROM runs WHERE thread_id = threads.id
                              AND ({IS_UNFINISHED} OR NOT {none_waits("runs")}))
            LIMIT 100 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (constants)
    ),
    _Old.of(
        "runs",
        f"""
            SELECT id FROM runs
            WHERE thread_id IS NULL AND finished_at < now() - make_interval(secs => :retention_seconds)
              AND batch_id IS NULL AND {none_waits("runs")} AND {among("id")}
            ORDER BY finished_at LIMIT 500 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (constants)
    ),
    _Old.of(
        "webhook_deliveries",
        f"""
            SELECT id FROM webhook_deliveries
            WHERE status <> 'pending' AND created_at < now() - make_interval(secs => :delivery_seconds)
              AND {among("id")}
            ORDER BY created_at LIMIT 5000 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
    _Old.of(
        "runs",
        f"""
            SELECT runs.id FROM batches JOIN runs ON batch_id = batches.id
            WHERE deleted_at < now() - interval '1 minute' AND {among("runs.id")}
            LIMIT 500 FOR UPDATE OF runs SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
    _Old.of(
        "batches",
        f"""
            SELECT id FROM batches
            WHERE deleted_at < now() - interval '1 minute' AND {among("id")}
              AND NOT EXISTS (SELECT FROM runs WHERE batch_id = batches.id)
            LIMIT 500 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
    _Old.of(
        "files",
        f"""
            SELECT id FROM files WHERE NOT in_use AND expires_at < now() AND {among("id")}
            ORDER BY expires_at LIMIT 50 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
)
"""Each is erased for itself, and a row that cannot be is left out."""

_HIDE_OLD_BATCHES = text(f"""
    UPDATE batches SET deleted_at = now()
    WHERE finished_at < now() - make_interval(secs => :retention_seconds) AND deleted_at IS NULL
      AND {none_waits("batches")}
""")  # noqa: S608  (a constant)

_ERASE_KEYS = text("""
    DELETE FROM idempotency_keys WHERE (tenant, user_id, route, key) IN (
        SELECT tenant, user_id, route, key FROM idempotency_keys WHERE expires_at < now()
        ORDER BY expires_at LIMIT 5000 FOR UPDATE SKIP LOCKED)
""")

_ERASE_WORKERS = text("DELETE FROM workers WHERE ended_at < now() - interval '1 day'")


class Retention:
    """Erases data that have been kept for the time of the settings."""

    def __init__(self, settings: Settings, database: AsyncEngine) -> None:
        self._database = database
        self._aside: defaultdict[str, Aside] = defaultdict(Aside)
        """The rows that each statement leaves out for now, because they cannot be erased."""
        self._kept_for = {
            "retention_seconds": settings.run_retention_days * 86_400,
            "delivery_seconds": settings.webhook_retention_days * 86_400,
        }

    def steps(self) -> Iterator[Callable[[], Awaitable[object]]]:
        """Give the steps that each erase one batch of rows; one that fails does not affect the others."""
        for old in _OLD:
            aside = self._aside[old.erase.text]
            yield partial(aside.run, self._database, old.erase, old.candidates, self._kept_for, NoRows)
        for statement in (_HIDE_OLD_BATCHES, _ERASE_KEYS, _ERASE_WORKERS):
            yield partial(transact, self._database, statement, self._kept_for)
