"""A message into a run that waits for answers: its agent gets it once the run goes on, or it is a run of the thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.test_messages_into_runs import enqueued, fallen, runs_of, send, sent, told_to_the_model
from tests.acceptance.test_waiting import PAY, answered, ids, paid, waits
from tests.support.client import Client
from tests.support.eventually import eventually
from tests.support.service import Service
from tests.support.waiting_agents import LEDGER

AGENTS = "asks=tests.support.waiting_agents:asks,forgetful=tests.support.waiting_agents:forgetful"
TWICE: list[Any] = [*PAY, [["refund", {"amount": 2}]]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    return path


@pytest.fixture
def house(service: Service, ledger: Path) -> Service:
    service.environment |= {"AGENTS": AGENTS, LEDGER: str(ledger), "LEASE_SECONDS": "3", "BEAT_SECONDS": "0.5"}
    return service


@pytest.fixture
async def client(house: Service) -> AsyncGenerator[Client]:
    api = house.api()
    house.worker()
    async with Client(api.url) as client:
        yield client


async def waiting(client: Client, plan: list[Any], **target: Any) -> dict[str, Any]:
    """Ask, and wait until the run waits."""
    return await waits(client, (await client.run(json.dumps(plan), **target))["id"])


async def approve(client: Client, run: dict[str, Any], tool: str = "pay") -> None:
    """Approve what the run waits for."""
    await answered(client, run["id"], {"request_id": ids(run)[tool], "approve": True})


def output(run: dict[str, Any]) -> list[str]:
    """What the agent says that it has done, and was told."""
    assert run["status"] == "succeeded", run
    return json.loads(run["output"])


async def said(client: Client, thread_id: str) -> list[tuple[str, str]]:
    """Read the thread as people see it."""
    return [(message["role"], message["content"]) for message in await client.messages(thread_id)]


async def test_it_is_kept_over_a_restart_of_everything_and_given_once_the_run_goes_on(
    house: Service, ledger: Path
) -> None:
    api, worker = house.api(), house.worker()
    async with Client(api.url) as client:
        thread_id = await client.thread("asks")
        run = await waiting(client, PAY, thread_id=thread_id)
        first = await sent(client, run["id"], "hurry", "once")
        again = await sent(client, run["id"], "hurry", "once")
        shown = await said(client, thread_id)
        still = await client.read(run["id"])
    for process in (worker, api):
        process.kill()
    api = house.api()
    house.worker()
    async with Client(api.url, user_id=client.user_id) as client:
        second = await sent(client, run["id"], "please")
        following = asyncio.create_task(client.events(run["id"]))
        await approve(client, run)
        events = await following
        ended = await client.ended(run["id"])
        told = await told_to_the_model(client, run["id"])
        state = await sent(client, run["id"], "hurry", "once")
        history = await client.ended((await client.run('["history"]', thread_id=thread_id))["id"])
        runs = await runs_of(client, thread_id)

    assert first == again == {"id": first["id"], "status": "pending", "run_id": run["id"]}
    assert second["status"] == "pending"
    assert shown == [("user", json.dumps(PAY)), ("user", "hurry")]
    assert (still["status"], still["requests"]) == ("waiting", run["requests"])
    assert output(ended) == ["pay: paid 3", "told: hurry", "told: please"]
    assert enqueued(events) == [first["id"], second["id"]]
    order = [event["event"] for event in events if event["event"] in {"waiting", "answered", "message_enqueued"}]
    assert order == ["waiting", "answered", "message_enqueued", "message_enqueued"]
    assert told == ["hurry", "please"]
    assert state == first | {"status": "enqueued"}
    assert output(history) == [json.dumps(PAY), "hurry", "please"]
    assert len(runs) == 2
    assert paid(ledger) == ["3"]


@pytest.mark.parametrize("agent", ["asks", "forgetful"])
@pytest.mark.parametrize("window", ["run_claimed@1", "message_given", "run_flushed@1", "run_waiting@1"])
async def test_it_is_in_the_answer_once_wherever_the_worker_dies_that_goes_on(
    house: Service, ledger: Path, window: str, agent: str
) -> None:
    """Of a run that waits twice, with a message into each wait. The worker dies the first time that it goes on."""
    api = house.api()
    name, _, passes = window.partition("@")
    trapped = house.worker(FAILPOINTS=f"{name}=kill" + (f"@{passes}" if passes else ""))
    async with Client(api.url) as client:
        thread_id = await client.thread(agent)
        run = await waiting(client, TWICE, thread_id=thread_id)
        first = await sent(client, run["id"], "hurry")
        following = asyncio.create_task(client.events(run["id"]))
        await approve(client, run)
        await asyncio.to_thread(eventually, lambda: fallen(trapped))
        await asyncio.to_thread(house.worker)
        run = await waits_for(client, run["id"], "refund")
        second = await sent(client, run["id"], "please")
        await approve(client, run, "refund")
        events = await following
        ended = await client.ended(run["id"])
        told = await told_to_the_model(client, run["id"])
        history = await client.ended((await client.run('["history"]', thread_id=thread_id))["id"])

    assert output(ended)[1:3] == ["refund: refunded 2, {'prompt': 'Refund 2?'}", "told: hurry"]
    assert output(ended)[3:] == ["told: please"]
    assert set(enqueued(events)) == {first["id"], second["id"]}
    assert told == ["hurry", "please"]
    assert output(history) == [json.dumps(TWICE), "hurry", "please"]
    again = agent == "forgetful" and window in {"message_given", "run_flushed@1"}
    assert paid(ledger) == ["3", *(["3"] if again else []), "-2"]


async def waits_for(client: Client, run_id: str, tool: str) -> dict[str, Any]:
    """Wait until a run waits for an answer to a tool."""
    while tool not in ids(run := await client.read(run_id, wait=1)):
        assert run["status"] not in {"succeeded", "failed", "cancelled"}, run
    return run


async def test_one_that_comes_as_the_run_comes_to_wait_is_given_after_the_answer(client: Client, ledger: Path) -> None:
    """The model asks for the approval before it could be told; without a thread, too."""
    run = await client.run(json.dumps([[["nap", {"seconds": 1.5}], *PAY[0]]]), agent_type="asks")
    await asyncio.to_thread(eventually, lambda: paid(ledger) == ["7"])
    message = await sent(client, run["id"], "hurry", "once")
    run = await waits(client, run["id"])
    while_it_waits = await sent(client, run["id"], "hurry", "once")
    await approve(client, run)
    events = await client.events(run["id"])
    ended = await client.ended(run["id"])
    refused = await send(client, run["id"], "late")

    assert message == while_it_waits == {"id": message["id"], "status": "pending", "run_id": run["id"]}
    assert output(ended) == ["nap: rested", "pay: paid 3", "told: hurry"]
    assert enqueued(events) == [message["id"]]
    assert (refused.status_code, refused.json()["code"]) == (409, "run_ended")


async def test_a_query_that_steers_waits_behind_a_run_that_waits(client: Client) -> None:
    thread_id = await client.thread("asks")
    run = await waiting(client, PAY, thread_id=thread_id)
    behind = await client.run("[]", thread_id=thread_id, multitask_strategy="steer")
    await approve(client, run)

    assert behind["id"] != run["id"]
    assert output(await client.ended(run["id"])) == ["pay: paid 3"]
    assert output(await client.ended(behind["id"])) == []


@pytest.mark.parametrize("how", ["cancel", "expiry"])
async def test_a_run_that_ends_while_it_waits_makes_it_the_threads_next_run(
    client: Client, house: Service, ledger: Path, how: str
) -> None:
    thread_id = await client.thread("asks")
    run = await waiting(client, PAY, thread_id=thread_id)
    message = await sent(client, run["id"], '["history"]', "once")
    behind = await client.run("[]", thread_id=thread_id)
    alone = await waiting(client, PAY, agent_type="asks")
    lost = await sent(client, alone["id"], "hurry", "alone")
    if how == "cancel":
        for each in (run, alone):
            assert (await client.http.post(f"/runs/{each['id']}/cancel")).json()["status"] == "cancelled"
    else:
        with psycopg.connect(house.database_url) as database:
            database.execute("UPDATE runs SET wait_until = now() WHERE status = 'waiting'")
    ended = await client.ended(run["id"])
    became = await sent(client, run["id"], '["history"]', "once")
    next_run = await client.ended(became["run_id"])
    last = await client.ended(behind["id"])
    await client.ended(alone["id"])
    without_thread = await sent(client, alone["id"], "hurry", "alone")
    runs = await runs_of(client, thread_id)
    messages = await client.messages(thread_id)

    assert (ended["status"], ended["error"] and ended["error"]["code"]) == (
        ("cancelled", None) if how == "cancel" else ("failed", "answer_overdue")
    )
    assert became == {"id": message["id"], "status": "queued", "run_id": next_run["id"]}
    assert output(next_run) == ([json.dumps(PAY)] if how == "cancel" else [])  # What failed, the model never hears of.
    assert next_run["started_at"] < last["started_at"]
    assert output(last) == []
    assert {each["id"] for each in runs} == {run["id"], next_run["id"], behind["id"]}
    assert without_thread == lost | {"status": "run_ended"}
    assert [each["metadata"]["run_id"] for each in messages if each["id"] == message["id"]] == [next_run["id"]]
    assert paid(ledger) == []


@pytest.mark.parametrize("how", ["delete", "interrupt", "rollback", "replace"])
async def test_it_goes_with_the_run_that_is_taken_away(client: Client, house: Service, how: str) -> None:
    thread_id = await client.thread("asks")
    run = await waiting(client, PAY, thread_id=thread_id)
    await sent(client, run["id"], "[]", "once")
    if how == "delete":
        assert (await client.http.delete(f"/threads/{thread_id}")).status_code == 204
        assert (await send(client, run["id"], "[]")).status_code == 404
    else:
        query_id = (await client.messages(thread_id))[0]["id"]
        strategy = {"replace_from": query_id} if how == "replace" else {"multitask_strategy": how}
        last = await client.run('["history"]', thread_id=thread_id, **strategy)
        assert output(await client.ended(last["id"])) == ([json.dumps(PAY)] if how == "interrupt" else [])
        users = [message["content"] for message in await client.messages(thread_id) if message["role"] == "user"]
        assert users == ([json.dumps(PAY), "[]"] if how == "interrupt" else []) + ['["history"]']
    with psycopg.connect(house.database_url) as database:
        ended = database.execute("SELECT status FROM runs WHERE query <> '[\"history\"]'").fetchall()
    assert {status for (status,) in ended} <= {"cancelled"}
    assert how == "delete" or len(ended) == (2 if how == "interrupt" else 1)
