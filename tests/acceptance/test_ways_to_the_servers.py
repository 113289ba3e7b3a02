"""The ways to the servers: over each of them the whole service answers, whichever process reads the setting."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import psycopg
import pytest
import trustme
from psycopg import sql
from redis import Redis, RedisError

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.embedded.user import hand_over
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.shared.redis import connect
from agent_relay.shared.settings import Settings
from tests.support.client import Client, names, texts
from tests.support.debian import DebianRedis, PgBouncer, TcpPostgres, certify, free_port
from tests.support.eventually import eventually
from tests.support.service import ROOT, Running, Service, serving

USER, PASSWORD = "relay", "p@ss/w%rd:+ ü#?&=\\'"
REDIS_PASSWORD = "p@ss/w%rd:+ü#?&="
"""Without a space or a quotation mark, which mean something else in a file of Redis."""
ENCODED = quote(PASSWORD, safe="")

ODD_DEFAULTS = {
    "DateStyle": "SQL, DMY",
    "TimeZone": "Asia/Kathmandu",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
    "search_path": "relay, public",
    "lock_timeout": "30s",
}


async def answers(service: Service) -> tuple[Running, Running]:
    """Start both halves, and have a run answered, streamed, read again and cancelled."""
    api, worker = service.api(), service.worker()
    async with Client(api.url) as client:
        thread_id = await client.thread("echo")
        events = await client.stream("zażółć 🙂 once", thread_id=thread_id)
        assert (names(events)[0], names(events)[-1]) == ("message_created", "done")
        assert texts(events)[-1] == "You said: zażółć 🙂 once"
        run = await client.ended(events[0]["run_id"])
        assert run["status"] == "succeeded"
        assert run["created_at"].endswith("Z")  # In UTC, whatever the role's time zone.
        assert [message["role"] for message in await client.messages(thread_id)] == ["user", "assistant"]
        slow = await client.run("60 seconds", agent_type="slow")
        async with client.following(slow["id"]) as stream:
            async for event in stream:
                if event["event"] == "text_delta":
                    await client.http.post(f"/runs/{slow['id']}/cancel")
        assert (await client.ended(slow["id"]))["status"] == "cancelled"
    return api, worker


@pytest.fixture(scope="module")
def tcp_postgres() -> Iterator[TcpPostgres]:
    """PostgreSQL on TCP, with a role whose defaults are odd and a schema of its own beside another program's tables."""
    with TcpPostgres() as server:
        prepare(server)
        upgrade(url_of(server))
        yield server


def prepare(server: PostgresServer) -> None:
    """Make the database, the role and its schema."""
    server.ensure_database()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE relay LOGIN PASSWORD {}").format(PASSWORD))
        for name, value in ODD_DEFAULTS.items():
            said = sql.SQL("relay, public") if name == "search_path" else sql.Literal(value)
            connection.execute(sql.SQL("ALTER ROLE relay SET {} TO {}").format(sql.Identifier(name), said))
        connection.execute("CREATE SCHEMA relay AUTHORIZATION relay")
        connection.execute("CREATE TABLE alembic_version (version_num text); GRANT ALL ON alembic_version TO relay")
        connection.execute("INSERT INTO alembic_version VALUES ('of-another-program')")
        connection.execute("CREATE TABLE runs (of_another_program text)")


