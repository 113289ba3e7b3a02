"""The queue: the runs to answer next. It is the producer of arq, and uses its job format and keys.

A queue is a sorted set in Redis for one pool of workers and one priority; a member is `<run>:<ring>`, its score a
fair-queueing position. A position is not a time: tenants alternate. An entry that is lost here is still queued in
PostgreSQL, and the sweeper enqueues the run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, islice
from typing import Any, cast
from uuid import UUID

from arq.constants import expires_extra_ms
from arq.jobs import serialize_job
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from agent_relay.shared.away import REDIS_ERRORS, skip_if_redis_away
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.clock import now_ms
from agent_relay.shared.redis import check_writable, is_wrong_type
from agent_relay.shared.redis_names import DEFAULT, Names

log = logging.getLogger(__name__)

JOB = "answer"
"""The name of the one job there is."""
RINGS_A_TRIP = 500
"""This number of entries takes Redis two or three milliseconds, during which it answers no other command."""
_ANY_RUN = "{run}"


class Lane(StrEnum):
    """The two priorities: callers wait for interactive runs, and not for those of batches."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class QueueEntry:
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


def dumps(job: Any) -> bytes:
    """Write an arq job as JSON instead of pickle."""
    return json.dumps(job, default=str).encode()


def loads(job: bytes) -> Any:
    """Read an arq job."""
    return json.loads(job)


_MEMBER = re.compile(rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):[0-9]{1,10}")


def run_of(member: bytes) -> UUID:
    """Return the run of a member.

    Raises:
        ValueError: it is no queue entry.
    """
    read = _MEMBER.fullmatch(member)
    if read is None:
        raise ValueError("not <run>:<ring>")
    return UUID(read[1].decode())


async def remove_wrong(redis: Redis, keys: Mapping[str, str]) -> None:
    """Remove those of these keys, given with their types, that hold something else; PostgreSQL has all queued runs.

    Raises:
        redis.exceptions.RedisError: Redis is away, or refuses.
    """
    for name, kind in keys.items():
        found = cast("bytes", await redis.type(name)).decode()
        if found not in {kind, "none"}:
            refuse(BadInput.QUEUE_KEY, name, found)
            await redis.unlink(name)


def _who_calls(call: QueueEntry) -> tuple[str, str, str, bool]:
    return call.pool, call.lane, call.tenant, call.first


_RING = """
local prefix, expiry, before, after, tenant, first = unpack(ARGV, 1, 6)
local turn = -1
if first == '' then
    local head = redis.call('ZRANGEBYSCORE', KEYS[1], '(-1', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if #head == 0 then redis.call('DEL', KEYS[2]) end
    local last = redis.call('HGET', KEYS[2], tenant)
    turn = #head == 0 and 0 or math.ceil(tonumber(head[2])) - 0.5
    if last then turn = math.max(turn, math.floor(tonumber(last)) + 1) end
end
for i = 7, #ARGV do
    redis.call('SET', prefix .. ARGV[i], before .. string.match(ARGV[i], '^[^:]+') .. after, 'PX', expiry)
    redis.call('ZADD', KEYS[1], turn, ARGV[i])
    if first == '' then
        redis.call('HSET', KEYS[2], tenant, turn)
        turn = math.floor(turn) + 1
    end
end
if first == '' then redis.call('PEXPIRE', KEYS[2], expiry) end
"""
"""A turn is the next whole number after the tenant's last in this lane, but not before the head: so tenants alternate.
A tenant that had no turn since the head's comes half a turn before the head: it is next. In one turn, and before all
turns, the run that was accepted first goes first: ids sort by time."""
_RING_SHA = hashlib.sha1(_RING.encode(), usedforsecurity=False).hexdigest()


