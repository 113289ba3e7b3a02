"""Receive cancels of runs, and messages into them, at once; the heartbeat brings those that are missed here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from redis.asyncio import Redis

from agent_relay.shared.away import skip_if_redis_away
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.plain_numbers import whole_number
from agent_relay.shared.redis_names import Names

log = logging.getLogger(__name__)

BACK_OFF_SECONDS = 1.0
LISTEN_SECONDS = 5.0


async def listen_for_cancels(
    redis: Redis, names: Names, cancel: Callable[[UUID], None], expect_messages: Callable[[UUID, int], None]
) -> None:
    """Call `cancel` for every run that is to be cancelled, and `expect_messages` with the number of messages into one.

    Whoever holds them, and for ever.
    """
    while True:
        with skip_if_redis_away(log, "cancels.redis_away"):
            async with redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(names.cancels)
                while True:
                    message = cast("dict[str, Any] | None", await channel.get_message(timeout=LISTEN_SECONDS))
                    told = None if message is None else _read(message["data"])
                    match told:
                        case (run_id, None):
                            cancel(run_id)
                        case (run_id, last):
                            expect_messages(run_id, last)
                        case None:
                            pass
        await asyncio.sleep(BACK_OFF_SECONDS)


def _read(data: bytes) -> tuple[UUID, int | None] | None:
    """Read the id of a run that is to be cancelled, or with a number behind it, of one that there are messages for."""
    run_id, _, last = data.partition(b" ")
    try:
        return UUID(run_id.decode()), whole_number(last.decode()) if last else None
    except ValueError:  # Anything that reaches this Redis can publish here.
        refuse(BadInput.CANCEL, "cancels", data)
        return None
