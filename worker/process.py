"""A worker process, or several under a supervisor, from the settings to the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from uuid import UUID

import uvloop

from agent_relay.shared import failpoints, logs, metrics
from agent_relay.shared.settings import Settings
from agent_relay.worker.app import App
from agent_relay.worker.catalog import import_model
from agent_relay.worker.guests.guard import run
from agent_relay.worker.processes.spawner import Spawner
from agent_relay.worker.processes.supervisor import WorkerSupervisor

HIGHEST_PORT = 65_535


def work(
    settings: Settings,
    worker_id: UUID,
    only: UUID | None = None,
    above: Connection | None = None,
    *,
    metrics_ports: Sequence[int] = (),
) -> None:
    """Run a worker until it is stopped, or one for a single quarantined run until that has ended.

    Its metrics are shown on the first of these ports that is free; a process for a quarantined run shows none.
    """
    logs.configure(settings)
    if only is not None:
        run(_work(settings, worker_id, only, None))
        return
    with Spawner(partial(work, settings), above, imports=partial(import_model, settings)) as nursery:
        failpoints.arm(settings.failpoints)
        metrics.serve(settings.metrics_host, metrics_ports)
        run(_work(settings, worker_id, None, nursery))


def work_in_processes(settings: Settings, processes: int) -> None:
    """Keep this number of workers running until stopped.

    This process shows its metrics on `METRICS_PORT`, and each worker on one of the ports after it.
    """
    logs.configure(settings)
    first = settings.metrics_port
    of_workers = range(first + 1, min(first + 1 + processes, HIGHEST_PORT + 1)) if first else ()
    work_there = partial(work, settings, metrics_ports=of_workers)
    with Spawner(work_there, imports=partial(import_model, settings)) as nursery:
        failpoints.arm(settings.failpoints)
        metrics.serve(settings.metrics_host, (first,) if first else ())
        uvloop.run(_supervise(settings, processes, nursery))


async def _supervise(settings: Settings, processes: int, nursery: Spawner) -> None:
    await WorkerSupervisor(settings, processes, nursery).run()


async def _work(settings: Settings, worker_id: UUID, only: UUID | None, nursery: Spawner | None) -> None:
    await App(settings, worker_id, only, nursery).run()
