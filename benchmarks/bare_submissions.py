"""The bare side of submissions: insert a row that is like another one, in a transaction, and `ZADD` its id.

`python -m benchmarks.bare_submissions <rows> <connections> <run>`, on the servers that `DATABASE_URL` and `REDIS_URL`
name. Says `ready`, begins whenever it is told to, and says how many seconds it took.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import uvloop
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from redis.asyncio import Redis

from agent_relay.shared.clock import new_id

LANE = "bare"


async def insert(url: str, redis: Redis, row: dict[str, Any], waiting: Iterator[int]) -> None:
    """Insert rows over one connection, as long as more are wanted."""
    values = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in row.items()}
    statement = sql.SQL("INSERT INTO runs ({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for number in waiting:
            run_id = new_id()
            await connection.execute(statement, values | {"id": run_id})
            await redis.zadd(LANE, {str(run_id): number})


async def main(rows: int, connections: int, run_id: UUID) -> None:
    """Insert so many whenever told to."""
    url, redis = os.environ["DATABASE_URL"], Redis.from_url(os.environ["REDIS_URL"])
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        row = await (await cursor.execute("SELECT * FROM runs WHERE id = %s", [run_id])).fetchone()
    assert row
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        began, waiting = time.perf_counter(), iter(range(rows))
        await asyncio.gather(*(insert(url, redis, row, waiting) for _ in range(connections)))
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), UUID(sys.argv[3])))