def url_of(server: TcpPostgres | PgBouncer, **parameters: str) -> str:
    """Name the database by way of TCP."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"postgresql://{USER}:{ENCODED}@127.0.0.1:{server.port}/agent_relay?{query}"


async def test_a_role_with_odd_defaults_an_odd_password_and_a_schema_of_its_own(
    tcp_postgres: TcpPostgres, redis_url: str, tmp_path: Path
) -> None:
    with serving(url_of(tcp_postgres), redis_url, tmp_path) as service:
        _, worker = await answers(service)
        assert worker.terminate() == 0
    with psycopg.connect(tcp_postgres.url(), autocommit=True) as connection:
        assert connection.execute("SELECT version_num FROM public.alembic_version").fetchall() == [
            ("of-another-program",)
        ]
        assert connection.execute("SELECT count(*) FROM relay.runs WHERE finished_at IS NOT NULL").fetchone() == (2,)


async def test_a_search_path_in_the_url(new_database: Callable[[], str], redis_url: str, tmp_path: Path) -> None:
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA second")
    second = f"{url}&options=-csearch_path%3Dsecond%20-cstatement_timeout%3D1min&application_name=mine"
    upgrade(second)
    with serving(second, redis_url, tmp_path) as service:
        await answers(service)
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM public.runs").fetchone() == (0,)
            assert connection.execute("SELECT count(*) FROM second.runs").fetchone() == (2,)
            ours = "SELECT count(*) > 2 FROM pg_stat_activity WHERE application_name = 'mine'"
            assert connection.execute(ours).fetchone() == (True,)


@pytest.mark.parametrize("written", ["{user}@{hosts}/agent_relay?", "{user}@/agent_relay?host={first}&host={second}&"])
async def test_of_several_hosts_the_one_that_can_be_written_to_is_taken(
    tcp_postgres: TcpPostgres, redis_url: str, tmp_path: Path, written: str
) -> None:
    with TcpPostgres(default_transaction_read_only="on") as read_only:
        for server, database in ((read_only, "postgres"), (tcp_postgres, "agent_relay")):
            with psycopg.connect(server.url(database), options="-cdefault_transaction_read_only=off") as connection:
                connection.execute(
                    sql.SQL("DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN PASSWORD {}").format(PASSWORD)
                )
                if server is tcp_postgres:
                    connection.execute("GRANT relay TO plain; ALTER ROLE plain SET search_path TO relay")
        first, second = f"127.0.0.1:{read_only.port}", f"localhost:{tcp_postgres.port}"
        user = f"plain:{ENCODED}"
        url = "postgresql://" + written.format(user=user, hosts=f"{first},{second}", first=first, second=second)
        with serving(f"{url}target_session_attrs=read-write", redis_url, tmp_path) as service:
            await answers(service)


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_by_way_of_pgbouncer(tcp_postgres: TcpPostgres, redis_url: str, tmp_path: Path, mode: str) -> None:
    with PgBouncer(tcp_postgres, tcp_postgres.port, mode, USER, PASSWORD) as pooler:
        upgrade(url_of(pooler))
        small = {"DATABASE_POOL_SIZE": "2"} if mode == "session" else {}
        with serving(url_of(pooler), redis_url, tmp_path, small) as service:
            processes = await answers(service)
            for running in processes:
                running.terminate()
                assert not re.search("prepared statement|Traceback|ERROR", running.log.read_text())
    with psycopg.connect(tcp_postgres.url(), autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM relay.workers WHERE ended_at IS NULL").fetchone() == (0,)


@pytest.fixture
def tls() -> Iterator[dict[str, Path]]:
    """A certificate of an authority that nobody else knows, for this machine."""
    with tempfile.TemporaryDirectory(prefix="agent-relay-", dir="/tmp") as folder:
        hand_over(Path(folder))
        yield certify(trustme.CA(), Path(folder), "localhost", "127.0.0.1")


async def test_tls_to_both_servers_whose_authority_is_our_own(tls: dict[str, Path], tmp_path: Path) -> None:
    acl = f"user {USER} on >{REDIS_PASSWORD} ~* &* +@all"
    with TcpPostgres(tls=tls) as postgres, DebianRedis("user default off", acl, tls=tls) as redis:
        prepare(postgres)
        verified = url_of(postgres, sslmode="verify-full", sslrootcert=str(tls["authority"]))
        upgrade(verified)
        secured = f"rediss://{USER}:{quote(REDIS_PASSWORD, safe='')}@localhost:{redis.port}"
        with serving(verified, f"{secured}/3?ssl_ca_certs={tls['authority']}", tmp_path) as service:
            await answers(service)
        client = Redis.from_url(f"{secured}/3", ssl_cert_reqs="none")
        assert client.keys("agent-relay:*")
        for unknown in (
            f"{secured}/3",
            f"{secured.replace('localhost', '127.0.0.2')}/3?ssl_ca_certs={tls['authority']}",
        ):
            with pytest.raises(RedisError, match=r"certificate verify failed"):
                await connect(Settings(database_url=verified, redis_url=unknown)).ping()


def _client(server: DebianRedis) -> Redis:
    return Redis(port=server.port, password="secret", ssl=True, ssl_cert_reqs="none", socket_timeout=5)


def _watched(sentinel: DebianRedis) -> dict[str, Any]:
    """What a Sentinel says of the master."""
    with _client(sentinel) as client:
        return cast("dict[str, Any]", client.sentinel_master("relay"))


def _role(server: DebianRedis) -> str | None:
    with suppress(RedisError), _client(server) as client:  # It drops its clients as it is told to be a replica.
        return cast("dict[str, str]", client.info("replication"))["role"]
    return None


def _ours(server: DebianRedis) -> list[Any]:
    """Our connections to a server."""
    with _client(server) as client:
        return [each for each in cast("list[dict[str, str]]", client.client_list()) if each["db"] == "2"]


async def test_the_master_is_followed_where_sentinels_say_it_is(
    database_url: str, tls: dict[str, Path], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        common = ("requirepass secret", "masterauth secret", "repl-ping-replica-period 1")
        master = stack.enter_context(DebianRedis(*common, tls=tls))
        replica = stack.enter_context(DebianRedis(*common, f"replicaof 127.0.0.1 {master.port}", tls=tls))
        watched = (
            f"sentinel monitor relay 127.0.0.1 {master.port} 2",
            "sentinel auth-pass relay secret",
            "sentinel down-after-milliseconds relay 1000",
            "sentinel failover-timeout relay 5000",
            "requirepass secret",
        )
        sentinels = [stack.enter_context(DebianRedis(*watched, sentinel=True, tls=tls)) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *(each.port for each in sentinels)))
        url = f"rediss+sentinel://:secret@{hosts}/relay?db=2&ssl_ca_certs={tls['authority']}"
        with serving(database_url, url, tmp_path) as service:
            api, worker = await answers(service)
            eventually(lambda: all(int(_watched(each)["num-other-sentinels"]) == 2 for each in sentinels))
            eventually(lambda: all(int(_watched(each)["num-slaves"]) == 1 for each in sentinels))
            master.pause()
            eventually(lambda: all(int(_watched(each)["port"]) == replica.port for each in sentinels))
            master.resume()  # It still takes itself for the master, until the Sentinels tell it.
            async with Client(api.url) as client:
                events = await client.stream("once more", agent_type="echo")
                assert texts(events)[-1] == "You said: once more"
                assert names(events)[-1] == "done"
            eventually(lambda: _role(master) == "slave")
            async with Client(api.url) as client:
                events = await client.stream("and again", agent_type="echo")
                assert texts(events)[-1] == "You said: and again"
            eventually(lambda: not _ours(master))
            assert len(_ours(replica)) >= 5
            assert worker.terminate() == 0


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, on a Unix socket."""
    with RedisServer() as server:
        yield server


