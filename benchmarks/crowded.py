"""Whether a new run waits for longer where 5,000 others are in progress elsewhere, on workers whose leases hold.

What those have in the database and in Redis stands there; one more worker lives, and has all its slots free.
"""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import UUID

import psycopg
import uvloop
from arq.constants import expires_extra_ms

from agent_relay.shared.clock import new_id
from agent_relay.shared.event_log import BEFORE_ALL, Append, Entry, EventLog, Id, text_body
from agent_relay.shared.redis_names import DEFAULT
from benchmarks.pick_up import PickUp, ours, stamped
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, stage
from tests.support.service import Running

WORKERS = 100
SLOTS = 50
TEXT = "the bank will look at your card and call you back on Monday because it cannot say more today"
LOG_SECONDS = 3600
SETTLE_SECONDS = 2.0

_WORKERS = """
    INSERT INTO workers (id, pool, host, pid, version, slots, lease_until)
    SELECT id, 'default', 'elsewhere', 1, '0', %(slots)s, now() + interval '1 hour'
    FROM unnest(%(workers)s::uuid[]) AS id
"""

_RUNS = """
    INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata, user_message_id, message_id,
                      status, attempt, worker_id, started_at, partial_output, last_entry, deadline_at)
    SELECT run_id, 'acme', gen_random_uuid(), 'words', 'default', true, 'hello', '{}', gen_random_uuid(),
           gen_random_uuid(), 'running', 1, worker_id, now(), %(text)s, 1, now() + interval '1 hour'
    FROM unnest(%(runs)s::uuid[], %(held_by)s::uuid[]) AS held (run_id, worker_id)
"""


async def crowd(on: Stage) -> list[UUID]:
    """Have others hold as many runs as they have slots for; returns the runs."""
    workers = [new_id() for _ in range(WORKERS)]
    run_ids = [new_id() for _ in range(WORKERS * SLOTS)]
    with psycopg.connect(on.postgres.url(), autocommit=True) as connection:
        connection.execute(_WORKERS, {"workers": workers, "slots": SLOTS})
        connection.execute(_RUNS, {"runs": run_ids, "held_by": workers * SLOTS, "text": TEXT})
        connection.execute("VACUUM ANALYZE runs, workers")
    log = EventLog(on.redis)
    for first in range(0, len(run_ids), 500):
        some = run_ids[first : first + 500]
        said = [Entry(Id(1, 1), text_body(TEXT))]
        await log.append([Append(run_id, BEFORE_ALL, said, LOG_SECONDS) for run_id in some])
        async with on.redis.pipeline(transaction=False) as pipeline:
            for run_id in some:
                pipeline.set(f"{DEFAULT.jobs}{run_id}:1", TEXT, px=expires_extra_ms)
            await pipeline.execute()
    return run_ids


async def leave(on: Stage) -> None:
    """Have nobody at anything."""
    with psycopg.connect(on.postgres.url(), autocommit=True) as connection:
        connection.execute("DELETE FROM runs")
        connection.execute("DELETE FROM workers WHERE host = 'elsewhere'")
        connection.execute("VACUUM ANALYZE runs, workers")
    await on.redis.flushdb()


async def measure(on: Stage, api: Running, worker: Running, *, crowded: bool) -> PickUp:
    """Post runs, one at a time."""
    await leave(on)
    held = await crowd(on) if crowded else []
    await asyncio.sleep(SETTLE_SECONDS)
    picked_up = await ours(api, worker)
    with psycopg.connect(on.postgres.url()) as connection:
        still = connection.execute("SELECT count(*) FROM runs WHERE status = 'running'").fetchone()
    assert still == (len(held),), still
    return picked_up


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on:
        api, worker = stamped(on)
        figures = await interleaved(
            rounds,
            {
                "none": partial(measure, on, api, worker, crowded=False),
                f"{WORKERS * SLOTS:,}": partial(measure, on, api, worker, crowded=True),
            },
        )
    none, many = figures.values()
    table(
        f"From acceptance to the claim, ms, by how many runs are in progress elsewhere, {rounds} rounds",
        ["", *figures, "ratio", "target"],
        [
            [
                name,
                *(Spread.of(getattr(each, name) for each in side) for side in (none, many)),
                Spread.of_ratio([getattr(each, name) for each in many], [getattr(each, name) for each in none]),
                "about 1" if name == "p50" else "",
            ]
            for name in ("p50", "p95")
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
