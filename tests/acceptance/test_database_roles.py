"""API, worker and agents have roles of their own in PostgreSQL: enough for all that they do, and for nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from psycopg import sql
from pydantic_ai import Agent, RunContext
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.embedded import PostgresServer, binaries
from agent_relay.embedded.postgres import AGENTS, API, WORKER
from agent_relay.shared import database
from agent_relay.shared.database.tables import Base
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.migrations import grants
from agent_relay.shared.migrations.grants import GRANTS, Roles
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.settings import Settings
from agent_relay.worker.catalog import RunScope, ServedAgent
from tests.conftest import ROLES
from tests.support.agents import _looks_then_says  # pyright: ignore[reportPrivateUsage]
from tests.support.client import Client, names
from tests.support.debian import TcpPostgres
from tests.support.eventually import soon
from tests.support.receiver import Receiver, receiving
from tests.support.service import OPERATOR_KEY, ROOT, Service

NAMES = dict(ROLES.names)
HASTE = {
    "WEBHOOK_TRUSTED_HOSTS": "127.0.0.1",
    "LEASE_SECONDS": "3",
    "BEAT_SECONDS": "1",
    "MAX_CRASHES": "1",
    "MAX_COST_USD_PER_TENANT_DAY": "1000000",
}
ITEMS = 6
PASSWORDS = {name: f"{name.lower()} of' {name}" for name in ("MIGRATIONS", "API", "WORKER", "AGENTS")}

RIGHTS = """
    SELECT relname, rolname,
        array_agg(right_.privilege_type || coalesce(' (' || attname || ')', '') ORDER BY right_.privilege_type, attname)
    FROM (
        SELECT relname, NULL AS attname, relacl AS acl, relnamespace, relkind FROM pg_class
        UNION ALL
        SELECT relname, attname, attacl, relnamespace, relkind
        FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
    ) AS found, aclexplode(acl) AS right_ JOIN pg_roles ON grantee = pg_roles.oid
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND rolname = ANY(%s)
    GROUP BY relname, rolname
