"""The private servers, real ones: they keep what they must, and leave nothing else behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from agent_relay.embedded import DataDir, DataDirLocked, PostgresServer, RedisServer, ServerStartError, binaries
from agent_relay.embedded.process import Process, command_of
from tests.support.eventually import eventually

CHECKOUT = Path(__file__).parents[3]
ROOT = os.geteuid() == 0


def numbers_in(postgres: PostgresServer) -> list[int]:
    with closing(psycopg.connect(postgres.url())) as connection:
        return [row[0] for row in connection.execute("select number from numbers order by number")]


def keep(postgres: PostgresServer, number: int) -> None:
    postgres.ensure_database()
    with closing(psycopg.connect(postgres.url(), autocommit=True)) as connection:
        connection.execute("create table if not exists numbers (number int)")
        connection.execute("insert into numbers values (%s)", [number])


def ping(redis: RedisServer) -> bool:
    with closing(Redis.from_url(redis.url())) as client:  # pyright: ignore[reportUnknownMemberType]
        return bool(client.ping())  # pyright: ignore[reportUnknownMemberType]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Every account may enter it, unlike pytest's own.
    path = Path(tempfile.mkdtemp(prefix="a folder "))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def test_postgres_is_the_version_of_production_and_has_no_port(postgres: PostgresServer) -> None:
    with closing(psycopg.connect(postgres.url("postgres"))) as connection:
        assert connection.info.server_version // 10_000 == 18
        assert connection.execute("show listen_addresses").fetchone() == ("",)


def test_an_environment_for_another_postgres_does_not_matter(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    postgres.restart()

    psycopg.connect(postgres.url("postgres")).close()


@pytest.mark.parametrize("kill", [False, True])
def test_what_was_committed_survives_a_restart(postgres: PostgresServer, kill: bool) -> None:
    keep(postgres, 7)
    before = numbers_in(postgres)
    url, pid = postgres.url(), postgres.process.pid

    postgres.restart(kill=kill)

    assert numbers_in(postgres) == before
    assert (postgres.url(), postgres.process.pid != pid) == (url, True)


def test_a_paused_postgres_answers_nobody_and_a_resumed_one_everybody(postgres: PostgresServer) -> None:
    with closing(psycopg.connect(postgres.url("postgres"), autocommit=True)) as connection:
        postgres.pause()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres.url("postgres"), connect_timeout=2)
        postgres.resume()
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_paused_postgres_can_be_killed_and_started_again(postgres: PostgresServer) -> None:
    keep(postgres, 8)
    postgres.pause()
    postgres.restart(kill=True)

    assert 8 in numbers_in(postgres)


def test_redis_has_a_database_for_every_test_and_evicts_nothing(redis: RedisServer) -> None:
    with closing(Redis.from_url(redis.url(1023))) as client:  # pyright: ignore[reportUnknownMemberType]
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize("kill", [False, True])
def test_redis_comes_back_on_the_same_socket(redis: RedisServer, kill: bool) -> None:
    url = redis.url()

    redis.restart(kill=kill)

    assert redis.url() == url
    assert ping(redis)


def test_a_server_leaves_neither_a_process_nor_a_folder() -> None:
    with RedisServer() as redis, PostgresServer(durable=False) as postgres:
        servers = (redis, postgres)
        assert all(server.folder.exists() for server in servers)

    assert not any(server.folder.exists() or command_of(server.process.pid) for server in servers)


def test_a_home_with_a_space_keeps_its_data_between_runs(folder: Path) -> None:
    with DataDir(folder / "its home") as home, PostgresServer(home, durable=False) as postgres:
        keep(postgres, 1)
    with DataDir(folder / "its home") as home, PostgresServer(home, durable=False) as postgres:
        assert numbers_in(postgres) == [1]


def test_a_home_keeps_its_keys_and_its_user_to_itself(folder: Path) -> None:
    with DataDir(folder) as home:
        kept = (home.api_key(), home.operator_key(), home.user_id())
    with DataDir(folder) as home:
        assert (home.api_key(), home.operator_key(), home.user_id()) == kept

    assert len(set(kept)) == 3
    for name in ("api-key", "operator-key"):
        assert (folder / name).stat().st_mode & 0o077 == 0


def test_a_home_has_one_run_at_a_time(folder: Path) -> None:
    with DataDir(folder), pytest.raises(DataDirLocked, match=f"already runs from .* \\(process {os.getpid()}\\)"):
        DataDir(folder).__enter__()
    with DataDir(folder):
        pass


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with DataDir(folder) as home:
        with PostgresServer(home, durable=False):
            pass
        (home.data / "postgres" / "PG_VERSION").write_text("9.6\n")
        postgres = PostgresServer(home, durable=False)
        with pytest.raises(ServerStartError, match="database files are incompatible with server"), postgres:
            pass

    assert not postgres.folder.exists()


def test_a_number_reused_by_another_process_does_not_keep_postgres_down(folder: Path, redis: RedisServer) -> None:
    with DataDir(folder) as home:
        with PostgresServer(home, durable=False) as postgres:
            keep(postgres, 1)
            postgres.stop(kill=True)
        pid_file = home.data / "postgres" / "postmaster.pid"
        _, *rest = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(redis.process.pid), *rest]))
        with PostgresServer(home, durable=False) as postgres:
            assert numbers_in(postgres) == [1]


def test_a_process_ends_with_the_one_that_started_it() -> None:
    start = (
        "import os, sys; from pathlib import Path; from agent_relay.embedded.process import Process;"
        "p = Process(['/bin/sleep', '600'], environment={}, folder=Path('/'));"
        "print(p.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT
    )
    assert parent.stdout
    assert parent.stdin
    pid = int(parent.stdout.readline())
    assert eventually(lambda: "sleep" in command_of(pid) and "leash" not in command_of(pid))

    parent.kill()
    parent.communicate()

    if sys.platform == "linux":
        eventually(lambda: not command_of(pid))
    else:
        os.kill(pid, signal.SIGKILL)


if ROOT:

    @pytest.fixture
    def state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(binaries, "STATE", folder / "state")
        return folder / "state"

    def test_servers_of_root_are_nobodys(postgres: PostgresServer, redis: RedisServer) -> None:
        for server in (postgres, redis):
            assert Path(f"/proc/{server.process.pid}").owner() == "nobody"

    def test_a_folder_that_only_root_may_enter_stays_as_it_is(folder: Path, state: Path) -> None:
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        with DataDir(closed / "home") as home, PostgresServer(home, durable=False) as postgres:
            keep(postgres, 1)
            assert home.data.parent == state
        with DataDir(closed / "home") as home, PostgresServer(home, durable=False) as postgres:
            assert numbers_in(postgres) == [1]

        assert (closed.stat().st_mode & 0o777, closed.owner()) == (0o700, "root")

    def test_wheels_that_only_root_can_reach_are_copied_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def not_reached(_path: Path) -> bool:
            return False

        monkeypatch.setattr(binaries, "everybody_reaches", not_reached)
        with PostgresServer(durable=False) as postgres, RedisServer() as redis:
            commands = [command_of(server.process.pid) for server in (postgres, redis)]
            assert all(command.startswith(str(state)) for command in commands)
            copied = {path: path.stat().st_ino for path in (state / "wheels").iterdir()}
        with RedisServer():
            assert {path: path.stat().st_ino for path in (state / "wheels").iterdir()} == copied
        assert len(copied) == 2


def test_a_process_says_how_it_ended() -> None:
    for command, end in (("exit 3", "status 3"), ("kill -9 $$", "SIGKILL")):
        process = Process(["/bin/sh", "-c", command], environment={}, folder=Path("/"))
        process.wait()
        assert process.end == end
