"""A body is looked at a chunk at a time, however it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent_relay.api.batches.upload import CHUNK_BYTES, gathered


async def test_a_body_is_looked_at_a_chunk_at_a_time_however_it_comes() -> None:
    body = bytes(range(256)) * 5000

    async def coming(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    for size in (100, CHUNK_BYTES - 1, len(body)):
        chunks = [chunk async for chunk in gathered(coming(size))]
        assert b"".join(chunks) == body
        assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}
        assert len(chunks[-1]) < CHUNK_BYTES