"""


def url_of(database_url: str, role: str) -> str:
    """The same database, for a role."""
    return database_url.replace("//postgres@", f"//{role}@")


def as_listed(privileges: str) -> list[str]:
    """Write privileges as `RIGHTS` reads them: each column for itself."""
    found = re.findall(r"([A-Z]+)(?: \(([^)]*)\))?", privileges)
    return sorted(
        f"{right} ({column})" if column else right for right, columns in found for column in columns.split(", ")
    )


def rights(database_url: str, roles: list[str]) -> dict[tuple[str, str], list[str]]:
    """Read what roles may do with the tables of a database."""
    with psycopg.connect(database_url) as connection:
        return {(table, role): sorted(listed) for table, role, listed in connection.execute(RIGHTS, [roles])}


def expected() -> dict[tuple[str, str], list[str]]:
    return {
        (table, NAMES[setting]): as_listed(listed)
        for table, granted in GRANTS.items()
        for setting, listed in granted.items()
    }


def test_every_table_has_exactly_the_rights_that_were_decided_on(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}

    assert rights(database_url, [*NAMES.values(), "public"]) == expected()
    assert tables == set(GRANTS) == {*Base.metadata.tables, "bank_customers", "alembic_version"}, (
        "a new table needs a line in shared/migrations/grants.py"
    )


def test_migrations_take_back_what_is_not_listed_and_leave_the_tables_of_others_alone(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE notes (id int)")
        connection.execute("GRANT SELECT ON notes, api_keys TO worker")
        connection.execute("GRANT UPDATE (balance) ON bank_customers TO agents")
        connection.execute("GRANT CREATE ON SCHEMA public TO api")
        connection.execute("REVOKE SELECT ON runs FROM api")

    said = upgrade(database_url, roles=ROLES)

    assert said.startswith("The tables are up to date")
    assert rights(database_url, list(NAMES.values())) == expected() | {("notes", WORKER): ["SELECT"]}
    with psycopg.connect(url_of(database_url, API)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE mine (id int)")


def test_one_role_for_several_parts_has_the_rights_of_them_all(database_url: str) -> None:
    upgrade(database_url, roles=Roles({grants.API: WORKER, grants.WORKER: WORKER}))

    both = rights(database_url, [WORKER])
    assert both["api_keys", WORKER] == ["INSERT", "SELECT", "UPDATE"]
    assert {"SELECT", "INSERT"} <= set(both["transcripts", WORKER])


@pytest.mark.parametrize(
    ("role", "sentence"),
    [
        ("nobody_there", "DATABASE_API_ROLE: there is no role 'nobody_there' in PostgreSQL. Make it: CREATE ROLE"),
        ("postgres", "DATABASE_API_ROLE: the role 'postgres' runs the migrations or is a superuser"),
        ("a'b\"c; DROP TABLE runs", "there is no role"),
        ("ü" * 63, "there is no role"),
    ],
)
def test_a_role_that_cannot_be_given_rights_ends_the_migrations_with_a_sentence(
    database_url: str, role: str, sentence: str
) -> None:
    before = rights(database_url, list(NAMES.values()))
    environment = os.environ | {"DATABASE_URL": database_url, "DATABASE_API_ROLE": role}
    command = [sys.executable, "-m", "agent_relay.shared.migrations"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert rights(database_url, list(NAMES.values())) == before


# What is not granted is refused.

REFUSED = {
    API: [
        "UPDATE transcripts SET messages = 'mine'",
        "DELETE FROM transcripts",
        "UPDATE agents SET pool = 'mine'",
        "INSERT INTO batch_results VALUES (gen_random_uuid(), 1, gen_random_uuid())",
        "INSERT INTO webhook_deliveries SELECT * FROM webhook_deliveries",
        "INSERT INTO workers SELECT * FROM workers",
        "UPDATE webhook_secrets SET secret = 'whsec_mine'",
        "UPDATE messages SET content = 'mine'",
        "DELETE FROM api_keys",
        "DELETE FROM service_secrets",
        "UPDATE alembic_version SET version_num = '0000'",
        "SELECT * FROM bank_customers",
    ],
    WORKER: [
        "SELECT key_hash FROM api_keys",
        "SELECT count(*) FROM api_keys",
        "SELECT secret FROM service_secrets",
        "INSERT INTO api_keys SELECT * FROM api_keys",
        "SELECT body_hash FROM idempotency_keys",
        "SELECT * FROM messages",
        "SELECT * FROM batch_results",
        "SELECT * FROM schedules",
        "INSERT INTO batches SELECT * FROM batches",
        "INSERT INTO threads SELECT * FROM threads",
        "UPDATE webhook_secrets SET secret = 'whsec_mine'",
        "DELETE FROM webhook_secrets",
        "DELETE FROM transcripts",
        "SELECT * FROM bank_customers",
    ],
    AGENTS: [
        *(f"SELECT * FROM {table}" for table in GRANTS if table != "bank_customers"),
        "SELECT count(*) FROM runs",
        "SELECT id FROM runs FOR UPDATE",
        "UPDATE bank_customers SET balance = 0",
        "SELECT * FROM release_in_batch(gen_random_uuid())",
        "SET ROLE worker",
        "SET SESSION AUTHORIZATION postgres",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY bank_customers TO PROGRAM 'cat'",
    ],
}
BY_ALL = [
    "CREATE TABLE public.mine (id int)",
    "ALTER TABLE runs ADD COLUMN mine int",
    "DROP TABLE runs",
    "TRUNCATE runs",
    "CREATE TRIGGER mine AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION write_webhook_delivery('run')",
    "ALTER FUNCTION count_end_in_batch() SECURITY INVOKER",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "COPY runs TO '/tmp/runs'",
    "CREATE EXTENSION dblink",
]


@pytest.mark.parametrize(
    ("role", "statement"), [(role, statement) for role in REFUSED for statement in [*REFUSED[role], *BY_ALL]]
)
def test_what_is_not_granted_is_refused(database_url: str, role: str, statement: str) -> None:
    with psycopg.connect(url_of(database_url, role)) as connection:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(statement.encode())

        assert refused.value.sqlstate == "42501", refused.value


def test_a_table_of_the_role_takes_no_place_of_ours_in_a_trigger(database_url: str) -> None:
    """What triggers write as the owner goes to the service's tables, whatever the role has made under their names."""
    with psycopg.connect(url_of(database_url, WORKER)) as connection:
        connection.execute("CREATE TEMP TABLE webhook_deliveries (LIKE public.webhook_deliveries)")
        connection.execute("CREATE TEMP TABLE batches (LIKE public.batches)")
        connection.execute(
            "INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata, user_message_id,"
            " message_id, deadline_at, webhook_url) SELECT gen_random_uuid(), 'acme', gen_random_uuid(), 'echo', 'p',"
            " true, '?', '{}', gen_random_uuid(), gen_random_uuid(), now(), 'https://example.com/'"
        )
        connection.execute("UPDATE runs SET status = 'failed', finished_at = now()")
        found = connection.execute("SELECT count(*) FROM pg_temp.webhook_deliveries").fetchone()
        ours = connection.execute("SELECT count(*) FROM public.webhook_deliveries").fetchone()

    assert (found, ours) == ((0,), (1,))


