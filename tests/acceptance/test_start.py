"""How processes start, or say in a sentence why not; and how they stop while they start."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import httpx
import psutil
import psycopg
import pytest
import redis

from agent_relay.api.server import listening
from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.shared.settings import WrongSettings
from tests.support.client import Client
from tests.support.eventually import eventually, soon
from tests.support.problems import problem_of
from tests.support.service import START_SECONDS, Running, Service, serving

NOWHERE = "postgresql://relay:s3cret@127.0.0.1:1/relay"
SECRET = "s3cret"
PROCESSES = {
    "api": ("api",),
    "worker": ("worker",),
    "parent": ("worker", "--processes", "2"),
    "migrations": ("agent_relay.shared.migrations",),
    "operator": ("worker", "dead-letters"),
}


@pytest.fixture
def service(service: Service) -> Service:
    """Processes that import what they need, as those of users do: how they start is what is tested."""
    service.forks = False
    return service


@pytest.fixture
def empty(new_empty_database: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """Processes on a database without tables."""
    with serving(new_empty_database, redis_url, tmp_path) as service:
        service.forks = False
        yield service


@pytest.fixture
def new_empty_database(postgres: PostgresServer, tmp_path: Path) -> str:
    name = f"empty_{abs(hash(tmp_path))}"
    postgres.ensure_database(name)
    return postgres.url(name)


@pytest.fixture
def guarded() -> Iterator[PostgresServer]:
    """A PostgreSQL that asks one of its users for a password."""
    with PostgresServer(durable=False) as server:
        server.ensure_database()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE USER relay PASSWORD '{SECRET}'")
            rules = Path(str((connection.execute("SHOW hba_file").fetchone() or ("",))[0]))
            rules.write_text(f"local all relay scram-sha-256\n{rules.read_text()}")
            connection.execute("SELECT pg_reload_conf()")
        yield server


def begin(service: Service, name: str, **environment: str) -> Running:
    """Start a process of that kind."""
    module, *arguments = PROCESSES[name]
    return service.begin(module, *arguments, **environment)


def refused(running: Running) -> str:
    """Wait for the end of a process that cannot start; it is to say why in one line, and no secret."""
    status = running.process.wait(START_SECONDS)
    said = running.log.read_text()
    assert status == 1, said
    assert len(said.splitlines()) == 1, said
    assert SECRET not in said
    return said


def unmigrated(said: str) -> bool:
    """Tell whether the right command is named."""
    return "run `agent-relay migrate`" in said


def test_a_taken_port_ends_the_process_with_a_sentence(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = refused(service.begin("api", PORT=port))
    assert said == f"PORT {port} on HOST 127.0.0.1 is taken by another process: stop that one, or set another PORT.\n"


def test_so_does_one_that_is_taken_while_the_servers_are_away(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        running = service.begin("api", PORT=str(other.getsockname()[1]), DATABASE_URL=NOWHERE)
        assert "is taken by another process" in refused(running)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("127.0.0.1", "PORT {port} on HOST 127.0.0.1 is taken"),
        ("0.0.0.0", "PORT {port} on HOST 0.0.0.0 is taken"),
        ("localhost", "PORT {port} on HOST localhost is taken"),
        ("203.0.113.7", "HOST 203.0.113.7 is no address of this machine"),
        ("no.such.host.invalid", "HOST no.such.host.invalid is neither an address of this machine nor a name"),
        ("a" * 64, "is neither an address of this machine nor a name"),
    ],
)
def test_why_it_cannot_be_had(host: str, sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(WrongSettings) as wrong:
            listening.listen(host, port)
    assert sentence.format(port=port) in str(wrong.value)


@pytest.mark.parametrize(
    ("family", "error", "sentence"),
    [
        (socket.AF_INET, PermissionError(13, "Permission denied"), "PORT 80 may not be taken by this user"),
        (socket.AF_INET6, OSError(97, "Address family not supported"), "which this machine does not support"),
        (socket.AF_INET, OSError(105, "No buffer space"), "cannot be listened on: No buffer space"),
    ],
)
def test_what_the_machine_forbids(monkeypatch: pytest.MonkeyPatch, family: int, error: OSError, sentence: str) -> None:
    def forbidden(*_: object) -> socket.socket:
        raise error

    monkeypatch.setattr(listening, "_bound", forbidden)
    with pytest.raises(WrongSettings, match=sentence):
        listening.listen("127.0.0.1" if family == socket.AF_INET else "::1", 80)


def test_a_name_is_listened_on_where_only_one_of_its_addresses_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.7", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", Mock(return_value=found))
    (taken,) = listening.listen("localhost", 0)
    with closing(taken):
        assert taken.getsockname()[0] == "127.0.0.1"


def lives(process: psutil.Process) -> bool:
    """Tell whether a process is there and has not ended; whoever adopts an orphan may leave its entry for a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listens(running: Running) -> bool:
    """Tell whether a process has come so far that it handles SIGTERM; the interpreter itself takes a moment."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["api", "worker", "parent", "migrations"])
def test_at_any_moment_of_its_start(service: Service, name: str, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # It takes connections, and never answers.
        hangs = f"postgresql://relay@127.0.0.1:{silent.getsockname()[1]}/relay"
        started = [(begin(service, name, DATABASE_URL=hangs), moment / 4) for moment in range(6)]
        began = time.monotonic()
        for running, seconds in started:
            eventually(lambda running=running: listens(running))
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            running.process.send_signal(number)
        ended = [(running.process.wait(START_SECONDS), running.log.read_text()) for running, _ in started]
    for status, said in ended:
        assert status == (1 if name == "migrations" else 0), said
        assert "Traceback" not in said
        assert "worker.ready" not in said


@pytest.mark.parametrize("name", ["worker", "parent"])
def test_while_it_waits_for_the_database(service: Service, name: str) -> None:
    running = begin(service, name, DATABASE_URL=NOWHERE)
    running.await_line(r"start\.waits")
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert running.terminate() == 0, running.last_words()
    assert "Traceback" not in running.log.read_text()
    assert "worker.ready" not in running.log.read_text()
    eventually(lambda: not any(lives(child) for child in children))


def test_while_it_waits_for_the_tables(empty: Service) -> None:
    worker = empty.begin("worker")
    worker.await_line(r"start\.waits")
    assert worker.terminate() == 0
    assert "Traceback" not in worker.log.read_text()


def test_an_api_that_serves(service: Service) -> None:
    assert service.api(DATABASE_URL=NOWHERE).terminate() == 0
    assert service.api().terminate() == 0


@pytest.mark.parametrize("revision", [None, "0009"])
async def test_until_they_are_migrated_every_process_says_so_and_then_goes_on(
    empty: Service, revision: str | None
) -> None:
    url = empty.database_url.replace("postgresql://", "postgresql+psycopg://")
    if revision is not None:
        upgrade(url, revision)
    api, worker = empty.api(), empty.begin("worker")
    assert unmigrated(worker.await_line(r"start\.waits.*")[0])
    async with Client(api.url) as client:
        asked = {"agent_type": "echo", "query": "Hello"}
        for path in ("/agent/query", "/agent/stream", "/runs"):
            problem = problem_of(await client.http.post(path, json=asked), 503, "service_unavailable")
            assert unmigrated(problem["detail"])
        assert unmigrated(problem_of(await client.http.get("/agents"), 503)["detail"])
        assert unmigrated(problem_of(await client.http.get(f"{api.url}/health/ready"), 503)["detail"])
        refusals = begin(empty, "operator")
        assert unmigrated(refused(refusals))

        upgrade(url)

        worker.await_line(r"worker\.ready")
        assert (await client.ask("Hello", agent_type="echo")).status_code == httpx.codes.OK
    for running in (api, worker):
        assert "Traceback" not in running.log.read_text()


async def test_newer_ones_are_told_about_and_used(service: Service) -> None:
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    migrations = begin(service, "migrations")
    assert migrations.process.wait(START_SECONDS) == 0
    assert "newer than this code; nothing was changed" in migrations.log.read_text()
    api, worker = service.api(), service.worker()
    for running in (api, worker):
        running.await_line(r"start\.newer_tables tables=9999")
    async with Client(api.url) as client:
        assert (await client.ask("Hello", agent_type="echo")).status_code == httpx.codes.OK


def test_migrations_say_what_they_did(empty: Service) -> None:
    first, second = begin(empty, "migrations"), None
    assert first.process.wait(START_SECONDS) == 0
    assert "The tables were brought from revision none to " in first.log.read_text()
    second = begin(empty, "migrations")
    assert second.process.wait(START_SECONDS) == 0
    assert second.log.read_text().startswith("The tables are up to date, of revision ")


@pytest.mark.parametrize("name", PROCESSES)
def test_a_wrong_password(service: Service, guarded: PostgresServer, name: str) -> None:
    url = guarded.url().replace("postgres@", f"relay:{SECRET}x@")
    said = refused(begin(service, name, DATABASE_URL=url))
    assert 'password authentication failed for user "relay"' in said
    assert "DATABASE_URL" in said
    assert "Correct the user and the password" in said


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("postgres@", "nobody@", 'role "nobody" does not exist'),
        ("/agent_relay?", "/nothing?", 'database "nothing" does not exist. Create that database'),
        ("postgres@", "relay@", "no password supplied"),
        ("?host=", "?sslmode=nonsense&host=", "DATABASE_URL"),
    ],
)
def test_a_wrong_user_or_database(service: Service, guarded: PostgresServer, old: str, new: str, sentence: str) -> None:
    url = guarded.url().replace(old, new)
    begun = [begin(service, name, DATABASE_URL=url) for name in ("api", "worker", "migrations")]
    for running in begun:
        assert sentence in refused(running)


def test_a_user_without_the_right_to_make_tables(service: Service, guarded: PostgresServer) -> None:
    url = guarded.url().replace("postgres@", f"relay:{SECRET}@")
    said = refused(begin(service, "migrations", DATABASE_URL=url))
    assert "permission denied for schema public. Grant the user that right" in said


@pytest.mark.parametrize("url", [NOWHERE, "postgresql://relay:s3cret@no.such.host.invalid/relay"])
def test_a_host_that_cannot_be_reached_is_waited_for_with_a_line(service: Service, url: str) -> None:
    worker = begin(service, "worker", DATABASE_URL=url)
    worker.await_line(r"start\.waits reason=.DATABASE_URL: PostgreSQL cannot be reached: ")
    assert "cannot be reached" in refused(begin(service, "migrations", DATABASE_URL=url))
    assert worker.process.poll() is None
    assert worker.log.read_text().count("start.waits") == 1
    assert SECRET not in worker.log.read_text()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("?username=relay&password=s3cretx", "Correct user, password and database number"),
        ("", "Correct user, password and database number"),
        ("?password=s3cret&db=5000", "DB index is out of range"),
    ],
)
async def test_a_redis_that_refuses(service: Service, own_redis: RedisServer, wrong: str, sentence: str) -> None:
    url = own_redis.url().split("?")[0] + wrong
    begun = [begin(service, name, REDIS_URL=url) for name in ("worker", "parent")]
    for running in begun:
        said = refused(running)
        assert "REDIS_URL" in said
        assert sentence in said
    api = service.api(REDIS_URL=url)
    assert sentence in api.await_line(r"start\.redis_refused.*")[0]
    async with httpx.AsyncClient() as client:

        async def degraded() -> bool:
            return (await client.get(f"{api.url}/health/ready")).json().get("status") == "degraded"

        await soon(degraded)
    assert len(api.log.read_text().splitlines()) < 60
    assert SECRET not in api.log.read_text()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis with a password."""
    with RedisServer() as server:
        with redis.Redis.from_url(server.url()) as client:
            client.config_set("requirepass", SECRET)
        yield server