async def test_two_services_share_a_redis_with_users_who_may_do_what_the_docs_say_and_no_more(
    own_redis: RedisServer, new_database: Callable[[], str], tmp_path: Path
) -> None:
    documented = re.search(r"^ACL SETUSER \S+ on >\S+ (.*)$", (ROOT / "docs/operating.md").read_text(), re.MULTILINE)
    assert documented is not None
    admin = Redis.from_url(own_redis.url())
    urls: dict[str, str] = {}
    for name in ("first", "second"):
        rules = documented[1].replace("agent-relay:", f"{name}:").split()
        admin.execute_command("ACL", "SETUSER", name, "on", f">{REDIS_PASSWORD}", *rules)
        urls[name] = own_redis.url(5).replace("unix://", f"unix://{name}:{quote(REDIS_PASSWORD, safe='')}@")
    with ExitStack() as stack:
        for name, url in urls.items():
            (tmp_path / name).mkdir()
            service = serving(new_database(), url, tmp_path / name, {"REDIS_PREFIX": f"{name}:"})
            for running in await answers(stack.enter_context(service)):
                assert not re.search("NOPERM|NoPermission", running.log.read_text())
    with Redis.from_url(own_redis.url(5)) as client:
        assert {key.partition(b":")[0] for key in cast("list[bytes]", client.keys())} == {b"first", b"second"}
    refused = cast("list[dict[str, str]]", admin.acl_log())
    assert {entry["object"] for entry in refused} <= {"client|setinfo", "hello"}


async def test_what_one_service_rings_and_says_another_does_not_hear(
    redis_url: str, new_database: Callable[[], str], tmp_path: Path
) -> None:
    """A worker of the one has free slots, and still runs of the other wait for a worker of theirs."""
    (tmp_path / "other").mkdir()
    with (
        serving(new_database(), redis_url, tmp_path) as one,
        serving(new_database(), redis_url, tmp_path / "other", {"REDIS_PREFIX": "other:"}) as other,
    ):
        one.worker()
        async with Client(other.api().url) as client:
            with psycopg.connect(other.database_url) as connection:
                connection.execute(
                    "INSERT INTO agents (agent_type, pool, description, output_schema, text_output) "
                    "VALUES ('echo', 'default', '', '{}', true)"
                )
            run = await client.run("hello", agent_type="echo")
            with Redis.from_url(redis_url) as redis:
                eventually(lambda: redis.zcard("other:lane:default:interactive"))
            assert (await client.read(run["id"], wait=1))["queue_position"] == 0
            other.worker()
            assert (await client.ended(run["id"]))["output"] == "You said: hello"


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_database_that_cannot_hold_all_texts_is_refused(tcp_postgres: TcpPostgres, encoding: str) -> None:
    name = f"in_{encoding.lower()}"
    with psycopg.connect(tcp_postgres.url(), autocommit=True) as connection:
        make = "CREATE DATABASE {} ENCODING {} TEMPLATE template0 LOCALE 'C'"
        connection.execute(sql.SQL(make).format(sql.Identifier(name), sql.Literal(encoding)))
    with pytest.raises(SystemExit, match=f"encoded in {encoding}; it must be UTF8"):
        upgrade(tcp_postgres.url(name))


def test_a_schema_that_is_not_there_is_refused(database_url: str) -> None:
    with pytest.raises(SystemExit, match="names no schema that exists"):
        upgrade(f"{database_url}&options=-csearch_path%3Dnowhere")
