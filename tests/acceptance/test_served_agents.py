"""A query for an agent that no living worker serves is answered with a warning, and after a minute it is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from agent_relay.shared.clock import new_id
from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import Service

SHORT_LEASE = {"LEASE_SECONDS": "1.5", "BEAT_SECONDS": "0.3"}
ONLY_ECHO = {"AGENTS": "echo=tests.support.agents:echo"}
LONG_AGO = "now() - interval '1 hour'"


class Workers:
    """The tables that workers register in, without workers."""

    def __init__(self, database_url: str) -> None:
        self._connection = psycopg.connect(database_url, autocommit=True)

    def agent(self, agent_type: str = "echo", registered_at: str = LONG_AGO) -> None:
        """Register an agent."""
        self.execute(
            "INSERT INTO agents (agent_type, pool, description, output_schema, text_output, registered_at)"
            f" VALUES (%s, 'default', '', '{{}}', true, {registered_at})",
            agent_type,
        )

    def worker(self, ended_seconds_ago: float | None = None, **columns: Any) -> UUID:
        """Register a worker that serves the agent `echo`, but for what is said otherwise."""
        worker_id = new_id()
        values = {
            "id": worker_id,
            "pool": "default",
            "host": "here",
            "pid": 1,
            "version": "0",
            "slots": 1,
            "agents": ["echo"],
            "lease_until": "infinity",
            **columns,
        }
        names = ", ".join(values)
        self.execute(f"INSERT INTO workers ({names}) VALUES ({', '.join(['%s'] * len(values))})", *values.values())
        if ended_seconds_ago is not None:
            self.end(worker_id, ended_seconds_ago)
        return worker_id

    def end(self, worker_id: UUID, seconds_ago: float = 3600) -> None:
        """End a worker some time ago."""
        self.execute(
            "UPDATE workers SET ended_at = now() - make_interval(secs => %s) WHERE id = %s", seconds_ago, worker_id
        )

    def execute(self, statement: str, *values: Any) -> None:
        """Change the tables."""
        self._connection.execute(statement, values)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def close(self) -> None:
        """Leave."""
        self._connection.close()


@pytest.fixture
async def workers(service: Service) -> AsyncGenerator[Workers]:
    tables = Workers(service.database_url)
    tables.agent()
    yield tables
    tables.close()


@pytest.fixture
async def user(service: Service) -> AsyncGenerator[Client]:
    async with Client(service.api().url) as client:
        yield client


async def served(client: Client) -> dict[str, bool]:
    """Read which agents are marked as served."""
    return {agent["agent_type"]: agent["served"] for agent in (await client.http.get("/agents")).json()}


async def post(client: Client, path: str = "/runs", agent_type: str = "echo", **headers: str) -> httpx.Response:
    """Ask."""
    return await client.http.post(path, json={"agent_type": agent_type, "query": "?"}, headers=headers)


async def test_a_worker_serves_its_agents_until_it_stops(service: Service) -> None:
    api = service.api()
    worker = service.worker(**ONLY_ECHO)
    async with Client(api.url) as client:
        assert await served(client) == {"echo": True}
        answer = await client.ask("Hello", agent_type="echo")
        assert answer.status_code == 200
        assert "warning" not in answer.headers
        assert worker.terminate() == 0

        assert await served(client) == {"echo": False}
        run = await post(client)
        assert (run.status_code, run.json()["served"]) == (202, False)
        assert run.headers["warning"].startswith("199 agent-relay ")
        assert (await client.read(run.json()["id"]))["served"] is False

        service.worker(**ONLY_ECHO)
        ended = await client.ended(run.json()["id"])
        assert (ended["status"], ended["served"]) == ("succeeded", None)


async def test_every_way_to_ask_warns_at_once(workers: Workers, user: Client) -> None:
    workers.worker(ended_seconds_ago=0)
    asked = {"agent_type": "echo", "query": "?"}
    async with user.http.stream("POST", "/agent/stream", json=asked) as stream:
        assert (stream.status_code, "warning" in stream.headers) == (200, True)
    query = await user.http.post("/agent/query", json=asked, headers={"Prefer": "wait=0"})
    assert (query.status_code, "warning" in query.headers, query.json()["served"]) == (202, True, False)
    batch = await user.http.post("/batches", json={"agent_type": "echo", "items": [{"custom_id": "1", "query": "?"}]})
    assert (batch.status_code, "warning" in batch.headers, batch.json()["served"]) == (202, True, False)
    assert (await user.http.get(batch.headers["location"].removeprefix("/api/v1"))).json()["served"] is False
    assert [run["served"] for run in (await user.http.get("/runs")).json()["items"]] == [False] * 3


@pytest.mark.parametrize("path", ["/runs", "/agent/query", "/agent/stream"])
async def test_an_agent_that_has_not_been_served_for_a_minute_is_refused(
    workers: Workers, user: Client, path: str
) -> None:
    workers.worker(ended_seconds_ago=120)

    refused = await post(user, path)

    assert "60 seconds" in problem_of(refused, 503, "agent_not_served")["detail"]
    assert int(refused.headers["retry-after"]) > 0
    assert (await user.http.get("/runs")).json()["items"] == []


async def test_a_thread_of_such_an_agent_and_its_batches_are_refused(workers: Workers, user: Client) -> None:
    workers.worker(ended_seconds_ago=120)
    thread_id = await user.thread("echo")
    problem_of(await user.ask("?", thread_id=thread_id), 503, "agent_not_served")
    items = [{"custom_id": "1", "query": "?"}]
    problem_of(await user.http.post("/batches", json={"agent_type": "echo", "items": items}), 503, "agent_not_served")
    as_lines = await user.http.post(
        "/batches",
        params={"agent_type": "echo"},
        content="\n".join(json.dumps(item) for item in items),
        headers={"Content-Type": "application/x-ndjson"},
    )
    problem_of(as_lines, 503, "agent_not_served")
    assert (await user.http.get("/batches")).json()["items"] == []


async def test_a_batch_whose_agent_is_not_served_any_more_is_not_retried_for_now(
    workers: Workers, user: Client
) -> None:
    worker_id = workers.worker()
    items = [{"custom_id": "1", "query": "?"}]
    batch = (await user.http.post("/batches", json={"agent_type": "echo", "items": items})).json()
    workers.execute("UPDATE runs SET status = 'failed', finished_at = now()")
    workers.execute("UPDATE batches SET status = 'completed', failed = 1, finished_at = now()")
    workers.end(worker_id)

    problem_of(await user.http.post(f"/batches/{batch['id']}/retry"), 503, "agent_not_served")


async def test_what_was_accepted_under_a_key_is_found_again_although_nobody_serves_it_now(
    workers: Workers, user: Client
) -> None:
    worker_id = workers.worker()
    first = await post(user, **{"Idempotency-Key": "k"})
    workers.end(worker_id)
    again = await post(user, **{"Idempotency-Key": "k"})

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert ("warning" in first.headers, "warning" in again.headers) == (False, True)


@pytest.mark.parametrize(
    ("columns", "is_served", "status"),
    [
        ({}, True, 202),
        ({"agents": None}, True, 202),  # Of a version that did not say: it serves its pool.
        ({"agents": ["other"]}, False, 503),
        ({"agents": []}, False, 503),  # Made for one run.
        ({"pool": "elsewhere"}, False, 503),
        ({"pool": "elsewhere", "agents": None}, False, 503),
        ({"draining": True}, False, 202),
        ({"lease_until": "-infinity"}, False, 202),  # The database was away; nobody was declared dead.
        ({"ended_seconds_ago": 30}, False, 202),
        ({"ended_seconds_ago": 61}, False, 503),
    ],
)
async def test_who_serves_an_agent(
    workers: Workers, user: Client, columns: dict[str, Any], is_served: bool, status: int
) -> None:
    workers.worker(**columns)

    assert await served(user) == {"echo": is_served}
    assert (await post(user)).status_code == status


async def test_an_agent_that_was_registered_just_now_is_waited_for(workers: Workers, user: Client) -> None:
    workers.agent("new", "now()")

    assert (await post(user, agent_type="new")).status_code == 202
    problem_of(await post(user, agent_type="echo"), 503, "agent_not_served")


@pytest.mark.parametrize(("seconds", "status"), [("0", 202), ("7200", 202), ("10", 503)])
async def test_how_long_is_a_setting(service: Service, workers: Workers, seconds: str, status: int) -> None:
    workers.worker(ended_seconds_ago=15)
    async with Client(service.api(AGENT_UNSERVED_SECONDS=seconds).url) as client:
        assert (await post(client)).status_code == status


async def test_an_unknown_agent_is_told_from_one_that_is_not_served(workers: Workers, user: Client) -> None:
    workers.agent("bank")
    for path, body in (
        ("/runs", {"agent_type": "bnak", "query": "?"}),
        ("/threads", {"agent_type": "bnak"}),
        ("/batches", {"agent_type": "bnak", "items": [{"custom_id": "1", "query": "?"}]}),
    ):
        problem = problem_of(await user.http.post(path, json=body), 422, "invalid_request")
        assert [(error["pointer"], error["code"]) for error in problem["errors"]] == [("/agent_type", "unknown_agent")]
        assert problem["errors"][0]["message"].endswith("Known agents: bank, echo.")


async def test_of_many_agents_some_are_named(workers: Workers, user: Client) -> None:
    for number in range(30):
        workers.agent(f"agent-{number:02}")
    problem = problem_of(await post(user, agent_type="bnak"), 422)

    assert problem["errors"][0]["message"].endswith("agent-18, agent-19 and 11 more.")


async def test_before_the_first_worker_that_is_said(workers: Workers, user: Client) -> None:
    workers.execute("DELETE FROM agents")

    assert "no worker has started" in problem_of(await post(user), 422)["errors"][0]["message"]


async def test_a_killed_worker_is_noticed_and_a_new_one_too(service: Service) -> None:
    api = service.api(**SHORT_LEASE, AGENT_UNSERVED_SECONDS="0.5")
    async with Client(api.url) as client:
        worker = service.worker(**ONLY_ECHO, **SHORT_LEASE)
        worker.kill()
        await soon(lambda: refused(client))
        service.worker(**ONLY_ECHO, **SHORT_LEASE)
        assert await served(client) == {"echo": True}
        assert (await client.ask("Hello", agent_type="echo")).status_code == 200


async def refused(client: Client) -> bool:
    """Tell whether a query is refused by now."""
    return (await post(client)).status_code == 503


async def test_a_restart_of_the_only_worker_refuses_nothing(service: Service) -> None:
    api = service.api()
    async with Client(api.url) as client:
        for _ in range(2):
            worker = service.worker(**ONLY_ECHO)
            assert (await post(client)).status_code == 202
            assert worker.terminate() == 0
            assert (await post(client)).status_code == 202
        service.worker(**ONLY_ECHO)
        for run in (await client.http.get("/runs")).json()["items"]:
            assert (await client.ended(run["id"]))["status"] == "succeeded"


async def test_the_answer_of_a_blocking_call_is_there_as_text_and_as_the_value(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        structured = (await client.ask("Balance?", agent_type="bank_support")).json()
        assert structured["output"] == json.loads(structured["response"])
        assert isinstance(structured["output"], dict)
        for text in ("Hello", "[1]", "null"):
            answer = (await client.ask(text, agent_type="echo")).json()
            assert answer["output"] == answer["response"]
