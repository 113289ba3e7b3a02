"""The house that is to be shaken: real servers, real processes that are restarted as a supervisor would, and a model.

Between each process and each server lies a link that can be cut. Whatever is broken is noted in the history.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import psutil
import psycopg
from redis.asyncio import Redis

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.shared.failpoints import Action, Failpoint
from agent_relay.shared.migrations.upgrade import upgrade
from tests.faults.errands import ERRANDS, LEDGER
from tests.faults.guests import GUESTS
from tests.faults.history import Breakage, Broken, History
from tests.faults.link import Link
from tests.faults.script import AGENTS
from tests.support.service import ROOT, Running, Service

LOOK_SECONDS = 0.3
RESTART_SECONDS = 0.3
SETTLE_SECONDS = 60
READY = {
    "parent": r"(?s)worker\.ready.*worker\.ready",
    "worker": r"worker\.ready",
    "api-1": "Uvicorn running",
    "api-2": "Uvicorn running",
}
TRAPS = {
    "api": (
        Failpoint.RUN_ACCEPTED,
        Failpoint.RUN_RUNG,
        Failpoint.CANCEL_STORED,
        Failpoint.MESSAGE_STORED,
        Failpoint.ANSWER_STORED,
        Failpoint.TICK_MADE,
        Failpoint.TICK_STORED,
        Failpoint.RUNS_STARTED,
        Failpoint.RUNS_TAKEN_BACK,
    ),
    "worker": (
        Failpoint.RUN_POPPED,
        Failpoint.RUN_CLAIMED,
        Failpoint.LOG_APPENDED,
        Failpoint.STEP_FINISHED,
        Failpoint.STEP_STORED,
        Failpoint.MESSAGE_GIVEN,
        Failpoint.RUN_WAITING,
        Failpoint.RUN_FLUSHED,
        Failpoint.RUN_STORED,
        Failpoint.END_TOLD,
        Failpoint.RUN_GIVEN_BACK,
        Failpoint.RUNS_TAKEN_BACK,
    ),
}
"""Where which process may be told to die or to freeze; `LOG_APPENDED` comes by often, the others once a run at most."""


_BUSY = "SELECT pid FROM workers WHERE id IN (SELECT worker_id FROM runs WHERE status = 'running')"
_KILLED_AT = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*failpoint\.reached name=(?P<name>\w+) "
    r"action=kill pid=(?P<pid>\d+)(?: |$)",
    re.MULTILINE,
)


class RedisNo(StrEnum):
    """What Redis can say instead of doing what it is asked for."""

    READONLY = "READONLY"
    OOM = "OOM"
    MISCONF = "MISCONF"
    LOADING = "LOADING"


class PostgresNo(StrEnum):
    """What PostgreSQL can say."""

    READ_ONLY = "25006"
    TOO_MANY_CONNECTIONS = "53300"
    ADMIN_SHUTDOWN = "57P01"


ROLE = "relay"
"""Who owns the database, and is no superuser: to these PostgreSQL does not say all that it says to others."""
_TERMINATE = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"
POSTGRES_NOES: dict[PostgresNo, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PostgresNo.READ_ONLY: (
        ("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"),
        ("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"),
    ),
    PostgresNo.TOO_MANY_CONNECTIONS: (
        (f"ALTER ROLE {ROLE} CONNECTION LIMIT 0", _TERMINATE),
        (f"ALTER ROLE {ROLE} CONNECTION LIMIT -1",),
    ),
    PostgresNo.ADMIN_SHUTDOWN: ((_TERMINATE,), (_TERMINATE,)),
}
"""How it begins and ends."""


class Post:
    """A process that is kept running: another one takes its place when it dies."""

    def __init__(self, name: str, start: Callable[[], Running], links: dict[str, Link]) -> None:
        self.name = name
        self.links = links
        self.running = start()
        self._start = start

    async def keep(self) -> None:
        """Restart it for ever."""
        while True:
            while self.running.process.poll() is None:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(LOOK_SECONDS)
            await asyncio.sleep(RESTART_SECONDS)
            self.running = self._start()

    def family(self) -> list[psutil.Process]:
        """The process and everything that it has started, itself first."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.running.process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def workers(self) -> list[psutil.Process]:
        """The processes of the family that answer runs; those made for a suspect are not among them."""
        for process in self.family()[:1]:
            if _runs(process, "-m agent_relay.worker"):
                return [made for made in _made_by(process) if _makes(made)] if _keeps(process) else [process]
        return []

    def suspects(self) -> list[psutil.Process]:
        """The processes of the family that are made for a suspect."""
        made = [suspect for worker in self.workers() for suspect in _made_by(worker)]
        for process in self.family()[:1]:
            if _keeps(process):
                made += [suspect for suspect in _made_by(process) if not _makes(suspect)]
        return made


