"""The lanes: who is to be answered next. Ringing side of arq, whose job format and keys they use.

A lane is a sorted set in Redis for one pool of workers and one kind of run; a member is `<run>:<ring>`, its score a
turn. Lanes are news: what is lost here is still queued in PostgreSQL, and the sweeper rings it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from arq.constants import expires_extra_ms, job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.clock import now_ms

log = logging.getLogger(__name__)

JOB = "answer"
"""The name of the one job there is."""


class Lane(StrEnum):
    """Two kinds of runs: somebody waits for the one, nobody for the other."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Ring:
    """One call for a worker."""

    run_id: UUID
    ring: int
    pool: str
    lane: str
    turn: float

    @property
    def member(self) -> str:
        """The member of the lane, which is also arq's job id."""
        return f"{self.run_id}:{self.ring}"


def key(pool: str, lane: str) -> str:
    """Name the sorted set of a lane."""
    return f"lane:{pool}:{lane}"


def dumps(job: Any) -> bytes:
    """Write an arq job as JSON instead of pickle."""
    return json.dumps(job, default=str).encode()


def loads(job: bytes) -> Any:
    """Read an arq job."""
    return json.loads(job)


def run_of(member: bytes) -> UUID:
    """Tell which run a member calls for."""
    return UUID(member.decode().partition(":")[0])


class Lanes:
    """The ringing end of the lanes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def ring(self, rings: Iterable[Ring]) -> bool:
        """Call for workers, in one round trip; False where Redis could not be reached, which the sweeper makes good."""
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            job = serialize_job(JOB, (str(call.run_id),), {}, None, now_ms(), serializer=dumps)
            pipeline.psetex(job_key_prefix + call.member, expires_extra_ms, job)
            pipeline.zadd(key(call.pool, call.lane), {call.member: call.turn})
        if not len(pipeline):
            return True
        try:
            await pipeline.execute()
        except (RedisError, OSError) as away:
            log.warning("lanes.ring_failed error=%r", away)
            return False
        return True

    async def absent(self, rings: Sequence[Ring]) -> list[Ring]:
        """Tell which of these calls stand in no lane."""
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            pipeline.zscore(key(call.pool, call.lane), call.member)
        scores: list[Any] = await pipeline.execute()
        return [call for call, score in zip(rings, scores, strict=True) if score is None]

    async def positions(self, rings: Sequence[Ring]) -> dict[UUID, int]:
        """Tell how many calls stand before each of these that stands in a lane; of none, if Redis is away."""
        if not rings:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            pipeline.zrank(key(call.pool, call.lane), call.member)
        try:
            ranks: list[int | None] = await pipeline.execute()
        except (RedisError, OSError) as away:
            log.warning("lanes.positions_unknown error=%r", away)
            return {}
        return {call.run_id: rank for call, rank in zip(rings, ranks, strict=True) if rank is not None}