# What is granted is enough.


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.mark.timeout(300)
async def test_the_whole_service_works_with_these_rights_and_with_none_less(
    service: Service, receiver: Receiver, postgres: PostgresServer, new_database: Callable[[], str]
) -> None:
    swept = new_database()
    write_down_statements(service.database_url)
    write_down_statements(swept)
    service.environment |= HASTE
    api, worker = service.api(), service.worker()
    operator = httpx.AsyncClient(base_url=f"{api.url}/api/v1/operator", headers={"X-API-Key": OPERATOR_KEY}, timeout=60)
    async with Client(api.url) as client, operator:
        await runs_and_threads(client)
        await batches_and_webhooks(client, receiver)
        await schedules(client)
        await files(client)
        await keys(client, operator, service)
        poison = await client.run("die", agent_type="poison")
        assert (await client.ended(poison["id"]))["error"]["code"] == "worker_crashed"
        worker = service.worker()
        await dead_letters(client, operator, service, poison["id"])
        assert (await client.http.get(f"{api.url}/health/ready")).json()["status"] == "ok"
        metrics = await client.http.get(f"{api.url}/metrics")
        assert 'agent_relay_server_writable{reason="",server="postgresql"} 1' in metrics.text
        worker.terminate()
        service.worker("--processes", "2")
        assert (await client.ended((await client.run("hello", agent_type="echo"))["id"]))["status"] == "succeeded"
        await everything_of_a_user(client)

    service.stop()
    for running in service.processes:
        assert not re.search("permission denied|42501|InsufficientPriv", running.log.read_text()), running.last_words()
    for role in (API, WORKER):
        await erase(swept, service.redis_url, role)
    needless = rights_that_nothing_needs(swept, written_down(postgres, service.database_url, swept))
    assert [each for each in needless if each[0] not in NOT_HERE and " ".join(each) not in NOT_HERE] == []


NOT_HERE = {
    "run_messages",
    "run_requests",
    "run_steps",
    "service_minutes",
    "api_processes",
    f"transcripts {WORKER} UPDATE",
    f"files {WORKER} INSERT",
    f"file_contents {WORKER} SELECT",
    f"file_contents {WORKER} INSERT",
    f"file_contents {WORKER} UPDATE",
    f"file_chunks {WORKER} INSERT",
    f"file_uses {WORKER} SELECT",
    f"file_uses {WORKER} INSERT",
}
"""What is used by what this test does not do: messages into runs, runs that wait, steps that are kept, files
that a worker stores (`test_attachments.py` has these roles, too), the operations page."""


