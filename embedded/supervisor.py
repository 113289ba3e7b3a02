"""The one command: private servers, migrations, then API and worker, until it is told to stop.

Parts start in order and stop the other way round. A part that ends before everything is ready ends the command, with
the reason; one that ends later is named and started again.
"""

import http.client
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from agent_relay.embedded.data_dir import DataDir
from agent_relay.embedded.environment import LOOPBACK, LaunchEnvironment
from agent_relay.embedded.first_steps import agent_to_ask, lines_to_paste
from agent_relay.embedded.postgres import AGENTS, API, WORKER, PostgresServer
from agent_relay.embedded.process import Process
from agent_relay.embedded.redis import RedisServer
from agent_relay.embedded.server import Server, ServerStartError
from agent_relay.embedded.user import check_name
from agent_relay.shared.key_format import hash_key

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

    migrations: Sequence[str | Path] = (sys.executable, "-P", "-m", "agent_relay.shared.migrations")
    api: Sequence[str | Path] = (sys.executable, "-P", "-m", "agent_relay.api")
    worker: Sequence[str | Path] = (sys.executable, "-P", "-m", "agent_relay.worker")


class Child:
    """One of our own processes; it writes to our terminal."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: dict[str, str]) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Start the process, again if need be."""
        self.process = Process(self._command, environment=self._environment, folder=Path.cwd())


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

    def __init__(self, home: DataDir, surroundings: LaunchEnvironment, commands: Commands | None = None) -> None:
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
        added = {"HOST": LOOPBACK, "PORT": str(port), "PYTHONUNBUFFERED": "1", **self._keys()}
        urls: dict[str, dict[str, str]] = {}
        if not self._surroundings.database_url:
            check_name()
            urls = self._start_servers(servers)
        self._home.tell_clients(f"http://{LOOPBACK}:{port}")
        self._migrate(self._surroundings.environment(**added, **urls.get("migrations", {})))
        if self._stopping():
            return
        for name, command in (("api", self._commands.api), ("worker", self._commands.worker)):
            environment = self._surroundings.environment(**added, **urls.get(name, {}))
            self._watched.append(Watched(Child(name, command, environment)))
        agent_type = agent_to_ask(self._surroundings.agents)
        _say(lines_to_paste(port, self._home.api_key(), self._home.user_id(), agent_type))

    def _keys(self) -> dict[str, str]:
        """Return the keys that are given and our own, which open nothing but this loopback address."""
        given = {"API_KEYS": self._surroundings.api_keys, "OPERATOR_KEYS": self._surroundings.operator_keys}
        ours = {"API_KEYS": self._home.api_key(), "OPERATOR_KEYS": self._home.operator_key()}
        local = {name: f"local:{hash_key(key.encode())}" for name, key in ours.items()}
        return {name: f"{given[name]},{pair}" if given[name] else pair for name, pair in local.items()}

    def _start_servers(self, servers: ExitStack) -> dict[str, dict[str, str]]:
        """Start both; returns what each of our processes has to know of them, of which each has a role of its own."""
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
        postgres.ensure_roles()
        url, to_redis = postgres.url, {"REDIS_URL": redis.url()}
        of_agents = {} if self._surroundings.agent_database_url else {"AGENT_DATABASE_URL": url(role=AGENTS)}
        roles = {"DATABASE_API_ROLE": API, "DATABASE_WORKER_ROLE": WORKER, "DATABASE_AGENT_ROLE": AGENTS}
        return {
            "migrations": {"DATABASE_URL": url(), **roles},
            "api": {"DATABASE_URL": url(role=API), **to_redis},
            "worker": {"DATABASE_URL": url(role=WORKER), **to_redis, **of_agents},
        }

    def _migrate(self, environment: dict[str, str]) -> None:
        if self._stopping():
            return
        migrations = Process(self._commands.migrations, environment=environment, folder=Path.cwd())
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
            if link := self._sign_in_link():
                key = self._home.path / "api-key"
                _say(f"Open {link} in a browser: it signs in once, within 10 minutes. Later, use the key in {key}.")
                host, port = self._api_address
                operator_key = self._home.path / "operator-key"
                _say(f"Operations are at http://{host}:{port}/ops; sign in with the key in {operator_key}.")
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

    def _sign_in_link(self) -> str | None:
        """Have the API make a link that signs a browser in as the sample user; None where it serves no pages."""
        connection = http.client.HTTPConnection(*self._api_address, timeout=2)
        headers = {"X-API-Key": self._home.api_key(), "X-User-ID": self._home.user_id()}
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/console/codes", headers=headers)
            response = connection.getresponse()
            if response.status == http.HTTPStatus.CREATED:
                host, port = self._api_address
                return f"http://{host}:{port}{json.loads(response.read())['url']}"
        return None

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
