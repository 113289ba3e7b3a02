"""What is done to the house, and when: a schedule that follows from a seed."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import psutil

from tests.faults.history import Breakage
from tests.faults.house import House, Post, PostgresNo, RedisNo

Thing = TypeVar("Thing")


class Kind(StrEnum):
    """What can be done."""

    KILL_WORKER = "kill a worker"
    KILL_SUSPECT = "kill the process of a suspect"
    KILL_MACHINE = "kill a worker or a parent and all that it has started"
    KILL_PARENT = "kill a parent only"
    KILL_API = "kill an API process"
    STOP = "tell a process to stop"
    FREEZE_BRIEFLY = "freeze for less than a lease"
    FREEZE = "freeze for longer than a lease"
    CUT = "cut connections"
    HOLD_UP = "hold connections up for less than a lease"
    LOSE_REPLY = "lose a reply"
    FLUSH = "flush Redis"
    KILL_REDIS = "kill Redis"
    CRASH_POSTGRES = "crash PostgreSQL"
    REDIS_NO = "have Redis say no"
    POSTGRES_NO = "have PostgreSQL say no"


A_MINUTE = {
    Kind.KILL_WORKER: 3,
    Kind.KILL_SUSPECT: 0.7,
    Kind.KILL_MACHINE: 1,
    Kind.KILL_PARENT: 0.3,
    Kind.KILL_API: 1.5,
    Kind.STOP: 1,
    Kind.FREEZE_BRIEFLY: 3,
    Kind.FREEZE: 3,
    Kind.CUT: 4,
    Kind.HOLD_UP: 1.5,
    Kind.LOSE_REPLY: 8,
    Kind.FLUSH: 0.5,
    Kind.KILL_REDIS: 0.5,
    Kind.CRASH_POSTGRES: 0.5,
    Kind.REDIS_NO: 3,
    Kind.POSTGRES_NO: 3,
}
"""How often each is done; each at least once."""

SHORT, LONG = (0.1, 0.6), (1.4, 2.2)
"""How long, in leases."""

LOST_REPLIES = {  # A prepared statement says no word of itself: `_pg3_` is any of them, `succeeded` a value of an end.
    "postgres": (b"COMMIT", b"UPDATE runs", b"UPDATE workers", b"INSERT INTO runs", b"_pg3_", b"succeeded"),
    "redis": (b"EVALSHA", b"BZMPOP", b"XRANGE", b"PUBLISH"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to do."""

    at_seconds: float
    kind: Kind
    whom: float
    """Chooses among those that it can be done to, from 0 to 1."""
    how: float
    """Chooses among the ways to do it."""

    def __str__(self) -> str:
        return f"{self.at_seconds:7.2f} s  {self.kind} ({self.whom:.3f}, {self.how:.3f})"

    def lasts(self, leases: tuple[float, float], lease_seconds: float) -> float:
        """Say how long it lasts."""
        return (leases[0] + self.how * (leases[1] - leases[0])) * lease_seconds


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Say what is done and when; the same for the same seed."""
    chance = random.Random(f"faults {seed}")
    return sorted(
        (
            Fault(chance.uniform(0, seconds), kind, chance.random(), chance.random())
            for kind, a_minute in A_MINUTE.items()
            for _ in range(max(1, round(a_minute * seconds / 60)))
        ),
        key=lambda fault: fault.at_seconds,
    )


class Vandal:
    """Does it, to whoever is there."""

    def __init__(self, house: House, lease_seconds: float) -> None:
        self._house = house
        self._lease_seconds = lease_seconds

    async def run(self, faults: list[Fault]) -> None:
        """Do everything in its time, and return once all is over."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as together:
            for fault in faults:
                await asyncio.sleep(fault.at_seconds - (time.monotonic() - began))
                together.create_task(self.do(fault))

    async def do(self, fault: Fault) -> None:
        """Do it."""
        match fault.kind:
            case Kind.FREEZE_BRIEFLY:
                await self._freeze(fault, SHORT)
            case Kind.FREEZE:
                await self._freeze(fault, LONG)
            case Kind.CUT | Kind.HOLD_UP | Kind.LOSE_REPLY:
                await self._disturb(fault)
            case Kind.FLUSH | Kind.KILL_REDIS | Kind.CRASH_POSTGRES:
                await self._break_a_server(fault)
            case Kind.REDIS_NO:
                how = list(RedisNo)[int(fault.whom * len(RedisNo))]
                await self._house.redis_says_no(how, fault.lasts(SHORT, self._lease_seconds))
            case Kind.POSTGRES_NO:
                how = list(PostgresNo)[int(fault.whom * len(PostgresNo))]
                await self._house.postgres_says_no(how, fault.lasts(SHORT, self._lease_seconds))
            case _:
                await self._end(fault)

    async def _end(self, fault: Fault) -> None:
        """End processes, with or without a word."""
        if fault.kind is Kind.KILL_MACHINE:
            if post := _chosen(fault.whom, self._homes):
                self._house.kill(f"{post.name} and all it has started", post.family())
            return
        process = _chosen(fault.whom, await self._targets(fault.kind))
        if process is None:
            return
        if fault.kind is Kind.STOP:
            self._house.stop(self._name(process), process)
        else:
            self._house.kill(self._name(process), [process])

    async def _targets(self, kind: Kind) -> list[psutil.Process]:
        """Find whom it can be done to: to be killed or frozen for long, whoever holds runs, if anybody does."""
        posts = self._house.posts
        match kind:
            case Kind.KILL_WORKER | Kind.FREEZE:
                busy = await self._house.busy_processes()
                workers = [worker for post in self._homes for worker in (*post.workers(), *post.suspects())]
                return [worker for worker in workers if worker.pid in busy] or workers
            case Kind.KILL_SUSPECT:
                return [suspect for post in self._homes for suspect in post.suspects()]
            case Kind.KILL_PARENT:
                return [head for post in self._homes if post.name == "parent" for head in post.family()[:1]]
            case Kind.KILL_API:
                return [head for post in self._house.apis for head in post.family()[:1]]
            case Kind.STOP:
                return [head for post in posts for head in post.family()[:1]]
            case _:
                everybody = [one for post in posts for one in (*post.family()[:1], *post.workers(), *post.suspects())]
                return list({process.pid: process for process in everybody}.values())

    async def _freeze(self, fault: Fault, leases: tuple[float, float]) -> None:
        if process := _chosen(fault.whom, await self._targets(fault.kind)):
            await self._house.freeze(self._name(process), process, fault.lasts(leases, self._lease_seconds))

    async def _disturb(self, fault: Fault) -> None:
        """Disturb the connections between a process and a server."""
        post = _chosen(fault.whom, self._house.posts)
        assert post is not None
        server, how = ("postgres", fault.how * 2) if fault.how < 0.5 else ("redis", fault.how * 2 - 1)
        what, pids, link = f"{post.name} from {server}", _pids(post), post.links[server]
        match fault.kind:
            case Kind.CUT:
                self._house.note(Breakage.CUT, what, pids)
                link.cut()
            case Kind.HOLD_UP:
                broken = self._house.note(Breakage.HELD_UP, what, pids)
                await link.hold_up(fault.lasts(SHORT, self._lease_seconds))
                broken.until = time.time()
            case _:
                word = LOST_REPLIES[server][int(how * len(LOST_REPLIES[server]))]
                self._house.note(Breakage.REPLY_LOST, f"{what} to {word.decode()}", pids)
                link.lose_reply(word)

    async def _break_a_server(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.FLUSH:
                await self._house.flush_redis()
            case Kind.KILL_REDIS:
                await self._house.kill_redis()
            case _:
                await self._house.crash_postgres(kill=fault.how < 0.5)

    @property
    def _homes(self) -> list[Post]:
        return [post for post in self._house.posts if post not in self._house.apis]

    def _name(self, process: psutil.Process) -> str:
        for post in self._house.posts:
            if process.pid == post.running.process.pid:
                return post.name
            if process in post.suspects():
                return f"a suspect's process of {post.name}"
            if process in post.family():
                return f"a process of {post.name}"
        return "an orphan"


def _chosen(choice: float, things: list[Thing]) -> Thing | None:
    return things[int(choice * len(things))] if things else None


def _pids(post: Post) -> list[int]:
    return [process.pid for process in post.family()]
