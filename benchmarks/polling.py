"""Stock arq, to compare with: a worker that says when each of its jobs started.

`python -m benchmarks.polling <poll seconds>`, on the Redis that `REDIS_URL` names; 0 leaves arq's default.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

from arq import ArqRedis
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool

JOB = "start"


async def start(ctx: dict[Any, Any]) -> None:
    """Say when it was."""
    print(ctx["job_id"], time.monotonic_ns(), flush=True)


async def main(poll_seconds: float) -> None:
    """Work until ended."""
    redis = ArqRedis(ConnectionPool.from_url(os.environ["REDIS_URL"]))
    worker = Worker(functions=[func(start, name=JOB)], redis_pool=redis)
    if poll_seconds:
        worker.poll_delay_s = poll_seconds
    print("ready", flush=True)
    await worker.main()


if __name__ == "__main__":
    logging.getLogger("arq").setLevel(logging.ERROR)
    asyncio.run(main(float(sys.argv[1])))
