"""One worker process, from its settings to its end."""

from __future__ import annotations

from uuid import UUID

import uvloop

from shared import failpoints, logs
from shared.settings import Settings
from worker.app import App


def work(settings: Settings, worker_id: UUID, only: UUID | None = None) -> None:
    """Run a worker until it is told to stop, or one that is made for a single suspect until that has ended."""
    logs.configure(settings)
    if only is None:
        failpoints.arm(settings.failpoints)
    uvloop.run(_work(settings, worker_id, only))


async def _work(settings: Settings, worker_id: UUID, only: UUID | None) -> None:
    await App(settings, worker_id, only, work).run()