def write_down_statements(database_url: str) -> None:
    """Have the server log each statement in a database, with the role that makes it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_line_prefix = '%m [%p] %q%u@%d '")
        connection.execute("SELECT pg_reload_conf()")
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(name))


def written_down(postgres: PostgresServer, *database_urls: str) -> dict[str, set[str]]:
    """Read the statements of each role in these databases."""
    names = "|".join(re.escape(urlsplit(url).path[1:]) for url in database_urls)
    made: dict[str, set[str]] = {}
    entries = re.split(r"^(?=\d{4}-\d\d-\d\d \S+ UTC \[)", postgres.log.read_text(errors="replace"), flags=re.MULTILINE)
    for entry in entries:
        if line := re.match(
            rf"\S+ \S+ UTC \[\d+\] (\w+)@(?:{names}) LOG:  (?:statement|execute [^:]+): (.*)", entry, re.DOTALL
        ):
            made.setdefault(line[1], set()).add(line[2])
    return made


def rights_that_nothing_needs(database_url: str, made: dict[str, set[str]]) -> list[tuple[str, str, str]]:
    """Take each right away in turn, and list those without which every statement of its role is still allowed."""
    needless: list[tuple[str, str, str]] = []
    with psycopg.connect(database_url) as connection:
        for (table, role), listed in expected().items():
            statements = [each for each in made[role] if re.search(rf"\b{table}\b", each)]
            for right in listed:
                with connection.transaction(force_rollback=True):
                    connection.execute(f"REVOKE {right} ON {table} FROM {role}".encode())
                    connection.execute(f"SET LOCAL ROLE {role}".encode())
                    if not any(is_refused(connection, statement) for statement in statements):
                        needless.append((table, role, right))
    return needless


def is_refused(connection: psycopg.Connection[Any], statement: str) -> bool:
    """Ask the server to plan a statement, which takes the rights that carrying it out takes; nothing is done."""
    filled = re.findall(r"(?:^COPY|INSERT INTO) (\w+)", statement)
    try:
        with connection.transaction():
            for table in filled:  # `COPY` cannot be planned, and no row without its values.
                if not connection.execute("SELECT has_any_column_privilege(%s, 'INSERT')", [table]).fetchone()[0]:  # pyright: ignore[reportOptionalSubscript]
                    return True
            connection.execute(("EXPLAIN " + re.sub(r"\$\d+", "NULL", statement)).encode())
    except psycopg.errors.InsufficientPrivilege:
        return True
    except psycopg.Error:  # `SET`, `BEGIN`, and what cannot be planned without its values.
        return False
    return False


async def runs_and_threads(client: Client) -> None:
    """The sample agent, which reads its table; streams; repeated calls; interrupted, cancelled and deleted ones."""
    http = client.http
    thread_id = await client.thread("bank_support")
    answered = await client.ask("What is my balance?", thread_id=thread_id)
    assert re.search(r"\$1[12]", answered.text)
    assert names(await client.stream("And pending?", thread_id=thread_id))[-1] == "done"
    for _ in range(2):
        query, key = {"query": "hello", "agent_type": "echo"}, {"Idempotency-Key": "one"}
        assert (await http.post("/runs", json=query, headers=key)).status_code == httpx.codes.ACCEPTED
    interrupted = await client.thread("slow")
    await client.run("60 seconds", thread_id=interrupted)
    again = await client.run("0.1 seconds", thread_id=interrupted, multitask_strategy="rollback")
    assert (await client.ended(again["id"]))["status"] == "succeeded"
    slow = await client.run("60 seconds", agent_type="slow")
    ticket = (await http.post(f"/runs/{slow['id']}/stream-ticket", json={})).json()
    async with http.stream("GET", http.base_url.join(ticket["url"])) as stream:
        assert stream.status_code == httpx.codes.OK
        assert (await http.post(f"/runs/{slow['id']}/cancel")).is_success
    assert (await client.ended(slow["id"]))["status"] == "cancelled"
    for path in ("/agents", "/usage", "/runs", "/runs?status=failed", "/threads", f"/threads/{thread_id}/messages"):
        assert (await http.get(path)).status_code == httpx.codes.OK, path
    assert (await http.get(f"/threads/{thread_id}")).status_code == httpx.codes.OK
    assert (await http.patch(f"/threads/{thread_id}", json={"title": "Mine"})).status_code == httpx.codes.OK
    assert (await http.post(f"/threads/{thread_id}/fork", json={})).status_code == httpx.codes.CREATED
    assert (await http.delete(f"/threads/{thread_id}")).status_code == httpx.codes.NO_CONTENT


async def batches_and_webhooks(client: Client, receiver: Receiver) -> None:
    """Batches that are answered few at a time, cancelled and asked again; webhooks of them and of runs."""
    http = client.http
    async with Client(f"{http.base_url.scheme}://{http.base_url.netloc.decode()}", "other") as other:
        told = await other.run(
            "hello", agent_type="echo", webhook_url=f"{receiver.url}/other"
        )  # A worker makes its secret.
        await soon(lambda: received(receiver, "/other"))
        assert (await other.ended(told["id"]))["status"] == "succeeded"
    secret = (await http.get("/webhooks/secret")).json()["secret"]
    batch = await submitted(client, "echo", webhook_url=f"{receiver.url}/batch", max_running=2)
    async with http.stream("GET", f"/batches/{batch}/results", params={"follow": "true"}) as results:
        assert len([line async for line in results.aiter_lines() if '"cursor"' in line]) == ITEMS
    failing = await submitted(client, "breaks")
    await soon(lambda: has_status(client, failing, "completed"))
    assert (await http.post(f"/batches/{failing}/retry", json={})).status_code == httpx.codes.ACCEPTED
    endless = await submitted(client, "slow")
    assert (await http.post(f"/batches/{endless}/cancel")).is_success
    await soon(lambda: has_status(client, endless, "cancelled"))
    assert (await http.get("/batches")).status_code == httpx.codes.OK
    told = await client.run("hello", agent_type="echo", webhook_url=f"{receiver.url}/run")
    await client.ended(told["id"])
    for path in ("/batch", "/run"):
        await soon(lambda path=path: received(receiver, path))
        receiver.at(path)[0].verified(secret)
    delivery = (await http.get("/webhooks/deliveries")).json()["items"][0]
    assert (await http.post(f"/webhooks/deliveries/{delivery['id']}/redeliver")).is_success
    assert (await http.post("/webhooks/secret/rotate")).is_success


async def everything_of_a_user(client: Client) -> None:
    """Export it, and erase it."""
    assert (await client.http.get("/users/me/export")).status_code == httpx.codes.OK
    deletion = (await client.http.delete("/users/me/data")).json()

    async def is_done() -> bool:
        return (await client.http.get(f"/users/me/deletions/{deletion['id']}")).json()["status"] == "completed"

    await soon(is_done)


async def schedules(client: Client) -> None:
    """Schedules, made, changed and deleted; an API process looks for their ticks each second."""
    asked = {"cron": "* * * * *", "agent_type": "echo", "query": "hello"}
    made = (await client.http.post("/schedules", json=asked)).json()
    path = f"/schedules/{made['id']}"
    assert (await client.http.patch(path, json={"paused": True})).is_success
    assert (await client.http.get("/schedules")).json()["items"][0]["paused"]
    assert (await client.http.delete(path)).is_success


async def files(client: Client) -> None:
    """Files, uploaded twice, attached and deleted; a worker stores one that a query brings by its address."""
    text = {"Content-Type": "text/plain"}
    first, second = [(await client.http.post("/files", content="hello", headers=text)).json()["id"] for _ in range(2)]
    assert (await client.http.get(f"/files/{first}/content")).text == "hello"
    asked = {
        "agent_type": "echo",
        "attachments": [{"file_id": first}, {"data": "aGVsbG8=", "media_type": "text/plain"}],
    }
    assert (await client.ended((await client.run("hello", **asked))["id"]))["status"] == "succeeded"
    for file_id in (first, second):
        assert (await client.http.delete(f"/files/{file_id}")).is_success


async def keys(client: Client, operator: httpx.AsyncClient, service: Service) -> None:
    """Keys, by operators over HTTP and by the command line."""
    made = await operator.post("/keys", json={"tenant": "acme", "label": "web"})
    assert made.is_success, made.text
    new = {"X-API-Key": made.json()["key"]}
    await soon(lambda: accepts(client.http, new))
    assert (await operator.post(f"/keys/{made.json()['id']}/rotate", json={})).is_success
    assert (await operator.delete(f"/keys/{made.json()['id']}")).is_success
    assert (await operator.get("/keys")).is_success
    for _ in range(2):
        token = await client.http.post("/user-tokens", json={"user_id": client.user_id, "ttl_s": 60})
        assert token.is_success, token.text
        revoked = await client.http.delete("/user-tokens", params={"user_id": client.user_id})
        assert revoked.is_success, revoked.text
    assert "ar_" in verb(service, "api", "agent_relay.api.keys", "create", "acme")
    assert "tenant=acme" in verb(service, "api", "agent_relay.api.keys", "list")


async def dead_letters(client: Client, operator: httpx.AsyncClient, service: Service, run_id: str) -> None:
    """Dead letters, by operators over HTTP and by the command line."""
    assert run_id in verb(service, "worker", "worker", "dead-letters")
    assert (await operator.get("/dead-letters")).json()["items"][0]["run_id"] == run_id
    assert (await operator.post("/dead-letters/requeue", json={"run_ids": [run_id]})).is_success
    late = await client.run("60 seconds", agent_type="slow", deadline_s=1)
    assert (await client.ended(late["id"]))["error"]["code"] == "deadline_exceeded"
    assert "requeued as" in verb(service, "worker", "worker", "requeue", late["id"])


async def submitted(client: Client, agent_type: str, **rest: Any) -> str:
    """Submit a batch; returns its id."""
    items = [{"custom_id": str(number), "query": "60 seconds"} for number in range(ITEMS)]
    response = await client.http.post("/batches", json={"agent_type": agent_type, "items": items, **rest})
    assert response.status_code == httpx.codes.ACCEPTED, response.text
    return response.json()["id"]


async def has_status(client: Client, batch_id: str, status: str) -> bool:
    return (await client.http.get(f"/batches/{batch_id}")).json()["status"] == status


async def received(receiver: Receiver, path: str) -> bool:
    return bool(receiver.at(path))


async def accepts(http: httpx.AsyncClient, headers: dict[str, str]) -> bool:
    return (await http.get("/agents", headers=headers)).is_success


def verb(service: Service, role: str, *command: str) -> str:
    """Run a command for operators with the role of a process; returns what it prints."""
    environment = service.surroundings() | service.roles_of(role)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("role", [API, WORKER])
async def test_either_sweeper_erases_all_that_is_old(database_url: str, redis_url: str, role: str) -> None:
    """Rows of every kind that is erased, years old."""
    with psycopg.connect(database_url) as connection:
        connection.execute(OLD)
    await erase(database_url, redis_url, role)

    with psycopg.connect(database_url) as connection:
        left = {
            table: connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
            for table in ERASED
        }
    assert left == dict.fromkeys(ERASED, (0,))


async def erase(database_url: str, redis_url: str, role: str) -> None:
    """Erase what is old, as a process of that role does."""
    settings = Settings(database_url=url_of(database_url, role), redis_url=redis_url, run_retention_days=1)
    engine, redis = database.connect(settings), Redis.from_url(redis_url)
    try:
        sweeper = Sweeper(settings, engine, RunQueue(redis, settings.names), EventLog(redis, settings.names))
        for _ in range(3):
            await sweeper.erase()
    finally:
        await redis.aclose()
        await engine.dispose()


ERASED = (
    "threads",
    "runs",
    "messages",
    "transcripts",
    "idempotency_keys",
    "workers",
    "webhook_deliveries",
    "batches",
    "files",
    "file_contents",
    "file_chunks",
)
OLD = """
    INSERT INTO file_contents VALUES ('01980000-0000-7000-8000-000000000003', 'acme', '', 1);
    INSERT INTO file_chunks VALUES ('01980000-0000-7000-8000-000000000003', 0, 'x');
    INSERT INTO files (id, tenant, user_id, media_type, bytes, content_id, expires_at)
    VALUES (gen_random_uuid(), 'acme', gen_random_uuid(), 'text/plain', 1, '01980000-0000-7000-8000-000000000003',
        '2000-01-01');
    INSERT INTO threads (id, tenant, user_id, agent_type, metadata, deleted_at)
    VALUES ('01980000-0000-7000-8000-000000000001', 'acme', gen_random_uuid(), 'echo', '{}', '2000-01-01');
    INSERT INTO batches (id, tenant, user_id, agent_type, metadata, run_seconds, total, status, deadline_at,
        finished_at, deleted_at)
    VALUES ('01980000-0000-7000-8000-000000000002', 'acme', gen_random_uuid(), 'echo', '{}', 1, 1, 'completed',
        now(), '2000-01-01', '2000-01-01');
    INSERT INTO runs (id, tenant, user_id, thread_id, seq, batch_id, custom_id, agent_type, pool, text_output, query,
        metadata, user_message_id, message_id, deadline_at, status, finished_at, end_told)
    SELECT gen_random_uuid(), 'acme', gen_random_uuid(), thread::uuid, seq, batch::uuid, custom, 'echo', 'default',
        true, '?', '{}', gen_random_uuid(), gen_random_uuid(), now(), 'succeeded', '2000-01-01', true
    FROM (VALUES ('01980000-0000-7000-8000-000000000001', 1, NULL, NULL),
                 (NULL, NULL, '01980000-0000-7000-8000-000000000002', '1'),
                 (NULL, NULL, NULL, NULL)) AS old (thread, seq, batch, custom);
    INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
    SELECT gen_random_uuid(), thread_id, id, 1, 'user', '?', '{}' FROM runs WHERE thread_id IS NOT NULL;
    INSERT INTO transcripts (run_id, messages) SELECT id, '[]' FROM runs WHERE thread_id IS NOT NULL;
    INSERT INTO batch_results SELECT batch_id, 1, id FROM runs WHERE batch_id IS NOT NULL;
    INSERT INTO idempotency_keys VALUES ('acme', gen_random_uuid(), '', '', '', gen_random_uuid(), '2000-01-01');
    INSERT INTO workers (id, pool, host, pid, version, slots, lease_until, ended_at)
    VALUES (gen_random_uuid(), 'default', 'here', 1, '0', 1, '2000-01-01', '2000-01-01');
    INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at, created_at, status)
    VALUES (gen_random_uuid(), 'acme', gen_random_uuid(), 'run.failed', gen_random_uuid(), 'https://e.com/', now(),
        '2000-01-01', 'delivered');