class House:
    """Two API processes, a parent with two workers, a worker of its own, and everything that they need."""

    def __init__(self, seed: int, folder: Path, history: History, environment: dict[str, str]) -> None:
        self.history = history
        self._chance = random.Random(f"house {seed}")
        self.posts: list[Post] = []
        self.postgres = PostgresServer(durable=False)
        self.redis = RedisServer()
        self.model_url = ""
        self.api_urls: list[str] = []
        self._folder = folder
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self._environment = environment
        self._lease_seconds = float(environment["LEASE_SECONDS"])
        self._family: dict[int, psutil.Process] = {}
        self._frozen: set[int] = set()
        self._thawing: set[asyncio.Task[None]] = set()
        self._mending = asyncio.Lock()

    @property
    def apis(self) -> list[Post]:
        """Who takes requests."""
        return [post for post in self.posts if post.name.startswith("api")]

    @property
    def database_url(self) -> str:
        """The database, past every link."""
        return self.postgres.url().replace("postgres@", f"{ROLE}@")

    def note(self, kind: Breakage, what: str, pids: Iterable[int] = ()) -> Broken:
        """Note that something is broken."""
        broken = Broken(time.time(), kind, what, tuple(pids))
        self.history.broken.append(broken)
        return broken

    @asynccontextmanager
    async def living(self) -> AsyncGenerator[House]:
        """Start everything, keep it running, and leave nothing behind."""
        model: subprocess.Popen[str] | None = None
        service = Service("", "", self._folder, forks=False)  # They are found by their command lines.
        keeping: list[asyncio.Task[None]] = []
        try:
            self.postgres.start()
            self.postgres.ensure_database()
            with psycopg.connect(self.postgres.url(), autocommit=True) as operator:
                operator.execute(f"CREATE ROLE {ROLE} LOGIN")
                operator.execute(f"ALTER DATABASE agent_relay OWNER TO {ROLE}")
                operator.execute(f"ALTER SCHEMA public OWNER TO {ROLE}")
            upgrade(self.database_url.replace("postgresql://", "postgresql+psycopg://"))
            self.redis.start()
            model = _start_model()
            assert model.stdout is not None
            self.model_url = f"http://127.0.0.1:{model.stdout.readline().strip()}"
            for name in READY:
                self.posts.append(await self._post(service, name))
            for post in self.posts:
                await asyncio.to_thread(post.running.await_line, READY[post.name])
            keeping = [asyncio.create_task(post.keep()) for post in self.posts]
            keeping.append(asyncio.create_task(self._watch()))
            yield self
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            self._look()
            for process in self._family.values():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.to_thread(service.stop)
            for post in self.posts:
                for link in post.links.values():
                    await link.close()
            if model is not None:
                model.kill()
                model.communicate()
            self.redis.close()
            self.postgres.close()

    async def _post(self, service: Service, name: str) -> Post:
        links = {
            "postgres": Link(self.postgres.folder / ".s.PGSQL.5432"),
            "redis": Link(self.redis.folder / "redis.sock"),
        }
        for link in links.values():
            await link.open()
        environment = {
            "DATABASE_URL": f"postgresql://{ROLE}@127.0.0.1:{links['postgres'].port}/agent_relay?sslmode=disable",
            "REDIS_URL": f"redis://127.0.0.1:{links['redis'].port}/0",
            "AGENTS": ",".join(f"{agent}={path}" for agent, path in (AGENTS | GUESTS | ERRANDS).items()),
            "OPENAI_BASE_URL": f"{self.model_url}/v1",
            "OPENAI_API_KEY": "none",
            LEDGER: str(self.ledger),
            **self._environment,
        }
        if name.startswith("api"):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment["PORT"] = str(free.getsockname()[1])
            self.api_urls.append(f"http://127.0.0.1:{environment['PORT']}")
            return Post(name, lambda: service.begin("api", **environment, **self._trap(name)), links)
        arguments = ["--processes", "2"] if name == "parent" else []
        return Post(name, lambda: service.begin("worker", *arguments, **environment, **self._trap(name)), links)

    def _trap(self, name: str) -> dict[str, str]:
        """Set a trap, or none, in the next life of a process."""
        kind = "api" if name.startswith("api") else "worker"
        trap, action = self._chance.choice(TRAPS[kind]), self._chance.choice([Action.KILL, Action.FREEZE])
        passes = self._chance.randint(5, 100) if trap is Failpoint.LOG_APPENDED else self._chance.randint(0, 8)
        often = 0.3 if name == "parent" else 0.6  # Its workers inherit it, each time anew.
        return {"FAILPOINTS": f"{trap}={action}@{passes}"} if self._chance.random() < often else {}

    async def busy_processes(self) -> set[int]:
        """Tell which processes hold runs."""
        with suppress(psycopg.OperationalError):
            async with await psycopg.AsyncConnection.connect(self.database_url) as connection:
                return {pid async for (pid,) in await connection.execute(_BUSY)}
        return set()

    # What can be done to processes.

    def kill(self, what: str, processes: Iterable[psutil.Process]) -> None:
        """Kill them all at once."""
        killed = list(processes)
        broken = self.note(Breakage.KILLED, what, [process.pid for process in killed])
        broken.started = _started_by(killed)
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self, what: str, process: psutil.Process) -> None:
        """Tell it to stop."""
        self.note(Breakage.STOPPED, what, [process.pid]).started = _started_by([process])
        with suppress(psutil.NoSuchProcess):
            process.terminate()

    async def freeze(self, what: str, process: psutil.Process, seconds: float) -> None:
        """Stop it in its tracks for so long."""
        if process.pid in self._frozen:
            return
        self._frozen.add(process.pid)
        broken = self.note(Breakage.FROZEN, what, [process.pid])
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            await asyncio.sleep(seconds)
            process.resume()
        broken.until = time.time()
        self._frozen.discard(process.pid)

    # What can be done to servers.

    async def crash_postgres(self, *, kill: bool) -> None:
        """Have PostgreSQL die, without a word or immediately, and come back."""
        async with self._mending:
            broken = self.note(Breakage.POSTGRES_CRASHED, "SIGKILL" if kill else "SIGQUIT")
            if kill:
                await asyncio.to_thread(self.postgres.stop, kill=True)
            else:
                await asyncio.to_thread(self.postgres.process.stop, ((signal.SIGQUIT, 20),))
            await asyncio.to_thread(self.postgres.start)
            broken.until = time.time()

    async def kill_redis(self) -> None:
        """Have Redis die with all it holds, and come back empty."""
        async with self._mending:
            broken = self.note(Breakage.REDIS_KILLED, "redis")
            await asyncio.to_thread(self.redis.restart, kill=True)
            broken.until = time.time()

    async def flush_redis(self) -> None:
        """Have Redis forget everything."""
        async with self._mending:
            self.note(Breakage.FLUSHED, "redis")
            async with Redis.from_url(self.redis.url()) as redis:
                await redis.flushall()

    async def redis_says_no(self, no: RedisNo, seconds: float) -> None:
        """Have Redis refuse everything that writes, or everything, for so long; it forgets nothing."""
        links = [post.links["redis"] for post in self.posts]
        dump = self.redis.folder / "dump.rdb"
        async with self._mending, Redis.from_url(self.redis.url()) as redis:
            broken = self.note(Breakage.REDIS_SAID_NO, no)
            match no:
                case RedisNo.READONLY:
                    await redis.replicaof("127.0.0.1", 1)
                    await asyncio.sleep(seconds)
                    await redis.replicaof("NO", "ONE")
                case RedisNo.OOM:
                    await redis.config_set("maxmemory", 1)
                    await asyncio.sleep(seconds)
                    await redis.config_set("maxmemory", 0)
                case RedisNo.MISCONF:  # It cannot save where a folder is in the way.
                    dump.mkdir()
                    await redis.config_set("save", "3600 1")
                    await redis.bgsave()
                    await asyncio.sleep(seconds)
                    await redis.config_set("save", "")
                    dump.rmdir()
                case RedisNo.LOADING:
                    for link in links:
                        link.say(b"LOADING Redis is loading the dataset in memory")
                    await asyncio.sleep(seconds)
                    for link in links:
                        link.say(None)
            broken.until = time.time()

    async def postgres_says_no(self, no: PostgresNo, seconds: float) -> None:
        """Have PostgreSQL take no writes, or no connections, for so long."""
        begin, end = POSTGRES_NOES[no]
        async with self._mending:
            broken = self.note(Breakage.POSTGRES_SAID_NO, no)
            await asyncio.to_thread(self._execute, begin)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self._execute, end)
            broken.until = time.time()

    def _execute(self, statements: Iterable[str]) -> None:
        with psycopg.connect(self.postgres.url(), autocommit=True) as operator:
            operator.execute("SET default_transaction_read_only = off")
            for statement in statements:
                operator.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]

    # What goes on all the time.

    async def _watch(self) -> None:
        """Know everybody who ever lived here; and thaw who froze at a failpoint."""
        while True:
            self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        for pid, process in list(self._family.items()):
            try:
                status = process.status()
                self._family |= {child.pid: child for child in process.children(recursive=True)}
            except psutil.NoSuchProcess:
                status = psutil.STATUS_ZOMBIE
            if status == psutil.STATUS_ZOMBIE:
                del self._family[pid]
            elif status == psutil.STATUS_STOPPED and pid not in self._frozen:
                seconds = self._lease_seconds * self._chance.uniform(0.2, 2)
                thawing = asyncio.create_task(self.freeze("at a failpoint", process, seconds))
                self._thawing.add(thawing)
                thawing.add_done_callback(self._thawing.discard)
        for post in self.posts:
            self._family |= {process.pid: process for process in post.family()}
        for pid, process in self._family.items():
            if pid not in self.history.ancestors:
                with suppress(psutil.NoSuchProcess):
                    self.history.ancestors[pid] = frozenset(above.pid for above in process.parents())

    def read_the_logs(self) -> None:
        """Note who was killed at a failpoint."""
        for log in self._folder.glob("*.log"):
            for line in _KILLED_AT.finditer(log.read_text(errors="replace")):
                at = datetime.strptime(line["at"], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
                killed = Broken(at, Breakage.KILLED, f"at {line['name']}", (int(line["pid"]),))
                self.history.broken.append(killed)

    def orphans(self) -> list[psutil.Process]:
        """Those whose parent was killed, and who live on."""
        at_home = {process.pid for post in self.posts for process in post.family()}
        return [process for pid, process in self._family.items() if pid not in at_home and process.is_running()]


def _start_model() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "tests.faults.model"], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _started_by(processes: Iterable[psutil.Process]) -> tuple[int, ...]:
    started: list[int] = []
    for process in processes:
        with suppress(psutil.Error):
            started += [child.pid for child in process.children(recursive=True)]
    return tuple(started)


def _made_by(process: psutil.Process) -> list[psutil.Process]:
    """Find the processes that were forked from its nursery, which is a child of its own."""
    with suppress(psutil.Error):
        return [child for nursery in process.children() for child in nursery.children()]
    return []


def _makes(process: psutil.Process) -> bool:
    """Tell whether it has a nursery, as all have that are not made for a suspect."""
    with suppress(psutil.Error):
        return bool(process.children())
    return False


def _keeps(process: psutil.Process) -> bool:
    """Tell whether it is the parent of workers."""
    return _runs(process, "--processes")


def _runs(process: psutil.Process, words: str) -> bool:
    with suppress(psutil.Error):
        return words in " ".join(process.cmdline())
    return False
