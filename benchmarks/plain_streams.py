"""FastAPI's `StreamingResponse` at its plainest, to compare with: every stream waits for the same event in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from benchmarks.direct import serve

PAUSE_SECONDS = 0.005

app = FastAPI()
_said = [b'{"event": "message_created"}\n']
_news: list[asyncio.Event] = []


@app.get("/stream")
async def stream() -> StreamingResponse:
    """Tell what is said."""
    return StreamingResponse(_listen(), media_type="application/x-ndjson")


@app.get("/say/{number}")
async def say(number: int) -> None:
    """Say something to all."""
    _said.append(b'{"event": "text_delta", "token": "event number %d of the benchmark"}\n' % number)
    _news.append(asyncio.Event())
    _news[-2].set()


@app.get("/timed/{count}")
async def timed(count: int) -> StreamingResponse:
    """Tell the time, so many times."""
    return StreamingResponse(_timed(count), media_type="application/x-ndjson")


async def _timed(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b'{"token": "at %d "}\n' % time.monotonic_ns()
        await asyncio.sleep(PAUSE_SECONDS)


async def _listen() -> AsyncIterator[bytes]:
    if not _news:
        _news.append(asyncio.Event())
    yield _said[0]
    place = len(_news) - 1
    while True:
        await _news[place].wait()
        place += 1
        yield _said[place]


if __name__ == "__main__":
    serve(app)
