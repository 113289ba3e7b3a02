"""A server that answers "no": it is known by its code, renewed where that helps, and nothing in hand is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from redis import Redis
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.shared import database, logs
from agent_relay.shared import redis as redis_module
from agent_relay.shared.database import is_away, is_ours, store, transact, trouble_of
from agent_relay.shared.database.engine import TRIES
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.shared.redis_names import Names
from agent_relay.shared.settings import Settings
from agent_relay.shared.unavailable import Trouble
from tests.faults.link import Link
from tests.support.client import Client, names
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import Running, Service, serving

SECONDS = 20
ROLE = "relay"
PATIENT = {"LEASE_SECONDS": "60", "BEAT_SECONDS": "1"}
QUERY = {"agent_type": "echo", "query": "hello"}
WRITES = {
    "/threads": {"agent_type": "echo"},
    "/runs": QUERY,
    "/agent/query": QUERY,
    "/agent/stream": QUERY,
    "/batches": {"agent_type": "echo", "items": [{"custom_id": "one", "query": "hello"}]},
}

# What PostgreSQL's codes mean.

TROUBLES = {
    "08006": Trouble.UNREACHABLE,
    "08P01": Trouble.UNREACHABLE,
    "25006": Trouble.READ_ONLY,
    "25P03": Trouble.TIMED_OUT,
    "28P01": Trouble.NOT_PERMITTED,
    "3D000": Trouble.NO_DATABASE,
    "3F000": Trouble.NOT_MIGRATED,
    "40001": Trouble.CONFLICT,
    "40P01": Trouble.CONFLICT,
    "42501": Trouble.NOT_PERMITTED,
    "42703": Trouble.NOT_MIGRATED,
    "42P01": Trouble.NOT_MIGRATED,
    "53100": Trouble.DISK_FULL,
    "53200": Trouble.OUT_OF_MEMORY,
    "53300": Trouble.TOO_MANY_CONNECTIONS,
    "53400": Trouble.OUT_OF_RESOURCES,
    "55000": Trouble.LOCKED,
    "55P03": Trouble.LOCKED,
    "57014": Trouble.TIMED_OUT,
    "57P01": Trouble.STOPPING,
    "57P02": Trouble.STOPPING,
    "57P03": Trouble.STARTING,
    "57P05": Trouble.STOPPING,
    "58030": Trouble.IO_ERROR,
    "F0000": Trouble.INTERNAL_ERROR,
    "XX000": Trouble.INTERNAL_ERROR,
    "XX001": Trouble.INTERNAL_ERROR,
}
MISTAKES = ["0A000", "21000", "22P02", "22021", "23505", "42601", "42883", "54000", "P0001"]
OUTAGES = {"08006", "25006", "53100", "53200", "53300", "53400", "57P01", "57P03", "58030"}
PASSING = {"40001", "40P01", "26000", "42P05"}

_SAYS_NO = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION say_no(code text, times int) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('tries') <= times THEN RAISE EXCEPTION 'no' USING ERRCODE = code; END IF;
        RETURN 1;
    END $$;
    CREATE TABLE notes (id int PRIMARY KEY);
"""
_ASK = text("SELECT say_no(:code, :times) AS answer")
_TRIES = text("SELECT last_value FROM tries")
_NOTE = text("INSERT INTO notes (id) VALUES (:id)")
_NOTES = text("SELECT * FROM notes ORDER BY id")


@pytest.fixture
async def engine(database_url: str) -> AsyncGenerator[AsyncEngine]:
    """A pool of two, and a function that says no as often as it is told to."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_SAYS_NO)
    engine = database.connect(Settings(database_url=database_url, redis_url="redis://none", database_pool_size=2))
    yield engine
    await engine.dispose()


async def in_a_session(engine: AsyncEngine, code: str, times: int) -> None:
    """Ask in a session of SQLAlchemy's."""
    async with engine.begin() as session:
        await session.execute(_ASK, {"code": code, "times": times})


async def alone(engine: AsyncEngine, code: str, times: int) -> None:
    """Ask in a transaction of one statement."""
    await transact(engine, _ASK, {"code": code, "times": times})


