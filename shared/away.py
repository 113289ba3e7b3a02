"""What code does while PostgreSQL or Redis is away: skip a step that can wait, or repeat one that cannot.

with skip_if_redis_away(log, "queue.push_failed"):
await pipeline.execute()
return True
return False
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from agent_relay.shared.bad_input import failed
from agent_relay.shared.database import is_away

Result = TypeVar("Result")
Matches = Callable[[BaseException], bool]

REDIS_ERRORS = (RedisError, OSError)
"""The exceptions of a command if Redis is away, or refuses it."""
DATABASE_ERRORS = (SQLAlchemyError, OSError)
"""The exceptions of a statement if PostgreSQL is away, or refuses it; `is_away` distinguishes the two."""


class Skip:
    """A context manager that leaves its block at an error of some kind and goes on after it."""

    __slots__ = ("_matches", "_note", "error")

    def __init__(self, matches: Matches, note: Callable[[BaseException], None]) -> None:
        self._matches = matches
        self._note = note
        self.error: BaseException | None = None
        """The error for which the rest of the block was skipped, if it was."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if error is None or not self._matches(error):
            return False
        self.error = error
        self._note(error)
        return True


def skip_if_redis_away(log: logging.Logger, event: str, *values: object) -> Skip:
    """Skip the rest of a block where Redis is away or refuses, and log the event with the error."""
    return Skip(_is_of_redis, _warning(log, event, values))


def skip_if_database_away(log: logging.Logger, event: str, *values: object) -> Skip:
    """Skip the rest of a block where PostgreSQL is away or refuses, and log the event with the error."""
    return Skip(_is_of_database, _warning(log, event, values))


def skip_if_failed(part: str, step: str) -> Skip:
    """Skip the rest of a block at any exception, and count and log it as a failed step; for the loops of a process."""
    return Skip(_is_exception, lambda error: failed(part, step, error))


async def repeat_while_away(
    call: Callable[[], Awaitable[Result]],
    log: logging.Logger,
    event: str,
    *values: object,
    pause_seconds: float,
    seconds: float = math.inf,
) -> Result:
    """Call until PostgreSQL is not away, and log the event with each error; returns what the call returns.

    Raises:
        SQLAlchemyError: the call failed for another reason, or PostgreSQL is still away after `seconds`.
    """
    loop = asyncio.get_running_loop()
    note = _warning(log, event, values)
    give_up_at = loop.time() + seconds
    while True:
        try:
            return await call()
        except SQLAlchemyError as error:
            if not is_away(error) or loop.time() > give_up_at:
                raise
            note(error)
        await asyncio.sleep(pause_seconds)


def _is_of_redis(error: BaseException) -> bool:
    return isinstance(error, REDIS_ERRORS)


def _is_of_database(error: BaseException) -> bool:
    return isinstance(error, DATABASE_ERRORS)


def _is_exception(error: BaseException) -> bool:
    return isinstance(error, Exception)


def _warning(log: logging.Logger, event: str, values: tuple[object, ...]) -> Callable[[BaseException], None]:
    template = f"{event} error=%r"
    return lambda error: log.warning(template, *values, error)
