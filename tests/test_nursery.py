"""Processes that are forked from one that has imported everything: how they end, and who ends them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from shared.clock import new_id
from tests.eventually import eventually
from tests.service import ROOT
from worker.nursery import Nursery, NurseryLost

MAKER = """
import asyncio, sys
from functools import partial
from pathlib import Path
from shared.clock import new_id
from tests.test_nursery import say_and_wait
from worker.nursery import Nursery

async def make(nursery):
    await asyncio.gather(*(nursery.run(new_id()) for _ in range(2)))

with Nursery(partial(say_and_wait, Path(sys.argv[1]))) as nursery:
    asyncio.run(make(nursery))
"""


def say_and_wait(folder: Path, worker_id: UUID, *_: object) -> None:
    """Work until told to stop, where nobody else ends it."""
    (folder / str(worker_id)).write_text(str(os.getpid()))
    time.sleep(90)


def end(_worker_id: UUID, only: UUID | None, _above: Connection) -> None:
    """End: in an orderly way, or killed."""
    if only is None:
        raise SystemExit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def made_in(folder: Path, count: int) -> list[psutil.Process]:
    """Wait for so many processes that have said so."""
    eventually(lambda: len([said for said in folder.iterdir() if said.read_text()]) == count)
    return [psutil.Process(int(said.read_text())) for said in folder.iterdir()]


def have_gone(processes: list[psutil.Process]) -> bool:
    """Tell whether none of them runs any more."""
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with Nursery(partial(say_and_wait, tmp_path)) as nursery:
        yield nursery


async def test_how_a_process_ended_is_told() -> None:
    with Nursery(end) as nursery:
        assert await asyncio.gather(nursery.run(new_id()), nursery.run(new_id(), new_id())) == [3, -signal.SIGKILL]


async def test_all_are_told_to_stop_also_one_that_is_only_being_made(nursery: Nursery, tmp_path: Path) -> None:
    first = asyncio.create_task(nursery.run(new_id()))
    await asyncio.to_thread(made_in, tmp_path, 1)
    second = asyncio.create_task(nursery.run(new_id()))
    await asyncio.sleep(0)

    nursery.stop()

    assert await asyncio.wait_for(asyncio.gather(first, second), 30) == [-signal.SIGTERM] * 2


def test_whoever_was_made_is_told_to_stop_when_its_maker_is_killed(tmp_path: Path) -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], cwd=ROOT)
    made = made_in(tmp_path, 2)
    nursery = made[0].parent()

    maker.kill()
    maker.wait()

    assert nursery
    eventually(lambda: have_gone([*made, nursery]))


async def test_whoever_was_made_is_told_to_stop_when_the_nursery_is_killed(nursery: Nursery, tmp_path: Path) -> None:
    life, losing = asyncio.create_task(nursery.run(new_id())), asyncio.create_task(nursery.lost())
    (made,) = await asyncio.to_thread(made_in, tmp_path, 1)

    os.kill(made.ppid(), signal.SIGKILL)

    with pytest.raises(NurseryLost):
        await life
    await losing
    await asyncio.to_thread(eventually, lambda: have_gone([made]))
    with pytest.raises(NurseryLost):
        await nursery.run(new_id())


def imported(folder: Path, worker_id: UUID, *_: object) -> None:
    """Tell whether a module is there that nothing here imports, and whether what is there counts as never garbage."""
    (folder / str(worker_id)).write_text(f"{'tabnanny' in sys.modules}, kept {gc.get_freeze_count() > 0}")


async def test_what_was_imported_there_is_there_for_those_made_later(tmp_path: Path) -> None:
    worker_ids = [new_id(), new_id()]
    with Nursery(partial(imported, tmp_path)) as nursery:
        await nursery.run(worker_ids[0])
        nursery.prepare(["no.such.module", "tabnanny"])
        await nursery.run(worker_ids[1])

    assert [(tmp_path / str(worker_id)).read_text() for worker_id in worker_ids] == [
        "False, kept True",
        "True, kept True",
    ]


def learn(folder: Path, worker_id: UUID, only: UUID | None, above: Connection) -> None:
    """Learn what is needed, as a worker does that has loaded its agents, and tell its own nursery."""
    imported(folder, worker_id, only)
    with Nursery(partial(imported, folder), above) as nursery:
        nursery.prepare(["tabnanny"])


async def test_what_a_worker_needs_is_imported_for_those_that_come_after_it(tmp_path: Path) -> None:
    worker_ids = [new_id(), new_id()]
    with Nursery(partial(learn, tmp_path)) as nursery:
        for worker_id in worker_ids:
            await nursery.run(worker_id)

    assert [(tmp_path / str(worker_id)).read_text().split(",")[0] for worker_id in worker_ids] == ["False", "True"]
