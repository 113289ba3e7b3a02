"""Stock arq, to compare with: a worker as arq makes it answers no-ops that wait already.

`python -m benchmarks.stock_arq <jobs> <poll seconds>`, on the Redis that `REDIS_URL` names. Says `ready` when the jobs
wait, begins when it is told to, and says how many a second it answered, from the first beginning to the last end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any, cast

from arq import ArqRedis
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool

JOB = "nothing"

_began: list[float] = []


async def nothing(_: dict[Any, Any]) -> None:
    """Answer."""
    _began.append(time.perf_counter())


async def main(jobs: int, poll_seconds: float) -> None:
    """Fill the queue, and empty it."""
    redis = ArqRedis(ConnectionPool.from_url(os.environ["REDIS_URL"]))
    for _ in range(jobs):
        await redis.enqueue_job(JOB)
    worker = Worker(
        functions=[func(cast("Any", nothing), name=JOB)], redis_pool=redis, burst=True, poll_delay=poll_seconds
    )
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await worker.main()
    assert worker.jobs_complete == jobs, worker.jobs_complete
    print(jobs / (time.perf_counter() - _began[0]), flush=True)


if __name__ == "__main__":
    logging.getLogger("arq").setLevel(logging.ERROR)
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
