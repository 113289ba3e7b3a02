"""The one command: private servers, migrations, then API and worker, until it is told to stop.

Parts start in order and stop the other way round. A part that ends before everything is ready ends the command, with
the reason; one that ends later is named and started again.
"""

import http.client
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from shared.embedded.account import check_name
from shared.embedded.home import Home
from shared.embedded.paste import agent_to_ask, lines_to_paste
from shared.embedded.postgres import PostgresServer
from shared.embedded.process import Process
from shared.embedded.redis import RedisServer
from shared.embedded.server import Server, ServerStartError
from shared.embedded.surroundings import LOOPBACK, Surroundings
from shared.keys import hash_key

CHECKOUT = Path(__file__).resolve().parents[2]

_WISHES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GLANCE_SECONDS = 0.1
_SAME_WISH_SECONDS = 1  # `make` forwards a signal that the terminal has sent to both: that is not a second one.
_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 10
_HEALTHY_SECONDS = 30
_MARGIN_SECONDS = 10  # What a worker may take beyond the time that it gives its runs.


@dataclass(frozen=True)
class Commands:
    """What is run beside the servers; tests put stand-ins here."""

    migrations: Sequence[str | Path] = (sys.executable, "-m", "shared.migrations")
    api: Sequence[str | Path] = (sys.executable, "-m", "api")
    worker: Sequence[str | Path] = (sys.executable, "-m", "worker")


class Child:
    """One of our own processes; it writes to our terminal."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: dict[str, str]) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Start the process, again if need be."""
        self.process = Process(self._command, environment=self._environment, folder=CHECKOUT)


@dataclass
class Watched:
    """A part, and how often it has died lately."""

    part: Server | Child
    deaths: int = 0
    started: float = field(default_factory=time.monotonic)
    due: float | None = None


class CannotStartError(Exception):
    """A part did not come up."""


