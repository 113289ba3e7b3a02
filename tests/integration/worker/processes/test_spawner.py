"""Processes that are forked from one that has imported everything: how they start, how they end, and who ends them."""

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

from agent_relay.shared.clock import new_id
from agent_relay.worker.processes.spawner import Spawner, SpawnerLost
from tests.support.eventually import eventually
from tests.support.service import ROOT

MAKER = """
import asyncio, sys
from functools import partial
from pathlib import Path
from agent_relay.shared.clock import new_id
from tests.integration.worker.processes.test_spawner import say_and_wait
from agent_relay.worker.processes.spawner import Spawner

async def make(nursery):
    await asyncio.gather(*(nursery.run(new_id()) for _ in range(2)))

with Spawner(partial(say_and_wait, Path(sys.argv[1]))) as nursery:
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


@pytest.fixture(params=[False, True], ids=["forked", "fresh"])
def nursery(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Spawner]:
    with Spawner(partial(say_and_wait, tmp_path), fresh=request.param) as nursery:
        yield nursery


@pytest.mark.parametrize("fresh", [False, True])
async def test_how_a_process_ended_is_told(*, fresh: bool) -> None:
    with Spawner(end, fresh=fresh) as nursery:
        assert await asyncio.gather(nursery.run(new_id()), nursery.run(new_id(), new_id())) == [3, -signal.SIGKILL]


async def test_all_are_told_to_stop_also_one_that_is_only_being_made(nursery: Spawner, tmp_path: Path) -> None:
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


async def test_whoever_was_made_is_told_to_stop_when_the_nursery_is_killed(nursery: Spawner, tmp_path: Path) -> None:
    life, losing = asyncio.create_task(nursery.run(new_id())), asyncio.create_task(nursery.lost())
    (made,) = await asyncio.to_thread(made_in, tmp_path, 1)

    os.kill(made.ppid(), signal.SIGKILL)

    with pytest.raises(SpawnerLost):
        await life
    await losing
    await asyncio.to_thread(eventually, lambda: have_gone([made]))
    with pytest.raises(SpawnerLost):
        await nursery.run(new_id())


def imported(folder: Path, worker_id: UUID, *_: object) -> None:
    """Tell whether a module is there that nothing here imports, and whether what is there counts as never garbage."""
    (folder / str(worker_id)).write_text(f"{'tabnanny' in sys.modules}, kept {gc.get_freeze_count() > 0}")


@pytest.mark.parametrize("fresh", [False, True])
async def test_what_was_imported_there_is_there_for_those_made_later(tmp_path: Path, *, fresh: bool) -> None:
    worker_ids = [new_id(), new_id()]
    with Spawner(partial(imported, tmp_path), fresh=fresh) as nursery:
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
    with Spawner(partial(imported, folder), above) as nursery:
        nursery.prepare(["tabnanny"])


async def test_what_a_worker_needs_is_imported_for_those_that_come_after_it(tmp_path: Path) -> None:
    worker_ids = [new_id(), new_id()]
    with Spawner(partial(learn, tmp_path)) as nursery:
        for worker_id in worker_ids:
            await nursery.run(worker_id)

    assert [(tmp_path / str(worker_id)).read_text().split(",")[0] for worker_id in worker_ids] == ["False", "True"]


STARTED = """
import os, sys
from functools import partial
from agent_relay.shared.settings import Settings
from agent_relay.worker.processes.spawner import Spawner
from agent_relay.worker.process import work

{before}
with Spawner(partial(work, Settings(database_url="postgresql://none", redis_url="redis://none"))) as spawner:
    print(open(f"/proc/{{spawner.pid}}/cmdline").read() == open("/proc/self/cmdline").read())
"""

A_THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
THREADS_OF_UVLOOP = """
import asyncio, uvloop
async def look_up():
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
uvloop.run(look_up())
"""
MACOS = "sys.platform = 'darwin'"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")
@pytest.mark.parametrize(
    ("before", "is_forked"),
    [("", True), (A_THREAD, False), (THREADS_OF_UVLOOP, False), (MACOS, False)],
    ids=["alone", "beside a thread", "beside threads of uvloop", "on macOS"],
)
def test_a_process_is_forked_only_where_that_is_safe(before: str, *, is_forked: bool) -> None:
    script = STARTED.format(before=before)
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(is_forked)
