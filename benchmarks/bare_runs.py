"""Two bare transactions a run, to compare with: psycopg claims a row and ends it, and nothing else happens.

`python -m benchmarks.bare_runs <part> <parts>`, on the database that `DATABASE_URL` names, with as many connections as
a worker has. Says `ready` when it has read which runs wait, and begins when it is told to.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any
from uuid import UUID

import psycopg
import uvloop

from agent_relay.shared.clock import new_id

CONNECTIONS = 10
TEXT = "done"

_CLAIM = """
    UPDATE runs SET status = 'running', attempt = attempt + 1, started_at = now()
    WHERE id = %s AND status = 'queued' RETURNING query, attempt, thread_id, seq
"""
_FINISH = """
    UPDATE runs SET status = 'succeeded', output = %s, finished_at = now()
    WHERE id = %s AND attempt = %s AND status = 'running'
"""
_ANSWER = """
    INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
    VALUES (%s, %s, %s, %s, 'assistant', %s, '{}')
"""

Connection = psycopg.AsyncConnection[Any]


async def answer(connection: Connection, run_id: UUID) -> None:
    """Claim a run, and end it; with its message, if it is of a thread."""
    claimed = await (await connection.execute(_CLAIM, [run_id])).fetchone()
    await connection.commit()
    assert claimed
    _, attempt, thread_id, seq = claimed
    await connection.execute(_FINISH, [TEXT, run_id, attempt])
    if thread_id is not None:
        await connection.execute(_ANSWER, [new_id(), thread_id, run_id, 2 * seq + 1, TEXT])
    await connection.commit()


async def work(connection: Connection, waiting: list[UUID]) -> None:
    """Answer one run after the other."""
    while waiting:
        await answer(connection, waiting.pop())


async def main(part: int, parts: int) -> None:
    """Answer this process's part of what waits."""
    url = os.environ["DATABASE_URL"]
    connections = [await Connection.connect(url) for _ in range(CONNECTIONS)]
    found = await (await connections[0].execute("SELECT id FROM runs WHERE status = 'queued' ORDER BY id")).fetchall()
    await connections[0].commit()
    waiting = [run_id for (run_id,) in reversed(found)][part::parts]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(work(connection, waiting) for connection in connections))
    print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