@pytest.mark.parametrize("ask", [in_a_session, alone])
async def test_a_refusal_is_known_by_its_code(engine: AsyncEngine, ask: Any) -> None:
    for code, trouble in TROUBLES.items():
        with pytest.raises(SQLAlchemyError) as refusal:
            await ask(engine, code, 10_000)
        assert (code, trouble_of(refusal.value)) == (code, trouble)
        assert is_ours(refusal.value) == (code in OUTAGES or code.startswith(("08", "25P", "57P"))), code
    for code in MISTAKES:
        with pytest.raises(SQLAlchemyError) as refusal:
            await ask(engine, code, 10_000)
        assert (code, is_away(refusal.value), is_ours(refusal.value)) == (code, False, False)
    assert len(await transact(engine, _NOTES)) == 0  # The pool serves as before.


@pytest.mark.parametrize("code", sorted(PASSING))
async def test_a_transaction_that_the_server_undid_is_made_again(engine: AsyncEngine, code: str) -> None:
    await transact(engine, _ASK, {"code": code, "times": 2})
    assert (await transact(engine, _TRIES))[0].last_value == 3

    @dataclass
    class Noted:
        transaction_id: str

    async def write(connection: AsyncConnection) -> Noted:
        await connection.execute(_NOTE, {"id": 1})
        await connection.execute(_ASK, {"code": code, "times": 5})
        return Noted("1")

    await store(engine, write)

    assert [row.id for row in await transact(engine, _NOTES)] == [1]


async def test_one_that_is_always_undone_is_given_up(engine: AsyncEngine) -> None:
    with pytest.raises(SQLAlchemyError) as refusal:
        await transact(engine, _ASK, {"code": "40001", "times": 10_000})

    assert trouble_of(refusal.value) is Trouble.CONFLICT
    assert (await transact(engine, _TRIES))[0].last_value == TRIES


async def test_a_deadlock_is_hardly_noticed(engine: AsyncEngine) -> None:
    await transact(engine, text("INSERT INTO notes VALUES (1), (2)"))
    both = [
        text(
            f"UPDATE notes SET id = id FROM (SELECT pg_sleep(0.05), lock.id AS locked FROM (SELECT id FROM notes"
            f" ORDER BY id {order} FOR UPDATE) AS lock) AS locks WHERE notes.id = locks.locked"
        )
        for order in ("ASC", "DESC")
    ]

    await asyncio.gather(*(transact(engine, statement) for statement in both for _ in range(2)))

    assert [row.id for row in await transact(engine, _NOTES)] == [1, 2]


