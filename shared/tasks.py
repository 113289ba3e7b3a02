"""Tasks that run side by side, and their ends.

One `cancel()` is not enough: `asyncio.wait_for` of Python 3.11 swallows one that comes as its own wait is over, in our
libraries, too; and until Python 3.13 a `TaskGroup` cancels its tasks only once, and then waits for them for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from typing import Any

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.25
"""A task that has not ended by then is cancelled again."""
TIMES = 20
"""A task that does not end after this number of cancels is left behind."""


async def stop(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until all have ended, at most `TIMES`; their exceptions are not read.

    The caller may be cancelled meanwhile, any number of times: it goes on, and is cancelled at the end.
    """
    cancelled: asyncio.CancelledError | None = None
    for _ in range(TIMES):
        pending = [task for task in tasks if not task.done()]
        if not pending:
            break
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=AGAIN_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.done():
            log.error("tasks.left_behind task=%r", task)
        elif not task.cancelled():
            task.exception()  # Else the loop logs that the exception was never read.
    if cancelled is not None:
        raise cancelled


async def run_together(*work: Coroutine[Any, Any, Any]) -> None:
    """Run until one of them ends, then stop the others; raises the first exception."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await stop(tasks)
