"""Dead letters: runs that failed although asking again may help, and operators who have that done, once each."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any
from uuid import UUID

import httpx
import pytest

from agent_relay.shared.clock import new_id
from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.errors import NotFound, UnknownAgent
from agent_relay.shared.failure_codes import FailureCode, failure
from agent_relay.shared.queue import Lane
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.claim import claim, is_suspect
from agent_relay.shared.runs.dead_letters import dead_letters, requeue
from agent_relay.shared.runs.finish import Ending, finish
from tests.support.client import Client
from tests.support.problems import errors_of, problem_of
from tests.support.service import KEYS, OPERATOR_KEY, ROOT, Running, Service
from tests.support.stage import Stage

UNKNOWN = "0198c5a4-7c9e-7000-8000-000000000000"


async def failed(stage: Stage, code: FailureCode = FailureCode.WORKER_CRASHED, **asked: Any) -> UUID:
    """Accept a query that comes to nothing."""
    run_id = await stage.query(**asked)
    claimed = await stage.claimed(run_id, await stage.worker())
    error = failure(code, "It failed.")
    await finish(
        stage.database, claimed, Ending(status=RunStatus.FAILED, text=None, last_entry=1, usage={}, error=error)
    )
    return run_id


async def listed(stage: Stage) -> list[UUID]:
    """List what waits for a decision."""
    return [row.id for row in await dead_letters(stage.database, code=None, limit=100)]


async def test_the_same_is_asked_again_as_a_new_run(stage: Stage) -> None:
    alone: dict[str, Any] = {"thread_id": None, "agent_type": "echo", "lane": Lane.BATCH, "metadata": {"a": [1]}}
    alone["history"] = [{"role": "user", "content": "Before."}]
    for asked in ({}, alone):
        dead = await stage.row(await failed(stage, query="What?", deadline_seconds=1234, **asked))
        waiting = await stage.query()

        requeued = await requeue(stage.database, dead.id)

        again = await stage.row(requeued.run_id)
        assert requeued.ring is not None
        assert requeued.ring.member == f"{again.id}:1"
        same = ("tenant", "user_id", "thread_id", "agent_type", "lane", "query", "metadata", "history")
        assert [getattr(again, name) for name in same] == [getattr(dead, name) for name in same]
        assert (again.status, again.retry_of, again.attempt, again.crashes) == ("queued", dead.id, 0, 0)
        assert again.deadline_at - again.created_at == dead.deadline_at - dead.created_at
        assert again.seq == (None if asked else (await stage.row(waiting)).seq + 1)
        assert (await stage.row(dead.id)).status == "failed"
        await cancel(stage.database, waiting)
        await cancel(stage.database, again.id)


async def test_two_operators_make_one_run_of_a_dead_letter(stage: Stage) -> None:
    alone: dict[str, Any] = {"thread_id": None, "agent_type": "echo"}
    for asked in ({}, alone):
        run_id = await failed(stage, **asked)

        outcomes = await asyncio.gather(*(requeue(stage.database, run_id) for _ in range(5)))
        later = await requeue(stage.database, run_id)

        assert len({outcome.run_id for outcome in [*outcomes, later]}) == 1
        assert sum(outcome.ring is not None for outcome in outcomes) == 1
        assert later.ring is None
        repeated = await stage.execute("SELECT id FROM runs WHERE retry_of = :id", id=run_id)
        assert [row.id for row in repeated] == [later.run_id]
        assert await listed(stage) == []
        await cancel(stage.database, later.run_id)


async def test_a_deadline_of_its_own_can_be_given(stage: Stage) -> None:
    requeued = await requeue(stage.database, await failed(stage), 7)

    again = await stage.row(requeued.run_id)
    assert (again.deadline_at - again.created_at).total_seconds() == 7


async def test_what_killed_workers_is_asked_again_in_a_process_of_its_own(stage: Stage) -> None:
    run_id = await failed(stage)
    await stage.execute("UPDATE runs SET crashes = 3")

    again = (await requeue(stage.database, run_id)).run_id

    assert await claim(stage.database, again, await stage.worker(), isolated=False) is None
    assert await is_suspect(stage.database, again)
    assert (await stage.claimed(again, await stage.worker(), isolated=True)).begun == AttemptReason.FIRST


async def test_only_what_could_come_to_more_is_a_dead_letter(stage: Stage) -> None:
    alone = {"thread_id": None, "agent_type": "echo"}
    dead = [
        await failed(stage, code)
        for code in (
            FailureCode.WORKER_CRASHED,
            FailureCode.MODEL_UNAVAILABLE,
            FailureCode.OUTPUT_INVALID,
            FailureCode.DEADLINE_EXCEEDED,
        )
    ]
    unwanted = await stage.query(**alone)
    claimed = await stage.claimed(unwanted, await stage.worker())
    await cancel(stage.database, unwanted)
    error = failure(FailureCode.DEADLINE_EXCEEDED)
    await finish(
        stage.database, claimed, Ending(status=RunStatus.FAILED, text=None, last_entry=1, usage={}, error=error)
    )
    others = [
        await failed(stage, FailureCode.AGENT_ERROR),
        await failed(stage, FailureCode.USAGE_LIMIT_EXCEEDED),
        await stage.query(**alone),
        unwanted,
        new_id(),
    ]

    assert await listed(stage) == dead[::-1]
    assert [row.id for row in await dead_letters(stage.database, code=FailureCode.OUTPUT_INVALID, limit=9)] == [dead[2]]
    await stage.execute("UPDATE threads SET deleted_at = now()")
    assert await listed(stage) == []
    for run_id in [*dead, *others]:
        with pytest.raises(NotFound):
            await requeue(stage.database, run_id)


async def test_a_dead_letter_whose_agent_nobody_serves_stays_one(stage: Stage) -> None:
    run_id = await failed(stage, thread_id=None, agent_type="echo")
    await stage.execute("DELETE FROM agents")

    with pytest.raises(UnknownAgent):
        await requeue(stage.database, run_id)

    assert await listed(stage) == [run_id]
    assert len(await stage.execute("SELECT FROM runs")) == 1


def operator(api: Running, key: str = OPERATOR_KEY) -> httpx.AsyncClient:
    """Call as an operator."""
    url = f"{api.url}/api/v1/operator"
    return httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}, verify=False)


async def late(client: Client, **target: Any) -> str:
    """Ask for what cannot be done in time; returns the failed run."""
    run = await client.run("0.5 seconds", deadline_s=0.2, **target or {"agent_type": "slow"})
    assert (await client.ended(run["id"]))["error"]["code"] == "deadline_exceeded"
    return run["id"]


async def test_an_operator_lists_dead_letters_and_has_them_asked_again(shared_api: Running, client: Client) -> None:
    thread_id = await client.thread("slow")
    dead = [await late(client), await late(client, thread_id=thread_id), await late(client)]
    async with operator(shared_api) as http:
        seen: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
            page = (await http.get("/dead-letters", params={"limit": 2, "code": "deadline_exceeded", **cursor})).json()
            seen += [item for item in page["items"] if item["user_id"] == client.user_id]
        asked = {"run_ids": [*dead, UNKNOWN], "deadline_s": 60}
        first = await http.post("/dead-letters/requeue", json=asked)
        second = await http.post("/dead-letters/requeue", json=asked)
        left = (await http.get("/dead-letters", params={"limit": 100})).json()["items"]
    new = [item["requeued_as"] for item in first.json()["items"]]

    assert [item["run_id"] for item in seen] == dead[::-1]
    assert {"tenant": "acme", "thread_id": thread_id, "agent_type": "slow"}.items() <= seen[1].items()
    assert first.status_code == second.status_code == 202
    assert [item["run_id"] for item in first.json()["items"]] == asked["run_ids"]
    assert [item["outcome"] for item in first.json()["items"]] == ["requeued"] * 3 + ["not_found"]
    assert [item["outcome"] for item in second.json()["items"]] == ["already_requeued"] * 3 + ["not_found"]
    assert [item["requeued_as"] for item in second.json()["items"]] == new
    assert not {item["run_id"] for item in left} & set(dead)
    for was, now in zip(dead, new[:3], strict=True):
        run = await client.ended(now)
        assert (run["status"], run["retry_of"]) == ("succeeded", was)
    assert [message["role"] for message in await client.messages(thread_id)] == ["user", "user", "assistant"]


BAD_BODIES: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "nothing": ({}, ("/run_ids", "missing")),
    "none": ({"run_ids": []}, ("/run_ids", "too_short")),
    "too many": ({"run_ids": [UNKNOWN] * 101}, ("/run_ids", "too_long")),
    "no id": ({"run_ids": ["c4n4ry"]}, ("/run_ids/0", "uuid_parsing")),
    "an unknown field": ({"run_ids": [UNKNOWN], "c4n4ry": 1}, ("/c4n4ry", "extra_forbidden")),
    "no time": ({"run_ids": [UNKNOWN], "deadline_s": 0}, ("/deadline_s", "greater_than")),
    "too much time": ({"run_ids": [UNKNOWN], "deadline_s": 86_401}, ("/deadline_s", "less_than_equal")),
}


@pytest.mark.parametrize(("body", "error"), BAD_BODIES.values(), ids=BAD_BODIES)
async def test_what_is_wrong_with_a_request_is_said(
    shared_api: Running, body: dict[str, Any], error: tuple[str, str]
) -> None:
    async with operator(shared_api) as http:
        assert errors_of(await http.post("/dead-letters/requeue", json=body)) == {error}


async def test_wrong_parameters_are_refused(shared_api: Running) -> None:
    async with operator(shared_api) as http:
        problem_of(await http.get("/dead-letters?cursor=c4n4ry"), 400, "malformed_cursor")
        for query in ("code=c4n4ry", "limit=101", "tenant=acme"):
            problem_of(await http.get(f"/dead-letters?{query}"), 422, "invalid_request")
        assert (await http.get("/dead-letters?code=agent_error")).json()["items"] == []


async def test_a_tenant_is_no_operator_and_an_operator_no_tenant(shared_api: Running) -> None:
    async with operator(shared_api, KEYS["acme"]) as http:
        refused = [
            await http.get("/dead-letters"),
            await http.post("/dead-letters/requeue", json={"run_ids": [UNKNOWN]}),
        ]
    async with httpx.AsyncClient(headers={"X-API-Key": OPERATOR_KEY, "X-User-ID": UNKNOWN}, verify=False) as http:
        refused.append(await http.get(f"{shared_api.url}/api/v1/runs"))

    for response in refused:
        problem_of(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "ApiKey, Bearer"


async def test_where_no_operator_is_configured_nobody_is_one(service: Service) -> None:
    api = service.api(OPERATOR_KEYS="")
    for key in ("", OPERATOR_KEY):
        async with operator(api, key) as http:
            problem_of(await http.get("/dead-letters"), 401, "unauthorized")


def verb(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `agent-relay worker` with a verb."""
    command = [sys.executable, "-m", "agent_relay.worker", *arguments]
    return subprocess.run(command, cwd=ROOT, env=service.surroundings(), capture_output=True, text=True, check=False)