class RunQueue:
    """The producer of the queues."""

    def __init__(self, redis: Redis, names: Names = DEFAULT) -> None:
        self._redis = redis
        self.names = names

    async def ring(self, rings: Iterable[QueueEntry], *, in_thread: UUID | None = None) -> bool:
        """Call for workers, few round trips for many; False where Redis was away, which the sweeper makes good.

        `in_thread` is the thread that has these runs: whoever follows it is told that there is news.
        """
        remaining = iter(rings)
        while some := list(islice(remaining, RINGS_A_TRIP)):
            if not await self._try_to_ring(some, in_thread):
                return False
        return True

    async def _try_to_ring(self, rings: Sequence[QueueEntry], in_thread: UUID | None) -> bool:
        try:
            outcomes = await self._ring(rings, in_thread)
            if any(isinstance(outcome, NoScriptError) for outcome in outcomes):
                await self._redis.script_load(_RING)
                outcomes = await self._ring(rings)
            if any(is_wrong_type(outcome) for outcome in outcomes):
                for pool, lane in {(call.pool, call.lane) for call in rings}:
                    await remove_wrong(
                        self._redis, {self.names.lane(pool, lane): "zset", self.names.turns(pool, lane): "hash"}
                    )
                outcomes = await self._ring(rings)
        except REDIS_ERRORS as away:
            log.warning("lanes.ring_failed error=%r", away)
            return False
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failed:
            log.warning("lanes.ring_failed error=%r", failed[0])
        return not failed

    async def _ring(self, rings: Sequence[QueueEntry], in_thread: UUID | None = None) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        job = serialize_job(JOB, (_ANY_RUN,), {}, None, now_ms(), serializer=dumps).decode()
        before, after = job.split(_ANY_RUN)
        for (pool, lane, tenant, first), calls in groupby(rings, _who_calls):
            keys = [self.names.lane(pool, lane), self.names.turns(pool, lane)]
            common = [self.names.jobs, str(expires_extra_ms), before, after, tenant, "1" if first else ""]
            pipeline.evalsha(_RING_SHA, 2, *keys, *common, *(call.member for call in calls))
        if in_thread is not None:
            pipeline.publish(self.names.thread(in_thread), b"")
        return await pipeline.execute(raise_on_error=False)

    async def check_writable(self) -> None:
        """Check that Redis takes queue entries at all.

        Raises:
            RedisError, OSError: it does not.
        """
        await check_writable(self._redis, self.names)

    async def silence(self, rings: Sequence[QueueEntry]) -> None:
        """Remove entries of runs that need no worker any more; without Redis they stay, and claims find no run."""
        with skip_if_redis_away(log, "lanes.silence_failed"):
            pipeline = self._redis.pipeline(transaction=False)
            for (pool, lane), calls in groupby(rings, lambda call: (call.pool, call.lane)):
                members = [call.member for call in calls]
                pipeline.zrem(self.names.lane(pool, lane), *members)
                pipeline.unlink(*(self.names.jobs + member for member in members))
            await pipeline.execute()

    async def absent(self, pool: str, lane: str, members: Sequence[str]) -> list[str]:
        """Tell which of these calls do not stand in a lane."""
        if not members:
            return []
        try:
            scores = cast("list[Any]", await self._redis.zmscore(self.names.lane(pool, lane), list(members)))
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return list(members)  # The next push removes that key.
        return [member for member, score in zip(members, scores, strict=True) if score is None]

    async def positions(self, rings: Sequence[QueueEntry]) -> dict[UUID, int]:
        """Return how many entries are before each of these that has one; of none, if Redis is away.

        Before entries of batches are all of the interactive queue, too.
        """
        if not rings:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for call in rings:
            pipeline.zrank(self.names.lane(call.pool, call.lane), call.member)
        waited_for = sorted({call.pool for call in rings if call.lane == Lane.BATCH})
        for pool in waited_for:
            pipeline.zcard(self.names.lane(pool, Lane.INTERACTIVE))
        told: list[int | None] = []
        with skip_if_redis_away(log, "lanes.positions_unknown"):
            told = await pipeline.execute()
        if not told:
            return {}
        before = dict(zip(waited_for, told[len(rings) :], strict=True))
        return {
            call.run_id: rank + ((before[call.pool] or 0) if call.lane == Lane.BATCH else 0)
            for call, rank in zip(rings, told, strict=False)
            if rank is not None
        }
