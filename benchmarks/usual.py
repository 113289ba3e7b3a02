"""The usual design, to compare with: `run_stream` and `stream_output` at every token, in one process.

Reads `<streams> <tokens> at <pace>` from standard input, answers so many at once, and says `done`.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from pydantic_core import to_json

from benchmarks.agents import provided
from benchmarks.stage import MODEL


async def answer(query: str) -> None:
    """Answer one query; every partial is validated and written as JSON, as a client would get it."""
    async with provided.run_stream(query, model=MODEL) as result:
        async for partial in result.stream_output(debounce_by=None):
            to_json(partial)


async def main() -> None:
    """Answer what is asked for, until there is nothing more."""
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        streams, _, query = line.strip().partition(" ")
        await asyncio.gather(*(answer(query) for _ in range(int(streams))))
        print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