async def test_dead_letters_have_verbs_on_the_command_line(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        dead = [await late(client) for _ in range(3)]
        shown = await asyncio.to_thread(verb, service, "dead-letters", "--code", "deadline_exceeded")
        one = await asyncio.to_thread(verb, service, "requeue", dead[0], UNKNOWN, "--deadline", "60")
        rest = await asyncio.to_thread(verb, service, "requeue", "--all", "--deadline", "60")
        nothing = await asyncio.to_thread(verb, service, "requeue", "--all")
        runs = (await client.http.get("/runs")).json()["items"]
        ended = [await client.ended(run["id"]) for run in runs]
    again = {run["retry_of"]: run["id"] for run in runs if run["retry_of"]}

    assert [line.split()[:2] for line in shown.stdout.splitlines()] == [
        [run_id, "deadline_exceeded"] for run_id in dead[::-1]
    ]
    assert one.returncode == 1
    assert one.stdout.splitlines() == [
        f"{dead[0]} requeued as {again[dead[0]]}",
        f"{UNKNOWN} There is no such dead letter.",
    ]
    assert (rest.returncode, rest.stdout.splitlines()) == (
        0,
        [f"{run_id} requeued as {again[run_id]}" for run_id in dead[1:]],
    )
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert sorted(run["status"] for run in ended) == ["failed"] * 3 + ["succeeded"] * 3


@pytest.mark.parametrize("arguments", [[], [UNKNOWN, "--code", "worker_crashed"]], ids=str)
def test_what_a_verb_does_not_understand_it_does_not_do(service: Service, arguments: list[str]) -> None:
    refused = verb(service, "requeue", *arguments)

    assert refused.returncode == 2
    assert "error: " in refused.stderr
