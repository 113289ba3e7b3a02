"""The cumulative design, to compare with: at every token the whole text goes into a log, over a channel, to the client.

`python -m benchmarks.cumulative api` and `… worker`, on the Redis that `REDIS_URL` names. The text agent answers, and
its worker spends nothing on validation: this is about the transport.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import uuid4

import uvloop
from fastapi import Body, FastAPI
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis

from benchmarks.agents import words
from benchmarks.direct import serve

JOBS = "cumulative:jobs"

app = FastAPI()
redis: Any = Redis.from_url(os.environ.get("REDIS_URL", "redis://"))


@app.post("/stream")
async def stream(query: Annotated[str, Body()], agent_type: Annotated[str, Body()]) -> StreamingResponse:
    """Leave a job for the worker, and hand on what it announces."""
    assert agent_type == "words"
    return StreamingResponse(_relayed(f"cumulative:{uuid4()}", query), media_type="application/x-ndjson")


async def _relayed(channel: str, query: str) -> AsyncIterator[bytes]:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        await redis.rpush(JOBS, json.dumps([channel, query]))
        async for message in pubsub.listen():
            if message["type"] == "message":
                if message["data"] == b"end":
                    return
                yield message["data"] + b"\n"


async def work() -> None:
    """Answer one job after the other."""
    print("ready", flush=True)
    while True:
        _, job = await redis.blpop([JOBS])
        channel, query = json.loads(job)
        async with words.run_stream(query) as answer:
            async for text in answer.stream_output(debounce_by=None):
                event = json.dumps({"event": "text_delta", "token": text})
                pipeline = redis.pipeline(transaction=False)
                pipeline.xadd(channel, {"e": event})
                pipeline.publish(channel, event)
                await pipeline.execute()
        await redis.publish(channel, "end")


if __name__ == "__main__":
    if sys.argv[1] == "api":
        serve(app)
    else:
        uvloop.run(work())
