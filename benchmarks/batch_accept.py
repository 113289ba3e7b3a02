"""How many items of a batch are accepted a second: against one `POST /runs` at a time, and against the bare servers.

The bare side copies rows into the same table, with its indexes, and adds as many members to a sorted set in pipelines;
both were written out before. Nothing is checked there, and one transaction holds all of it. No worker is alive.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from functools import partial

import psycopg
import uvloop
from redis import Redis

from agent_relay.shared.clock import new_ids
from benchmarks.batch_upload import upload
from benchmarks.client import USER_ID
from benchmarks.rounds import Spread, asked, interleaved, table
from benchmarks.stage import Stage, port, stage
from tests.support.service import KEYS, Running

ITEMS = 20_000
RUNS = 400
A_TRIP = 500
LEAST_TIMES = 25
LEAST_SHARE = 0.25
QUERY = "What is my balance, and why has it changed since Monday? I am customer {}."
HEADERS = {"X-API-Key": KEYS["acme"], "X-User-ID": USER_ID, "Content-Type": "application/json"}

COPY = """
    COPY runs (id, user_message_id, message_id, tenant, user_id, agent_type, pool, text_output, lane, batch_id,
               deadline_at, custom_id, query, metadata)
    FROM STDIN
"""


def bodies() -> dict[str, bytes]:
    """Write a batch in both forms."""
    items = [json.dumps({"custom_id": f"row-{n}", "query": QUERY.format(n)}) for n in range(ITEMS)]
    return {
        "JSON": f'{{"agent_type": "words", "items": [{", ".join(items)}]}}'.encode(),
        "NDJSON": "\n".join(items).encode(),
    }


def one_at_a_time(api: Running) -> float:
    """Post runs on one connection, each once the one before was answered; items a second."""
    connection = http.client.HTTPConnection("127.0.0.1", port(api))
    began = time.perf_counter()
    for number in range(RUNS):
        body = json.dumps({"agent_type": "words", "query": QUERY.format(number)})
        connection.request("POST", "/api/v1/runs", body, HEADERS)
        response = connection.getresponse()
        assert response.status == http.client.ACCEPTED, response.read()
        response.read()
    connection.close()
    return RUNS / (time.perf_counter() - began)


def as_a_batch(api: Running, form: str, body: bytes) -> float:
    """Submit a batch; items a second, until it is committed, its workers are called for and that is answered."""
    return ITEMS / upload(api, form, body)


def bare(on: Stage) -> float:
    """Give the same rows to PostgreSQL and Redis; items a second."""
    ids = [f"{number:032x}" for number in new_ids(3 * ITEMS)]
    batch_id = ids[0]
    same = f"acme\t{USER_ID}\twords\tdefault\tt\tbatch\t{batch_id}\t2100-01-01\t"
    lines = [
        f"{ids[3 * n]}\t{ids[3 * n + 1]}\t{ids[3 * n + 2]}\t{same}row-{n}\t{QUERY.format(n)}\t{{}}\n"
        for n in range(ITEMS)
    ]
    blocks = ["".join(some).encode() for some in _trips(lines)]
    members = [dict.fromkeys((f"{member}:1" for member in some), 0) for some in _trips(ids[::3])]
    with psycopg.connect(on.service.database_url) as database, Redis.from_url(on.redis_url) as redis:
        database.execute("SELECT 1")
        redis.ping()
        began = time.perf_counter()
        with database.cursor() as cursor, cursor.copy(COPY) as copy:
            for block in blocks:
                copy.write(block)
        database.commit()
        pipeline = redis.pipeline(transaction=False)
        for some in members:
            pipeline.zadd("bare", some)
        pipeline.execute()
        return ITEMS / (time.perf_counter() - began)


def _trips(values: list[str]) -> list[list[str]]:
    return [values[start : start + A_TRIP] for start in range(0, len(values), A_TRIP)]


def clear(on: Stage) -> None:
    """Throw away what was accepted."""
    with psycopg.connect(on.service.database_url, autocommit=True) as database:
        database.execute("TRUNCATE runs, batches CASCADE")


async def main(rounds: int) -> None:
    """Compare."""
    with stage() as on:
        on.register_agents()
        api = on.service.api()

        async def cleared(measure: partial[float]) -> float:
            figure = await asyncio.to_thread(measure)
            await asyncio.to_thread(clear, on)
            await on.redis.flushdb()
            return figure

        sides = {
            "one": partial(one_at_a_time, api),
            **{form: partial(as_a_batch, api, form, body) for form, body in bodies().items()},
            "bare": partial(bare, on),
        }
        figures = await interleaved(rounds, {name: partial(cleared, side) for name, side in sides.items()})
    table(
        f"Items accepted a second, {ITEMS:,} a batch, {rounds} rounds"
        f" (targets: at least {LEAST_TIMES} times one at a time, at least {LEAST_SHARE:g} of COPY and ZADD)",
        ["", "items a second", "times one at a time", "share of COPY and ZADD"],
        [
            ["one `POST /runs` at a time", Spread.of(figures["one"]), "", ""],
            *(
                [
                    f"`POST /batches`, {form}",
                    Spread.of(figures[form]),
                    Spread.of_ratio(figures[form], figures["one"]),
                    Spread.of_ratio(figures[form], figures["bare"]),
                ]
                for form in bodies()
            ),
            ["COPY and ZADD", Spread.of(figures["bare"]), "", ""],
        ],
    )


if __name__ == "__main__":
    uvloop.run(main(asked()))
