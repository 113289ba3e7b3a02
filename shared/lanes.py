"""The lanes: who is to be answered next. Ringing side of arq, whose job format and keys they use.

A lane is a sorted set in Redis for one pool of workers and one kind of run; a member is `<run>:<ring>`, its score a
turn. A turn is no time: tenants alternate. Lanes are news: what is lost here is still queued in PostgreSQL, and the
sweeper rings it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from arq.constants import expires_extra_ms, job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

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
    tenant: str
    first: bool = False
    """Whether it goes before all others: it has waited its turn already."""

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


_RING = """
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
local turn = -1
if ARGV[5] == '' then
    local head = redis.call('ZRANGEBYSCORE', KEYS[1], 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if #head == 0 then redis.call('DEL', KEYS[2]) end
    turn = math.max(tonumber(head[2] or 0), tonumber(redis.call('HGET', KEYS[2], ARGV[4]) or -1) + 1)
    redis.call('HSET', KEYS[2], ARGV[4], turn)
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
redis.call('ZADD', KEYS[1], turn, ARGV[1])
"""
"""A turn is one after the tenant's last in this lane, but not before the head: so tenants alternate, and who comes new
is next but one. In one turn, and before all turns, the run that was accepted first goes first: ids sort by time."""
_RING_SHA = hashlib.sha1(_RING.encode(), usedforsecurity=False).hexdigest()


class Lanes:
    """The ringing end of the lanes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def ring(self, rings: Sequence[Ring]) -> bool:
        """Call for workers, in one round trip; False where Redis could not be reached, which the sweeper makes good."""
        if not rings:
            return True
        try:
            outcomes = await self._ring(rings)
            if any(isinstance(outcome, NoScriptError) for outcome in outcomes):
                await self._redis.script_load(_RING)
                outcomes = await self._ring(rings)
        except (RedisError, OSError) as away:
            log.warning("lanes.ring_failed error=%r", away)
            return False
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failed:
            log.warning("lanes.ring_failed error=%r", failed[0])
        return not failed

    async def _ring(self, rings: Sequence[Ring]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            lane = key(call.pool, call.lane)
            keys = [lane, f"{lane}:turns", job_key_prefix + call.member]
            job = serialize_job(JOB, (str(call.run_id),), {}, None, now_ms(), serializer=dumps).decode()
            first = "1" if call.first else ""
            pipeline.evalsha(_RING_SHA, 3, *keys, call.member, job, str(expires_extra_ms), call.tenant, first)
        return await pipeline.execute(raise_on_error=False)

    async def absent(self, rings: Sequence[Ring]) -> list[Ring]:
        """Tell which of these calls stand in no lane."""
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            pipeline.zscore(key(call.pool, call.lane), call.member)
        scores: list[Any] = await pipeline.execute()
        return [call for call, score in zip(rings, scores, strict=True) if score is None]

    async def positions(self, rings: Sequence[Ring]) -> dict[UUID, int]:
        """Tell how many calls stand before each of these that stands in a lane; of none, if Redis is away.

        Before those of batches stand all of the interactive lane, too.
        """
        if not rings:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            pipeline.zrank(key(call.pool, call.lane), call.member)
        waited_for = sorted({call.pool for call in rings if call.lane == Lane.BATCH})
        for pool in waited_for:
            pipeline.zcard(key(pool, Lane.INTERACTIVE))
        try:
            told: list[int | None] = await pipeline.execute()
        except (RedisError, OSError) as away:
            log.warning("lanes.positions_unknown error=%r", away)
            return {}
        before = dict(zip(waited_for, told[len(rings) :], strict=True))
        return {
            call.run_id: rank + ((before[call.pool] or 0) if call.lane == Lane.BATCH else 0)
            for call, rank in zip(rings, told, strict=False)
            if rank is not None
        }