class Supervisor:
    """Runs everything from a home; `run` returns the exit status."""

    def __init__(self, home: Home, surroundings: Surroundings, commands: Commands | None = None) -> None:
        self._home = home
        self._surroundings = surroundings
        self._commands = commands or Commands()
        self._wishes: list[float] = []
        self._watched: list[Watched] = []
        self._ready = False

    def run(self) -> int:
        """Run until told to stop, by SIGINT, SIGTERM or SIGHUP; a second one makes haste."""
        for number in _WISHES:
            signal.signal(number, self._note_wish)
        with ExitStack() as servers:
            try:
                self._start(servers)
                while not self._stopping():
                    self._watch()
                    time.sleep(_GLANCE_SECONDS)
            except (CannotStartError, ServerStartError) as problem:
                _say(str(problem))
                return 1
            finally:
                self._stop_children()
        for number in _WISHES:  # One that comes too late changes nothing.
            signal.signal(number, signal.SIG_IGN)
        _say("Everything has stopped.")
        return 0

    def _note_wish(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._wishes or now - self._wishes[-1] > _SAME_WISH_SECONDS:
            self._wishes.append(now)

    def _stopping(self) -> bool:
        return bool(self._wishes)

    def _start(self, servers: ExitStack) -> None:
        port = self._surroundings.free_port()
        self._api_address = (LOOPBACK, port)
        added = {"HOST": LOOPBACK, "PORT": str(port), "PYTHONUNBUFFERED": "1", "API_KEYS": self._api_keys()}
        if not self._surroundings.database_url:
            check_name()
            added |= self._start_servers(servers)
        environment = self._surroundings.environment(**added)
        self._migrate(environment)
        if self._stopping():
            return
        for name, command in (("api", self._commands.api), ("worker", self._commands.worker)):
            self._watched.append(Watched(Child(name, command, environment)))
        agent_type = agent_to_ask(self._surroundings.agents)
        _say(lines_to_paste(port, self._home.api_key(), self._home.user_id(), agent_type))

    def _api_keys(self) -> str:
        """Return the keys that are given and our own, which opens nothing but this loopback address."""
        local = f"local:{hash_key(self._home.api_key().encode())}"
        return f"{self._surroundings.api_keys},{local}" if self._surroundings.api_keys else local

    def _start_servers(self, servers: ExitStack) -> dict[str, str]:
        postgres = PostgresServer(self._home)
        servers.callback(postgres.close)
        redis = RedisServer(self._home)
        servers.callback(redis.close)
        for server in (postgres, redis):
            _say(f"Starting a private {server.name}; its log is {server.log}")
            server.start(abandoned=self._stopping)
            if self._stopping():
                return {}
            self._watched.append(Watched(server))
        postgres.ensure_database()
        return {"DATABASE_URL": postgres.url(), "REDIS_URL": redis.url()}

    def _migrate(self, environment: dict[str, str]) -> None:
        if self._stopping():
            return
        migrations = Process(self._commands.migrations, environment=environment, folder=CHECKOUT)
        while not migrations.wait(_GLANCE_SECONDS):
            if self._stopping():
                migrations.stop([(signal.SIGTERM, _MARGIN_SECONDS)])
                return
        if migrations.end != "status 0":
            raise CannotStartError(f"The migrations ended with {migrations.end}; what they said stands above.")

    def _watch(self) -> None:
        """Look at every part, and for a worker as long as none was seen."""
        for watched in self._watched:
            if watched.due is None:
                if end := watched.part.process.end:
                    self._lost(watched, end)
            elif time.monotonic() > watched.due:
                self._start_again(watched)
        if not self._ready and self._a_worker_is_registered():
            self._ready = True
            _say("ready")

    def _lost(self, watched: Watched, end: str) -> None:
        name = watched.part.name
        if not self._ready:
            said = watched.part.last_words() if isinstance(watched.part, Server) else "What it said stands above."
            raise CannotStartError(f"{name} ended with {end} before it was ready. {said}")
        if time.monotonic() - watched.started > _HEALTHY_SECONDS:
            watched.deaths = 0
        _say(f"{name} {'died of' if end.startswith('SIG') else 'ended with'} {end}; starting it again")
        watched.due = time.monotonic() + min(_BACKOFF_SECONDS * 2**watched.deaths, _LONGEST_BACKOFF_SECONDS)
        watched.deaths += 1

    def _start_again(self, watched: Watched) -> None:
        watched.due, watched.started = None, time.monotonic()
        try:
            if isinstance(watched.part, Server):
                watched.part.start(abandoned=self._stopping)
            else:
                watched.part.start()
        except ServerStartError as problem:  # Its process has ended, which is seen at the next glance.
            _say(str(problem))

    def _a_worker_is_registered(self) -> bool:
        """Ask the API, through no proxy, whether a worker takes runs; agents stay registered without one."""
        connection = http.client.HTTPConnection(*self._api_address, timeout=2)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            return response.status == http.HTTPStatus.OK and b"\nagent_relay_workers{" in response.read()
        return False

    def _stop_children(self) -> None:
        """Stop API and worker together, while their servers still answer."""
        processes = [watched.part.process for watched in self._watched if isinstance(watched.part, Child)]
        running = [process for process in processes if process.end is None]
        if running:
            _say("Stopping; what runs may end first. Again to make haste.")
        for process in running:
            process.send(signal.SIGTERM)
        deadline = time.monotonic() + self._surroundings.drain_seconds + _MARGIN_SECONDS
        while any(process.end is None for process in running):
            if len(self._wishes) > 1 or time.monotonic() > deadline:
                for process in running:
                    process.stop(())
            time.sleep(_GLANCE_SECONDS)


def _say(text: str) -> None:
    with suppress(OSError):  # The terminal may be gone, which is no reason to leave servers behind.
        print(text, flush=True)  # noqa: T201  (this is the launcher's voice)
