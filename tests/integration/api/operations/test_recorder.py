"""What is recorded of each minute: from the rows, once, by whichever process is first, and for a day."""

from __future__ import annotations

import asyncio
from typing import Any

from agent_relay.api.operations.figures import GROWTH, percentile
from agent_relay.api.operations.recorder import MOST_MINUTES_MADE_UP, Recorder
from agent_relay.shared.clock import new_id
from tests.support.stage import Stage

_RUN = """
    INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata, user_message_id, message_id,
                      status, attempt, deadline_at, created_at, started_at, rung_at, finished_at, usage, error)
    SELECT gen_random_uuid(), 'acme', gen_random_uuid(), 'echo', 'default', true, 'x', '{}', gen_random_uuid(),
           gen_random_uuid(), :status, 1, now() + interval '1 hour', at, at + make_interval(secs => :waited), at,
           CASE WHEN :status IN ('running', 'queued') THEN NULL ELSE at + make_interval(secs => :waited) END,
           CAST(:usage AS jsonb), CAST(:error AS jsonb)
    FROM (SELECT date_trunc('minute', now() - interval '5 seconds') - make_interval(mins => :ago)
                 + make_interval(secs => :second) AS at) AS moment
"""

NEWEST_TEN = """
    DELETE FROM service_minutes WHERE minute > (SELECT max(minute) FROM service_minutes) - interval '10 minutes'
"""
OLD = "INSERT INTO service_minutes VALUES (now() - interval '25 hours 1 minute', '{}')"


async def run(stage: Stage, ago: int, second: float = 10, **given: Any) -> None:
    """Have a run that was enqueued in a minute."""
    values = {"status": "succeeded", "waited": 0.25, "usage": '{"input_tokens": 5, "output_tokens": 7}', "error": None}
    await stage.execute(_RUN, ago=ago, second=second, **values | given)


async def recorded(stage: Stage) -> list[dict[str, Any]]:
    """What stands there, the last minute first."""
    rows = await stage.execute("SELECT figures FROM service_minutes ORDER BY minute DESC")
    return [row.figures for row in rows]


async def test_minutes_are_recorded_from_the_rows_once_and_for_a_day(stage: Stage) -> None:
    error = '{"code": "agent_error", "message": "' + "x" * 300 + '", "retryable": false}'
    for _ in range(3):
        await run(stage, 1)
    await run(stage, 1, status="failed", error=error)
    await run(stage, 1, status="running", waited=4)
    await run(stage, 2, second=59.9, waited=0.2)  # It ended in the minute after.
    await run(stage, 3, usage='{"input_tokens": "many", "output_tokens": null}')
    await stage.execute(OLD)
    processes = [Recorder(stage.database, lambda: 7) for _ in range(3)]

    await asyncio.gather(*(process.record() for process in processes))
    assert await processes[0].record() == 0

    minutes = await recorded(stage)
    assert len(minutes) == MOST_MINUTES_MADE_UP
    ended = {(row[0], row[1], row[2]): row[3:] for row in minutes[0]["ended"]}
    assert ended["echo", "succeeded", ""] == [4, 48, None, None]
    runs, _, run_id, message = ended["echo", "failed", "agent_error"]
    assert (runs, message) == (1, "x" * 200)
    assert run_id is not None
    classes = {int(number): runs for number, runs in minutes[0]["picked_up"]["interactive"].items()}
    assert sum(classes.values()) == 6
    assert percentile(classes, 0.5) is not None
    assert 4 / GROWTH <= (percentile(classes, 0.99) or 0) <= 4 * GROWTH
    assert minutes[0]["queues"] == [["default", "interactive", "running", 1, minutes[0]["queues"][0][4]]]
    assert minutes[1]["ended"] == []
    assert minutes[2]["ended"][0][3:5] == [1, 0]
    assert all("queues" not in figures for figures in minutes[1:])


async def test_after_a_time_without_processes_the_minutes_between_are_made_up(stage: Stage) -> None:
    recorder = Recorder(stage.database, lambda: 0)
    await recorder.record()
    await stage.execute(NEWEST_TEN)
    await run(stage, 4)

    made_up = await recorder.record()

    assert made_up in {10, 11}  # A minute may have passed.
    minutes = await recorded(stage)
    assert sum(bool(figures["ended"]) for figures in minutes) == 1


async def test_a_process_writes_that_it_lives_and_forgets_the_dead(stage: Stage) -> None:
    streams = [3]
    recorder = Recorder(stage.database, lambda: streams[0])
    await stage.execute(
        "INSERT INTO api_processes VALUES (:id, 'gone', 1, '0', 9, now(), now() - interval '61 seconds')", id=new_id()
    )

    await recorder.heartbeat()
    streams[0] = 4
    await recorder.heartbeat()

    rows = await stage.execute("SELECT host, streams FROM api_processes")
    assert [row.streams for row in rows] == [4]
    assert rows[0].host != "gone"