"""


# What agents get.


async def _engine(scope: RunScope) -> AsyncEngine:
    return scope.database


_curious = Agent(_looks_then_says(), deps_type=AsyncEngine, name="curious", description="Reads what is not its own.")


@_curious.tool
async def look(ctx: RunContext[AsyncEngine]) -> str:
    """Try to read each table, and to keep a note in a table of its own."""
    said: list[str] = []
    for table in ("runs", "threads", "api_keys", "public.messages", "webhook_secrets", "bank_customers"):
        try:
            async with ctx.deps.connect() as connection:
                await connection.execute(text(f"SELECT * FROM {table}"))
            said.append(f"{table} can be read")
        except Exception as error:  # noqa: BLE001  (it is what is to be seen)
            said.append(f"{table} {type(getattr(error, 'orig', None)).__name__}")
    async with ctx.deps.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(1)"))  # Others of the batch do the same.
        await connection.execute(text("CREATE TABLE IF NOT EXISTS notes (note text)"))
        await connection.execute(text("INSERT INTO notes VALUES ('kept')"))
        schema = await connection.scalar(
            text("SELECT relnamespace::regnamespace FROM pg_class WHERE relname = 'notes'")
        )
    return "; ".join([*said, f"kept in {schema}"])


curious = ServedAgent(agent=_curious, dependencies=_engine)


@pytest.mark.parametrize("strategy", ["alone", "in a batch"])
async def test_the_tool_of_an_agent_reaches_only_its_own_tables(service: Service, strategy: str) -> None:
    api, worker = service.api(), service.worker(AGENTS="curious=tests.acceptance.test_database_roles:curious")
    async with Client(api.url) as client:
        if strategy == "alone":
            events = await client.stream("Look.", agent_type="curious")
            looked = next(event["content"] for event in events if event["event"] == "tool_result")
            assert looked == (
                "runs InsufficientPrivilege; threads InsufficientPrivilege; api_keys InsufficientPrivilege; "
                "public.messages InsufficientPrivilege; webhook_secrets InsufficientPrivilege; "
                "bank_customers can be read; kept in agents"
            )
        else:
            batch = await submitted(client, "curious")
            await soon(lambda: has_status(client, batch, "completed"))
            found = (await client.http.get(f"/batches/{batch}")).json()["counts"]
            assert found["succeeded"] == found["total"]
    assert "agents_reach_all" not in worker.log.read_text()


async def test_without_a_database_of_its_own_an_agent_shares_the_workers_and_the_log_says_so(service: Service) -> None:
    api, worker = service.api(), service.worker(AGENT_DATABASE_URL="", DATABASE_URL=service.database_url)
    async with Client(api.url) as client:
        assert (await client.ask("What is my balance?", agent_type="bank_support")).status_code == httpx.codes.OK
    assert worker.log.read_text().count("worker.agents_reach_all") == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://nobody_there@:5432/{name}?host={folder}", "AGENT_DATABASE_URL: "),
        ("postgresql://agents@:5432/not_there?host={folder}", "AGENT_DATABASE_URL: "),
        ("mysql://agents@host/name", "AGENT_DATABASE_URL must look like postgresql://"),
    ],
)
def test_a_wrong_url_for_agents_stops_the_worker_with_a_sentence(
    service: Service, postgres: PostgresServer, url: str, sentence: str
) -> None:
    name = service.database_url.rpartition("/")[0].rpartition("/")[2]
    given = url.format(name=name, folder=postgres.folder)
    running = service.begin("worker", AGENT_DATABASE_URL=given)

    assert running.process.wait(60) == 1
    assert running.log.read_text().startswith(sentence), running.log.read_text()


# How the roles come to be.


@pytest.fixture(scope="module")
def fresh() -> Iterator[TcpPostgres]:
    """A PostgreSQL on TCP, which asks for passwords."""
    with TcpPostgres() as server:
        server.ensure_database()
        yield server


def made_by_the_script(server: TcpPostgres, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `roles.sql` as the administrator of the server."""
    passwords = {f"{name}_PASSWORD": password for name, password in PASSWORDS.items()}
    return subprocess.run(
        [binaries.postgres_folder() / "psql", "-X", "-q", "-f", ROOT / "shared/migrations/roles.sql", server.url()],
        env=os.environ | passwords | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def tcp(server: TcpPostgres, name: str) -> dict[str, str]:
    """How somebody connects over TCP with the password of a role."""
    password = {"host": "127.0.0.1", "port": str(server.port), "dbname": "agent_relay", "password": PASSWORDS[name]}
    return password | {"user": name.lower()}


def url_over_tcp(server: TcpPostgres, name: str) -> str:
    password = httpx.URL("http://x").copy_with(username="u", password=PASSWORDS[name]).userinfo.decode().split(":")[1]
    return f"postgresql://{name.lower()}:{password}@127.0.0.1:{server.port}/agent_relay"


def test_the_script_makes_roles_for_a_new_and_for_an_old_database(fresh: TcpPostgres) -> None:
    """An old one has tables of the administrator's, which the role of the migrations takes over."""
    upgrade(fresh.url(), "0013")
    for _ in range(2):
        done = made_by_the_script(fresh)
        assert (done.returncode, done.stderr) == (0, "")

    said = upgrade(url_over_tcp(fresh, "MIGRATIONS"), roles=ROLES)

    assert said.startswith("The tables were brought from revision 0013")
    assert rights(fresh.url(), list(NAMES.values())) == expected()
    for name in ("API", "WORKER", "AGENTS"):
        with psycopg.connect(**tcp(fresh, name)) as connection:  # pyright: ignore[reportArgumentType]
            row = connection.execute(
                "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
            )
            assert row.fetchone() == (False,)
    with psycopg.connect(fresh.url()) as connection:
        owners = connection.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
        definers = connection.execute(
            "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert owners == definers == [("migrations",)]


def test_the_script_changes_passwords_and_does_nothing_without_all_of_them(fresh: TcpPostgres) -> None:
    made_by_the_script(fresh, API_PASSWORD="another")
    with psycopg.connect(**tcp(fresh, "API") | {"password": "another"}):  # pyright: ignore[reportArgumentType]
        pass

    done = made_by_the_script(fresh, API_PASSWORD="a third", WORKER_PASSWORD="")

    assert done.returncode != 0
    assert "WORKER_PASSWORD" in done.stderr
    with psycopg.connect(**tcp(fresh, "API") | {"password": "another"}):  # pyright: ignore[reportArgumentType]
        pass


def test_the_role_of_the_migrations_makes_all_tables_and_is_no_superuser(fresh: TcpPostgres) -> None:
    with psycopg.connect(fresh.url(), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS agents CASCADE; CREATE SCHEMA public")
    made_by_the_script(fresh)

    upgrade(url_over_tcp(fresh, "MIGRATIONS"), roles=ROLES)

    assert rights(fresh.url(), list(NAMES.values())) == expected()