async def test_connections_to_what_is_read_only_are_given_up_for_new_ones(
    engine: AsyncEngine, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as operator:
        name = operator.info.dbname
        operator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")  # pyright: ignore[reportArgumentType, reportCallIssue]
        await asyncio.gather(*(transact(engine, text("SELECT pg_sleep(0.1)")) for _ in range(2)))
        operator.execute("SET default_transaction_read_only = off")
        operator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")  # pyright: ignore[reportArgumentType, reportCallIssue]

    with pytest.raises(SQLAlchemyError) as refusal:
        await transact(engine, _NOTE, {"id": 0})
    assert trouble_of(refusal.value) is Trouble.READ_ONLY
    await asyncio.gather(*(transact(engine, _NOTE, {"id": number}) for number in range(1, 5)))
    async with engine.begin() as session:
        await session.execute(_NOTE, {"id": 5})

    assert [row.id for row in await transact(engine, _NOTES)] == [1, 2, 3, 4, 5]


async def test_statements_prepared_before_a_migration_are_prepared_again(
    engine: AsyncEngine, database_url: str
) -> None:
    await asyncio.gather(*(transact(engine, _NOTES) for _ in range(4)))
    with psycopg.connect(database_url, autocommit=True) as operator:
        operator.execute("ALTER TABLE notes ADD COLUMN said text; INSERT INTO notes VALUES (1, 'hello')")

    rows = await asyncio.gather(*(transact(engine, _NOTES) for _ in range(4)))

    assert {tuple(row[0]) for row in rows} == {(1, "hello")}


REFUSED_CONNECTIONS = {
    "no such database": ("postgres", "-not", Trouble.NO_DATABASE),
    "no such role": ("stranger", "", Trouble.NOT_PERMITTED),
    "no more connections": ("crowd", "", Trouble.TOO_MANY_CONNECTIONS),
}


@pytest.mark.parametrize(("role", "suffix", "trouble"), REFUSED_CONNECTIONS.values(), ids=REFUSED_CONNECTIONS)
async def test_a_refused_connection_says_why(database_url: str, role: str, suffix: str, trouble: Trouble) -> None:
    with psycopg.connect(database_url, autocommit=True) as operator:
        operator.execute("DROP ROLE IF EXISTS crowd")
        operator.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    url = database_url.replace("postgres@", f"{role}@").replace("?", f"{suffix}?")
    nowhere = database.connect(Settings(database_url=url, redis_url="redis://none"))

    with pytest.raises(SQLAlchemyError) as refusal:
        await transact(nowhere, _NOTES)

    assert trouble_of(refusal.value) is trouble
    assert is_ours(refusal.value)
    await nowhere.dispose()


# The whole service, while PostgreSQL says no.


@pytest.fixture
def postgres_of_mine() -> Iterator[PostgresServer]:
    """A PostgreSQL with a migrated database that belongs to a user who is no superuser."""
    with PostgresServer(durable=False) as server:
        server.ensure_database()
        with psycopg.connect(server.url(), autocommit=True) as operator:
            operator.execute(f"CREATE ROLE {ROLE} LOGIN")
            operator.execute(f"ALTER DATABASE agent_relay OWNER TO {ROLE}")
            operator.execute(f"ALTER SCHEMA public OWNER TO {ROLE}")
        upgrade(url_of(server).replace("postgresql://", "postgresql+psycopg://"))
        yield server


def url_of(server: PostgresServer) -> str:
    """Say where that user finds it."""
    return server.url().replace("postgres@", f"{ROLE}@")


@pytest.fixture
def redis_of_mine() -> Iterator[RedisServer]:
    """A Redis to be told what to say."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def pair(postgres_of_mine: PostgresServer, redis_of_mine: RedisServer, tmp_path: Path) -> Iterator[Service]:
    """Processes on both."""
    with serving(url_of(postgres_of_mine), redis_of_mine.url(0), tmp_path, PATIENT) as service:
        yield service


@pytest.fixture
async def caller(pair: Service) -> AsyncGenerator[Client]:
    """A user of an API with a worker beside it."""
    api = pair.api()
    pair.worker()
    async with Client(api.url) as client:
        yield client


async def ready(client: Client) -> httpx.Response:
    """Ask whether the process should get traffic."""
    return await client.http.get(client.http.base_url.join("/health/ready"), timeout=SECONDS)


async def metrics(client: Client) -> str:
    """Read the metrics."""
    return (await client.http.get(client.http.base_url.join("/metrics"), timeout=SECONDS)).text


async def until_ready_says(client: Client, status: int, reason: str | None = None) -> None:
    """Wait until it does; an answer counts for a second."""

    async def said() -> bool:
        answer = await ready(client)
        found = answer.json().get("reason") or answer.json().get("reasons", {}).get("redis")
        return (answer.status_code, found) == (status, reason)

    await soon(said)


def executing(*statements: str) -> Callable[[psycopg.Connection[Any]], None]:
    """Execute these as a superuser."""

    def execute(operator: psycopg.Connection[Any]) -> None:
        operator.execute("SET default_transaction_read_only = off")
        for statement in statements:
            operator.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]

    return execute


def triggers(code: str) -> tuple[str, ...]:
    """Have each write to the tables that matter refused."""
    body = f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"
    return (
        f"CREATE OR REPLACE FUNCTION say_no() RETURNS trigger LANGUAGE plpgsql AS {body}",
        *(
            f"CREATE TRIGGER no BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION say_no()"
            for table in TABLES
        ),
    )


TABLES = ("runs", "messages", "batches", "threads", "workers", "idempotency_keys")
NO_TRIGGERS = tuple(f"DROP TRIGGER no ON {table}" for table in TABLES)
READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
WRITABLE = "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
TERMINATE = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = '{ROLE}'"
"""Waits until each has ended: what comes before that is told that the server ended the connection."""


@dataclass(frozen=True)
class No:
    """A way for PostgreSQL to say no."""

    reason: Trouble
    begin: Callable[[psycopg.Connection[Any]], None]
    end: Callable[[psycopg.Connection[Any]], None]


NOES = {
    "25006": No(Trouble.READ_ONLY, executing(*READ_ONLY), executing(*WRITABLE)),
    "42501": No(
        Trouble.NOT_PERMITTED,
        executing(*(f"ALTER TABLE {table} OWNER TO postgres" for table in TABLES)),
        executing(*(f"ALTER TABLE {table} OWNER TO {ROLE}" for table in TABLES)),
    ),
    "42P01": No(
        Trouble.NOT_MIGRATED,
        executing("ALTER TABLE runs RENAME TO walks", "ALTER TABLE threads RENAME TO needles"),
        executing("ALTER TABLE walks RENAME TO runs", "ALTER TABLE needles RENAME TO threads"),
    ),
    "53300": No(
        Trouble.TOO_MANY_CONNECTIONS,
        executing(f"ALTER ROLE {ROLE} CONNECTION LIMIT 0", TERMINATE),
        executing(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1"),
    ),
    **{
        code: No(TROUBLES[code], executing(*triggers(code)), executing(*NO_TRIGGERS))
        for code in ("40P01", "53100", "55P03", "57014", "XX000")
    },
}


@contextmanager
def saying(server: PostgresServer, no: No) -> Generator[None]:
    """Have the server say no for a while."""
    with psycopg.connect(server.url(), autocommit=True) as operator:
        no.begin(operator)
        try:
            yield
        finally:
            no.end(operator)


async def running(client: Client, run_id: str) -> None:
    """Wait until a worker has the run."""

    async def has() -> bool:
        return (await client.read(run_id))["status"] == "running"

    await soon(has)


@pytest.mark.parametrize("no", NOES.values(), ids=NOES)
async def test_while_postgres_says_no_callers_are_refused_for_now_and_nothing_in_hand_is_lost(
    caller: Client, pair: Service, postgres_of_mine: PostgresServer, no: No
) -> None:
    worker = pair.processes[1]
    thread_id = await caller.thread("slow")
    in_hand = await caller.run("1 second", thread_id=thread_id)
    behind = await caller.run("0.1 seconds", thread_id=thread_id)
    await running(caller, in_hand["id"])

    with saying(postgres_of_mine, no):
        answers = {
            path: await caller.http.post(path, json=body, headers={"Idempotency-Key": path}, timeout=SECONDS)
            for path, body in WRITES.items()
        }
        cancelled = await caller.http.post(f"/runs/{in_hand['id']}/cancel", timeout=SECONDS)
        await until_ready_says(caller, 503, no.reason)
        exposed = await metrics(caller)
        await asyncio.to_thread(worker.await_line, f"job.database_away run_id={in_hand['id']}")

    for path, answer in answers.items():
        problem = problem_of(answer, 503, "service_unavailable")
        assert (path, problem["reason"]) == (path, no.reason)
        assert int(answer.headers["retry-after"]) > 0
    assert problem_of(cancelled, 503)["reason"] == no.reason
    assert f'agent_relay_server_writable{{reason="{no.reason}",server="postgresql"}} 0.0' in exposed
    await until_ready_says(caller, 200)
    ended = [await caller.ended(run["id"]) for run in (in_hand, behind)]
    assert [(run["status"], run["attempt"]) for run in ended] == [("succeeded", 1)] * 2
    assert len((await caller.http.get("/runs")).json()["items"]) == 2
    again = [
        await caller.http.post("/runs", json=QUERY, headers={"Idempotency-Key": "/runs"}, timeout=SECONDS)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in again] == [202, 202]
    assert again[0].json()["id"] == again[1].json()["id"]
    assert [running.process.poll() for running in pair.processes] == [None, None]


async def test_postgres_read_only_for_longer_than_a_lease_is_no_crash_of_anybody(
    pair: Service, postgres_of_mine: PostgresServer
) -> None:
    short = {"LEASE_SECONDS": "5", "BEAT_SECONDS": "1"}
    api, worker = pair.api(**short), pair.worker(**short)
    async with Client(api.url) as client:
        runs = [await client.run("3 seconds", agent_type="slow") for _ in range(4)]
        for run in runs:
            await running(client, run["id"])
        with saying(postgres_of_mine, NOES["25006"]):
            await asyncio.to_thread(worker.await_line, "lease.lapsed")
            listed = await client.http.get("/runs", timeout=SECONDS)
            await asyncio.sleep(6)  # By then whoever only reads would have seen an unbroken database for a lease.
        ended = [await client.ended(run["id"]) for run in runs]
    with psycopg.connect(postgres_of_mine.url()) as connection:
        crashes = connection.execute("SELECT sum(crashes) FROM runs").fetchone()

    assert listed.status_code == 200
    assert [run["status"] for run in ended] == ["succeeded"] * 4
    assert crashes == (0,)
    lines = (worker.log.read_text() + api.log.read_text()).splitlines()
    assert len(lines) < 300, "the log is flooded"


# The whole service, while Redis says no.


@dataclass(frozen=True)
class RedisNo:
    """A way for Redis to say no."""

    reason: Trouble
    begin: Callable[[Redis, RedisServer], object]
    end: Callable[[Redis, RedisServer], object]


def fail_to_save(redis: Redis, server: RedisServer) -> None:
    """Have the background save fail: where its file should be is a folder."""
    (server.folder / "dump.rdb").mkdir()
    redis.config_set("save", "3600 1")
    redis.bgsave()


def save_again(redis: Redis, server: RedisServer) -> None:
    """Let it succeed."""
    (server.folder / "dump.rdb").rmdir()
    redis.config_set("save", "")


REDIS_NOES = {
    "READONLY": RedisNo(
        Trouble.READ_ONLY,
        lambda redis, _: redis.replicaof("127.0.0.1", 1),
        lambda redis, _: redis.replicaof("NO", "ONE"),
    ),
    "OOM": RedisNo(
        Trouble.OUT_OF_MEMORY,
        lambda redis, _: redis.config_set("maxmemory", 1),
        lambda redis, _: redis.config_set("maxmemory", 0),
    ),
    "MISCONF": RedisNo(Trouble.IO_ERROR, fail_to_save, save_again),
    "NOREPLICAS": RedisNo(
        Trouble.NO_REPLICAS,
        lambda redis, _: redis.config_set("min-replicas-to-write", 3),
        lambda redis, _: redis.config_set("min-replicas-to-write", 0),
    ),
    "NOPERM": RedisNo(
        Trouble.NOT_PERMITTED,
        lambda redis, _: redis.acl_setuser("default", enabled=True, categories=["-@write", "-@scripting"]),
        lambda redis, _: redis.acl_setuser("default", enabled=True, categories=["+@all"]),
    ),
}


@pytest.mark.parametrize("no", REDIS_NOES.values(), ids=REDIS_NOES)
async def test_while_redis_says_no_runs_are_taken_and_those_in_hand_end(
    caller: Client, pair: Service, redis_of_mine: RedisServer, no: RedisNo
) -> None:
    with Redis.from_url(redis_of_mine.url(0)) as redis:
        async with caller.asking("2 seconds", agent_type="slow") as stream:
            events = [await anext(stream) for _ in range(3)]
            no.begin(redis, redis_of_mine)
            taken = await caller.run("hello", agent_type="echo")
            await until_ready_says(caller, 200, no.reason)
            events += [event async for event in stream]
        exposed = await metrics(caller)
        no.end(redis, redis_of_mine)

    assert names(events)[-2:] == ["message_complete", "done"]
    assert f'agent_relay_server_writable{{reason="{no.reason}",server="redis"}} 0.0' in exposed
    assert (await caller.ended(taken["id"]))["output"] == "You said: hello"
    await until_ready_says(caller, 200)
    async with caller.asking("1 second", agent_type="slow") as stream:
        later = [event async for event in stream]
    assert names(later)[-2:] == ["message_complete", "done"]
    assert sum(event["event"] == "text_delta" for event in later) > 1  # It came by announcements.
    assert [process.process.poll() for process in pair.processes] == [None, None]
    assert all(len(process.log.read_text().splitlines()) < 300 for process in pair.processes)


async def test_a_run_that_was_popped_from_a_full_redis_is_answered(pair: Service, redis_of_mine: RedisServer) -> None:
    api = pair.api()
    first = pair.worker()
    async with Client(api.url) as client:
        await client.ask("hello", agent_type="echo")
        first.terminate()
        run = await client.run("hello", agent_type="echo")
        with Redis.from_url(redis_of_mine.url(0)) as redis:
            redis.config_set("maxmemory", 1)
            pair.worker()
            ended = await client.ended(run["id"])
            redis.config_set("maxmemory", 0)

    assert (ended["status"], ended["attempt"]) == ("succeeded", 1)


async def test_after_a_failover_streams_go_on_with_the_new_master(
    postgres_of_mine: PostgresServer, redis_of_mine: RedisServer, tmp_path: Path
) -> None:
    """The address leads to another server, and all living connections to one that has become a replica."""
    link = Link(redis_of_mine.folder / "redis.sock")
    await link.open()
    with (
        RedisServer() as promoted,
        serving(url_of(postgres_of_mine), f"redis://127.0.0.1:{link.port}/0", tmp_path) as service,
    ):
        api: Running = await asyncio.to_thread(service.api)
        await asyncio.to_thread(service.worker)
        async with Client(api.url) as client:
            async with client.asking("8 seconds", agent_type="slow") as stream:
                events = [await anext(stream) for _ in range(4)]
                link.lead_to(promoted.folder / "redis.sock")
                with Redis.from_url(redis_of_mine.url(0)) as demoted:
                    demoted.replicaof("127.0.0.1", 1)
                events += [event async for event in stream]
            started = asyncio.get_running_loop().time()
            answer = await client.ask("hello", agent_type="echo")
            took = asyncio.get_running_loop().time() - started
        with Redis.from_url(promoted.url(0)) as redis:
            logs = int(str(redis.dbsize()))
    await link.close()

    assert names(events)[-2:] == ["message_complete", "done"]
    assert sum(event["event"] == "text_delta" for event in events) > 10
    assert (answer.status_code, logs > 1) == (200, True)
    assert took < SECONDS


SAID = {
    "LOADING Redis is loading the dataset in memory": Trouble.STARTING,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": Trouble.UNREACHABLE,
    "CLUSTERDOWN The cluster is down": Trouble.UNREACHABLE,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": Trouble.BUSY,
    "TRYAGAIN Multiple keys request during rehashing of slot": Trouble.BUSY,
    "NOAUTH Authentication required.": Trouble.NOT_PERMITTED,
    "WRONGPASS invalid username-password pair or user is disabled.": Trouble.NOT_PERMITTED,
    "DENIED Redis is running in protected mode": Trouble.NOT_PERMITTED,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": Trouble.READ_ONLY,
    "ERR max number of clients reached": Trouble.TOO_MANY_CONNECTIONS,
    "ERR user_script:31: READONLY You can't write against a read only replica. script: on @user_script:31.": (
        Trouble.READ_ONLY
    ),
    "OOM command not allowed when used memory > 'maxmemory'. script: 5f2e, on @user_script:3.": Trouble.OUT_OF_MEMORY,
    "ERR unknown command 'BZMPOP'": None,
    "WRONGTYPE Operation against a key holding the wrong kind of value": None,
}


@pytest.mark.parametrize(("said", "trouble"), SAID.items(), ids=[said.split()[0] for said in SAID])
async def test_an_error_of_redis_is_known_by_its_first_word(
    redis_server: RedisServer, said: str, trouble: Trouble | None
) -> None:
    link = Link(redis_server.folder / "redis.sock")
    await link.open()
    url = f"redis://127.0.0.1:{link.port}/1"
    redis = redis_module.connect_few(Settings(database_url="postgresql://none", redis_url=url), 2)
    await redis.ping()
    link.say(said.encode())
    with pytest.raises(redis_module.RedisError) as refusal:
        await redis_module.check_writable(redis, Names())
    link.say(None)
    await redis_module.check_writable(redis, Names())
    await redis.aclose(close_connection_pool=True)
    await link.close()

    assert redis_module.trouble_of(refusal.value) is trouble


@pytest.mark.parametrize("said", [said for said in SAID if said.startswith(("LOADING", "BUSY", "CLUSTERDOWN"))])
async def test_a_redis_that_says_no_to_everything_is_as_good_as_away(
    postgres_of_mine: PostgresServer, redis_of_mine: RedisServer, tmp_path: Path, said: str
) -> None:
    link = Link(redis_of_mine.folder / "redis.sock")
    await link.open()
    with serving(url_of(postgres_of_mine), f"redis://127.0.0.1:{link.port}/0", tmp_path) as service:
        api = await asyncio.to_thread(service.api)
        worker = await asyncio.to_thread(service.worker)
        async with Client(api.url) as client:
            async with client.asking("2 seconds", agent_type="slow") as stream:
                events = [await anext(stream) for _ in range(3)]
                link.say(said.encode())
                taken = await client.run("hello", agent_type="echo")
                await until_ready_says(client, 200, SAID[said])
                events += [event async for event in stream]
            link.say(None)
            ended = await client.ended(taken["id"])
            await until_ready_says(client, 200)
    await link.close()

    assert names(events)[-2:] == ["message_complete", "done"]
    assert ended["output"] == "You said: hello"
    assert [process.log.read_text().count("Traceback") for process in (api, worker)] == [0, 0]


def test_an_outage_does_not_flood_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import logging
from shared import logs
from agent_relay.shared.settings import Settings
logs.configure(Settings(database_url="postgresql://none", redis_url="redis://none"))
log = logging.getLogger("agent_relay.worker.execution.job")
for number in range(1000):
    log.warning("job.database_away run_id=%s", number)
    log.warning("job.fenced run_id=%s attempt=1", number)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

    lines = capfd.readouterr().err.splitlines()
    assert sum("job.database_away" in line for line in lines) == logs.LINES_OF_AN_OUTAGE
    assert sum("job.fenced" in line for line in lines) == 1000
