"""Hear at once that a run is to be cancelled; what is missed here, the next beat tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.bad_input import BadInput, refuse
from shared.names import Names

log = logging.getLogger(__name__)

BACK_OFF_SECONDS = 1.0
LISTEN_SECONDS = 5.0


async def listen_for_cancels(redis: Redis, names: Names, cancel: Callable[[UUID], None]) -> None:
    """Call `cancel` for every run that somebody asks to cancel, whoever holds it; for ever."""
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(names.cancels)
                while True:
                    message = cast("dict[str, Any] | None", await channel.get_message(timeout=LISTEN_SECONDS))
                    if message is not None and (run_id := _run_of(message["data"])) is not None:
                        cancel(run_id)
        except (RedisError, OSError) as away:
            log.warning("cancels.redis_away error=%r", away)
            await asyncio.sleep(BACK_OFF_SECONDS)


def _run_of(data: bytes) -> UUID | None:
    try:
        return UUID(data.decode())
    except ValueError:  # Anything that reaches this Redis can publish here.
        refuse(BadInput.CANCEL, "cancels", data)
        return None
