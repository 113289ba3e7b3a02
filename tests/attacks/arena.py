"""Where attacks take place: an API process that is attacked, one beside it that is not, a worker, and a bystander.

The bystander is a user of another tenant, who asks both processes in turn. An attack comes in rounds, with idle seconds
before each: what the bystander waits for under attack is compared with what it waits for in these, a moment before, so
that another's load on the machine slows both. The process beside shows what is the machine's doing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from tests.attacks.watched_api import STALLS
from tests.support.client import Client
from tests.support.service import ROOT, Running, Service

FILES = 1024
PACE_SECONDS = 0.02
MIB = 1 << 20
SETTLE_SECONDS = 60
"""Time for the memory of a process to come back."""
CALM_SECONDS = 2.0
"""From the end of an attack to the beginning of idle seconds: its connections are closed then."""


@dataclass
class Watched:
    """An API process whose event loop is watched."""

    running: Running
    stalls: Path

    @property
    def url(self) -> str:
        """Where it is."""
        return self.running.url

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def longest_stalls(self) -> tuple[float, float]:
        """Return the longest turn of its loop since the last call, in seconds of the processor and of the clock."""
        held, wall = STALLS.unpack(self.stalls.read_bytes())
        with self.stalls.open("r+b") as file:
            file.write(STALLS.pack(0.0, 0.0))
        return held, wall

    def memory(self) -> int:
        """Read how much memory it holds."""
        return psutil.Process(self.running.process.pid).memory_info().rss

    def disk(self) -> int:
        """Read how much its open files without a name take on disk."""
        size = 0
        for file in Path(f"/proc/{self.running.process.pid}/fd").iterdir():
            with suppress(OSError):
                if str(file.readlink()).endswith("(deleted)"):
                    size += file.stat().st_blocks * 512
        return size


def p99(waits: list[float]) -> float:
    """Return what 99 of 100 calls waited at most."""
    return sorted(waits)[int(len(waits) * 0.99)] if waits else 0.0


@dataclass
class Waits:
    """What a bystander waited for, in seconds, and what went wrong."""

    accepted: list[float] = field(default_factory=list[float])
    runs: list[str] = field(default_factory=list[str])
    picked_up: list[float] = field(default_factory=list[float])
    """From the storing of a run to the beginning of its first attempt, by the database's clock."""
    health: list[float] = field(default_factory=list[float])
    refused: list[str] = field(default_factory=list[str])


@dataclass
class Report:
    """What an attack came to."""

    name: str
    told: dict[str, Any]
    stall: float
    """The longest turn of the loop, in seconds of the processor."""
    stall_wall: float
    stall_beside: float
    memory_peak: int
    memory_after: int
    disk_peak: int
    attacked: Waits
    beside: Waits
    """At the process beside, in the same seconds."""
    idle: Waits
    """At the attacked process, in the seconds between attacks."""

    @property
    def unintended(self) -> list[str]:
        """List the answers that no attack may bring about: 5xx, but for 503 with a reason."""
        return [line for line in self.told["kept"] if not line.startswith("503 ")]


