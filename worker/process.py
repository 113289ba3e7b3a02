"""One worker process, from its settings to its end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from uuid import UUID

from shared import failpoints, logs, metrics
from shared.settings import Settings
from worker.app import App
from worker.catalog import import_model
from worker.nursery import Nursery
from worker.process_guard import run


def work(
    settings: Settings,
    worker_id: UUID,
    only: UUID | None = None,
    above: Connection | None = None,
    *,
    metrics_ports: Sequence[int] = (),
) -> None:
    """Run a worker until it is told to stop, or one that is made for a single suspect until that has ended.

    Its metrics are shown on the first of these ports that is free; those of a suspect's process nowhere.
    """
    logs.configure(settings)
    if only is not None:
        run(_work(settings, worker_id, only, None))
        return
    import_model(settings)
    with Nursery(partial(work, settings), above) as nursery:
        failpoints.arm(settings.failpoints)
        metrics.serve(settings.metrics_host, metrics_ports)
        run(_work(settings, worker_id, None, nursery))


async def _work(settings: Settings, worker_id: UUID, only: UUID | None, nursery: Nursery | None) -> None:
    await App(settings, worker_id, only, nursery).run()