@dataclass
class Arena:
    """The processes."""

    service: Service
    api: Watched
    beside: Watched
    worker: Running

    async def attack(
        self, name: str, *, seed: int, amount: int, seconds: float, rounds: int = 1, idle_seconds: float = 1
    ) -> Report:
        """Attack one process, and look at all that it may not spoil."""
        before = self.api.memory()
        counts = Counter[str]()
        told: dict[str, Any] = {"seconds": 0.0, "counts": counts, "kept": []}
        attacked, beside, idle, idle_beside = Waits(), Waits(), Waits(), Waits()
        stall, stall_wall, stall_beside, memory_peak, disk_peak = 0.0, 0.0, 0.0, 0, 0
        for number in range(rounds):
            await asyncio.sleep(CALM_SECONDS)
            await self._bystand(asyncio.create_task(asyncio.sleep(idle_seconds)), idle, idle_beside)
            for each in (self.api, self.beside):
                each.longest_stalls()
            attack = asyncio.create_task(_attacked(name, self.api.port, seed + number, amount, seconds))
            watching = asyncio.create_task(self._peaks(attack))
            await self._bystand(attack, attacked, beside)
            memory, disk = await watching
            memory_peak, disk_peak = max(memory_peak, memory), max(disk_peak, disk)
            held, wall = self.api.longest_stalls()
            stall, stall_wall = max(stall, held), max(stall_wall, wall)
            stall_beside = max(stall_beside, self.beside.longest_stalls()[0])
            said = await attack
            told["seconds"] += said["seconds"]
            counts.update(said["counts"])
            told["kept"] += said["kept"]
        memory_after = await self._settled(before)
        for waits in (attacked, beside, idle):
            waits.picked_up = await self._picked_up(waits.runs)
        return Report(
            name,
            told,
            stall,
            stall_wall,
            stall_beside,
            memory_peak - before,
            memory_after - before,
            disk_peak,
            attacked,
            beside,
            idle,
        )

    async def _picked_up(self, runs: list[str]) -> list[float]:
        """Read for how long these runs waited for a worker; one that none has taken yet has waited until now."""
        statement = (
            "SELECT extract(epoch FROM coalesce(started_at, now()) - created_at)::float FROM runs WHERE id = ANY(%s)"
        )
        async with await psycopg.AsyncConnection.connect(self.service.database_url) as connection:
            return [waited for (waited,) in await (await connection.execute(statement, [runs])).fetchall()]

    async def _settled(self, before: int) -> int:
        """Wait until memory and disk are given back, or there was time enough; returns the memory that is held."""
        until = time.monotonic() + SETTLE_SECONDS
        while (self.api.memory() - before > 64 * MIB or self.api.disk()) and time.monotonic() < until:
            await asyncio.sleep(0.2)
        return self.api.memory()

    async def _peaks(self, until: asyncio.Task[Any]) -> tuple[int, int]:
        memory = disk = 0
        while not until.done():
            memory, disk = max(memory, self.api.memory()), max(disk, self.api.disk())
            await asyncio.sleep(0.1)
        return memory, disk

    async def _bystand(self, until: asyncio.Task[Any], attacked: Waits, beside: Waits) -> None:
        async with Client(self.api.url, "other") as one, Client(self.beside.url, "other") as other:
            health = asyncio.create_task(self._ask_for_health(until, attacked))
            while not until.done():
                for client, waits in ((one, attacked), (other, beside)):
                    await _ask(client, waits)
                    await asyncio.sleep(PACE_SECONDS)
            await health

    async def _ask_for_health(self, until: asyncio.Task[Any], waits: Waits) -> None:
        """Ask as a probe does: over a new connection each time."""
        while not until.done():
            began = time.monotonic()
            try:
                async with httpx.AsyncClient(verify=False, timeout=30) as client:
                    response = await client.get(f"{self.api.url}/health/live")
            except httpx.HTTPError as error:
                waits.refused.append(repr(error))
            else:
                if not response.is_success:
                    waits.refused.append(f"health: {response.status_code}")
                waits.health.append(time.monotonic() - began)
            await asyncio.sleep(0.1)


async def _ask(client: Client, waits: Waits) -> None:
    began = time.monotonic()
    try:
        response = await client.http.post("/runs", json={"agent_type": "echo", "query": "hello"})
    except httpx.HTTPError as error:
        waits.refused.append(repr(error))
        return
    waits.accepted.append(time.monotonic() - began)
    if response.is_success:
        waits.runs.append(response.json()["id"])
    else:
        waits.refused.append(f"{response.status_code} {response.text}")


async def _attacked(name: str, port: int, seed: int, amount: int, seconds: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "tests/attacks/attacker.py"),
        *(name, str(port), str(seed), str(amount), str(seconds)),
        stdout=subprocess.PIPE,
    )
    told, _ = await process.communicate()
    return json.loads(told)


@contextmanager
def arena(service: Service, stacks: Path | None = None) -> Generator[Arena]:
    """Start the processes; the stacks of the attacked one's long turns go to a file, if there is one."""

    def watched(number: int) -> Watched:
        stalls = service.folder / f"stalls-{number}"
        stalls.write_bytes(STALLS.pack(0.0, 0.0))
        told = [str(stacks)] if stacks is not None and number == 1 else []
        running = service.begin("tests.attacks.watched_api", str(FILES), str(stalls), *told, PORT="0")
        return Watched(running, stalls)

    attacked, beside = watched(1), watched(2)
    worker = service.worker()
    for each in (attacked, beside):
        each.running.url = each.running.await_line(r"Uvicorn running on (http://\S+)")[1]
    yield Arena(service, attacked, beside, worker)
