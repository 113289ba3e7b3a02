"""A run waits for answers as a row, for as long as it takes, and goes on where it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from redis.asyncio import Redis

from agent_relay.client.answers import ask_for
from agent_relay.shared.batches.accept import Submission
from agent_relay.shared.batches.accept import accept as accept_batch
from agent_relay.shared.batches.spool import Spool
from agent_relay.shared.database.tables import RequestKind
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.wait import Answers, DeferredCall, Given, Wait, wait
from agent_relay.shared.runs.wait import answer as take_answer
from agent_relay.shared.schemas import RunRequest
from agent_relay.shared.settings import Settings
from tests.support.client import Client, names
from tests.support.command import Terminal
from tests.support.eventually import soon
from tests.support.service import Service
from tests.support.stage import Stage
from tests.support.waiting_agents import LEDGER

AGENTS = ",".join(f"{name}=tests.support.waiting_agents:{name}" for name in ("asks", "plain", "inline"))
PAY: list[Any] = [[["pay", {"amount": 3}]]]
EVERYTHING: list[Any] = [
    [["pay", {"amount": 3}], ["look", {}], ["refund", {"amount": 2}], ["ask", {"question": "Who?"}]],
    [["elsewhere", {"what": "box"}], ["measure", {}]],
]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    return path


@pytest.fixture
def house(service: Service, ledger: Path) -> Service:
    service.environment |= {"AGENTS": AGENTS, LEDGER: str(ledger)}
    return service


@pytest.fixture
def wiped(redis_url: str) -> Callable[[], Awaitable[None]]:
    """Lose all of Redis."""

    async def wipe() -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.flushdb()

    return wipe


@pytest.fixture
async def client(house: Service) -> AsyncGenerator[Client]:
    api = house.api()
    house.worker()
    async with Client(api.url) as client:
        yield client


def paid(ledger: Path) -> list[str]:
    """What tools did outside, in their order."""
    return ledger.read_text().split()


async def waits(client: Client, run_id: str) -> dict[str, Any]:
    """Wait until a run waits; returns it."""
    events = await client.events(run_id, until="waiting")
    assert events[-1] == {"id": events[-1]["id"], "event": "done", "status": "waiting"}
    run = await client.read(run_id)
    assert run["status"] == "waiting"
    return run


async def answer(client: Client, run_id: str, *answers: dict[str, Any]) -> httpx.Response:
    return await client.http.post(f"/runs/{run_id}/answers", json={"answers": list(answers)})


async def answered(client: Client, run_id: str, *answers: dict[str, Any]) -> dict[str, Any]:
    response = await answer(client, run_id, *answers)
    assert response.status_code == 202, response.text
    return response.json()


def ids(run: dict[str, Any]) -> dict[str, str]:
    """The ids of what is open, by tool."""
    return {request["tool_name"]: request["request_id"] for request in run["requests"] if request["answer"] is None}


@pytest.mark.parametrize("agent", ["asks", "plain"])
async def test_each_kind_is_asked_answered_and_gone_on_from(client: Client, ledger: Path, agent: str) -> None:
    run_id = (await client.run(json.dumps(EVERYTHING), agent_type=agent))["id"]
    run = await waits(client, run_id)

    assert [(r["tool_name"], r["kind"], r["args"], r["prompt"]) for r in run["requests"]] == [
        ("pay", "approval", {"amount": 3}, None),
        ("refund", "approval", {"amount": 2}, "Refund 2?"),
        ("ask", "question", {"question": "Who?"}, "Who?"),
    ]
    assert run["requests"][0]["schema"]["properties"]["amount"]["type"] == "integer"
    assert run["requests"][2]["schema"] == {"type": "string"}
    of = ids(run)
    approved = {"request_id": of["pay"], "approve": True, "args": {"amount": 5}}
    assert (await answered(client, run_id, approved))["status"] == "waiting"
    denied = {"request_id": of["refund"], "approve": False, "message": "Too late."}
    goes_on = await answered(client, run_id, {"request_id": of["ask"], "result": "Ann"}, denied)
    assert goes_on["status"] != "waiting" or len(goes_on["requests"]) == 5

    run = await waits(client, run_id)
    of = ids(run)
    assert {r["tool_name"]: r["kind"] for r in run["requests"][3:]} == {"elsewhere": "external", "measure": "external"}
    failed = {"request_id": of["measure"], "error": "It is gone."}
    await answered(client, run_id, failed, {"request_id": of["elsewhere"], "result": {"weight": 1.5}})
    run = await client.ended(run_id)

    assert run["status"] == "succeeded", run
    said = json.loads(run["output"])
    assert set(said) == {
        "pay: paid 5",
        "look: seen",
        "refund: Too late.",
        "ask: Ann",
        'elsewhere: {"weight":1.5}',
        next(line for line in said if line.startswith("measure:") and "It is gone." in line),
    }
    assert len(said) == 6
    assert paid(ledger) == ["0", "5"]
    assert [r["answered_by"] for r in run["requests"]] == [client.user_id] * 5
    assert [r["answer"] for r in run["requests"][:2]] == [
        {"approve": True, "args": {"amount": 5}},
        {"approve": False, "message": "Too late."},
    ]
    events = await client.events(run_id)
    told = [event["event"] for event in events if event["event"] != "text_delta"]
    in_order = [name for _, some in groupby(told, lambda name: name.startswith("tool")) for name in _sorted_tools(some)]
    assert in_order == [
        "message_created",
        "message_started",
        *["tool_call"] * 4,
        "tool_result",
        "waiting",
        *["answered"] * 3,
        "message_started",
        *["tool_call"] * 2,
        *["tool_result"] * 3,
        "waiting",
        *["answered"] * 2,
        "message_started",
        *["tool_result"] * 2,
        "message_complete",
        "done",
    ]
    assert [event["reason"] for event in events if event["event"] == "message_started"] == [
        "first",
        "answered",
        "answered",
    ]
    assert [event.get("approve") for event in events if event["event"] == "answered"] == [True, None, False, None, None]
    assert [tuple(map(int, event["id"].split("-"))) for event in events] == sorted(
        {tuple(map(int, event["id"].split("-"))) for event in events}
    )


async def test_answers_are_checked_each_counts_once_and_strangers_see_nothing(client: Client) -> None:
    run_id = (await client.run(json.dumps(EVERYTHING[:1]), agent_type="asks"))["id"]
    of = ids(await waits(client, run_id))

    async def refused(*answers: dict[str, Any]) -> tuple[int, str, list[str]]:
        response = await answer(client, run_id, *answers)
        problem = response.json()
        return response.status_code, problem["code"], [error["pointer"] for error in problem.get("errors", [])]

    pay, ask = {"request_id": of["pay"]}, {"request_id": of["ask"]}
    one = "/answers/0"
    assert await refused({"request_id": "nobody", "approve": True}) == (422, "invalid_request", [f"{one}/request_id"])
    assert await refused({**pay, "result": 1}) == (422, "invalid_request", [one])
    assert await refused({**ask, "approve": True}) == (422, "invalid_request", [one])
    assert await refused({**ask, "result": 7}) == (422, "invalid_request", [f"{one}/result"])
    assert await refused({**pay, "approve": True, "args": {"amount": "x"}}) == (
        422,
        "invalid_request",
        [f"{one}/args/amount"],
    )
    assert await refused({**pay, "approve": True, "args": {}}) == (422, "invalid_request", [f"{one}/args"])
    wrongs: list[dict[str, Any]] = [
        {},
        {"approve": True, "message": "?"},
        {"approve": False, "args": {}},
        {"approve": 1},
        {"result": 1, "error": "?"},
    ]
    for wrong in wrongs:
        assert (await refused({**pay, **wrong}))[0] == 422, wrong
    assert (await refused({**ask, "result": "Ann"}, {**pay, "result": 1}))[2] == ["/answers/1"]
    assert all(request["answer"] is None for request in (await client.read(run_id))["requests"])

    stranger = Client(str(client.http.base_url).removesuffix("/api/v1/"))
    async with stranger:
        assert (await answer(stranger, run_id, {**pay, "approve": True})).status_code == 404

    await answered(client, run_id, {**pay, "approve": False})
    again = await answer(client, run_id, {**pay, "approve": False})
    assert (again.status_code, again.json()["status"]) == (200, "waiting")
    assert await refused({**pay, "approve": True}) == (409, "already_answered", [])
    await answered(client, run_id, {**ask, "result": "Ann"}, {"request_id": of["refund"], "approve": False})
    assert (await client.ended(run_id))["status"] == "succeeded"
    assert (await answer(client, run_id, {**ask, "result": "Ann"})).status_code == 200
    assert await refused({**ask, "result": "Bob"}) == (409, "already_answered", [])
    assert await refused({"request_id": "nobody", "approve": True}) == (409, "not_waiting", [])


async def test_everything_is_restarted_while_a_run_waits(
    house: Service, ledger: Path, wiped: Callable[[], Awaitable[None]]
) -> None:
    api, worker = house.api(), house.worker()
    async with Client(api.url) as client:
        thread_id = await client.thread("asks")
        run_id = (await client.run(json.dumps(PAY), thread_id=thread_id))["id"]
        await waits(client, run_id)
        behind = (await client.run("[]", thread_id=thread_id))["id"]
        async with client.following(run_id) as stream:
            worker.kill()
            assert worker.process.poll() is not None
            api.kill()
            assert names([event async for event in until_cut(stream)])[-1] == "waiting"
    await wiped()
    api, worker = house.api(), house.worker()
    async with Client(api.url, user_id=client.user_id) as client:
        async with client.following(run_id) as stream:
            seen = [await anext(stream)]
            while seen[-1]["event"] != "waiting":
                seen.append(await anext(stream))
            assert names(seen) == ["message_created", "gap", "waiting"]
            assert (await client.read(behind))["status"] == "queued"
            await answered(client, run_id, {"request_id": seen[-1]["requests"][0]["request_id"], "approve": True})
            rest = [event async for event in stream]
        assert [event["event"] for event in rest if event["event"] != "text_delta"] == [
            "answered",
            "message_started",
            "tool_result",
            "message_complete",
            "done",
        ]
        assert json.loads((await client.ended(run_id))["output"]) == ["pay: paid 3"]
        assert (await client.ended(behind))["status"] == "succeeded"
        again = await client.ask("[]", thread_id=thread_id)
        assert again.status_code == 200, again.text
    assert paid(ledger) == ["3"]


def _sorted_tools(told: Iterator[str]) -> list[str]:
    """Tools that run at once return in any order."""
    some = list(told)
    return sorted(some) if some[0].startswith("tool") else some


async def until_cut(stream: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Read a stream to its end, however that comes."""
    with suppress(httpx.HTTPError):
        async for event in stream:
            yield event


async def test_a_blocking_call_answers_with_the_waiting_run(client: Client) -> None:
    response = await client.ask(json.dumps(PAY), agent_type="asks")

    assert response.status_code == 202
    run = response.json()
    assert (run["status"], run["queue_position"], response.headers["Location"]) == (
        "waiting",
        None,
        f"/api/v1/runs/{run['id']}",
    )
    listed = (await client.http.get("/runs", params={"status": "waiting"})).json()["items"]
    assert [(item["id"], item["requests"]) for item in listed] == [(run["id"], run["requests"])]
    assert (await client.http.get("/runs", params={"status": "running"})).json()["items"] == []


async def test_a_stream_goes_on_after_the_answer(client: Client) -> None:
    async with client.asking(json.dumps(PAY), agent_type="asks") as stream:
        seen = [await anext(stream)]
        while seen[-1]["event"] != "waiting":
            seen.append(await anext(stream))
        run_id = seen[0]["run_id"]
        await answered(client, run_id, {"request_id": seen[-1]["requests"][0]["request_id"], "approve": True})
        seen += [event async for event in stream]

    assert seen[-1] == {"id": seen[-1]["id"], "event": "done", "status": "succeeded"}
    for place, event in enumerate(seen):
        rest = await client.events(run_id, after=event["id"])
        steady = [each for each in seen[place + 1 :] if each["event"] != "text_delta"]
        assert [each for each in rest if each["event"] != "text_delta"] == steady, event


async def test_handlers_inline_decide_at_once_and_leave_the_rest_open(client: Client, ledger: Path) -> None:
    calls = [[["pay", {"amount": 3}]], [["ask", {"question": "Who?"}]]]
    run_id = (await client.run(json.dumps(calls), agent_type="inline"))["id"]
    run = await waits(client, run_id)

    assert paid(ledger) == ["3"]
    assert [request["tool_name"] for request in run["requests"]] == ["ask"]
    await answered(client, run_id, {"request_id": ids(run)["ask"], "result": "Ann"})
    assert json.loads((await client.ended(run_id))["output"]) == ["pay: paid 3", "ask: Ann"]
    assert paid(ledger) == ["3"]


@pytest.mark.parametrize("how", ["cancel", "interrupt", "rollback", "delete"])
async def test_a_run_that_waits_ends_at_once_and_its_thread_goes_on(client: Client, how: str) -> None:
    thread_id = await client.thread("asks")
    run_id = (await client.run(json.dumps(PAY), thread_id=thread_id))["id"]
    run = await waits(client, run_id)
    async with client.following(run_id) as stream:
        while (await anext(stream))["event"] != "waiting":
            pass
        match how:
            case "cancel":
                response = await client.http.post(f"/runs/{run_id}/cancel")
                assert (response.status_code, response.json()["status"]) == (200, "cancelled")
            case "delete":
                assert (await client.http.delete(f"/threads/{thread_id}")).status_code == 204
            case _:
                reject = await client.http.post(
                    "/runs", json={"thread_id": thread_id, "query": "[]", "multitask_strategy": "reject"}
                )
                assert (reject.status_code, reject.json()["run_id"]) == (409, run_id)
                await client.run("[]", thread_id=thread_id, multitask_strategy=how)
        assert names([event async for event in stream]) == ["cancelled", "done"]
    if how == "delete":
        assert (await client.http.get(f"/runs/{run_id}")).status_code == 404
        return
    late = await answer(client, run_id, {"request_id": ids(run)["pay"], "approve": True})
    assert (late.status_code, late.json()["code"]) == (409, "not_waiting")
    response = await client.ask("[]", thread_id=thread_id)
    assert response.status_code == 200, response.text
    queries = [m["content"] for m in await client.messages(thread_id) if m["role"] == "user"]
    assert (json.dumps(PAY) in queries) == (how != "rollback")


async def test_a_wait_ends_at_its_own_deadline_and_the_clock_of_the_run_stands_still(house: Service) -> None:
    api = house.api()
    house.worker()
    async with Client(api.url) as client:
        patient = (await client.run(json.dumps(PAY), agent_type="asks", deadline_s=20))["id"]
        hasty = (await client.run(json.dumps(PAY), agent_type="asks", wait_deadline_s=0.5))["id"]
        of = ids(await waits(client, patient))
        run = await client.ended(hasty)
        assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("failed", "answer_overdue", False)
        assert names(await client.events(hasty))[-2:] == ["error", "done"]
        with psycopg.connect(house.database_url, autocommit=True) as database:  # Six days pass.
            database.execute(
                "UPDATE runs SET waiting_since = waiting_since - interval '6 days', deadline_at = deadline_at"
                " - interval '6 days', wait_until = wait_until - interval '6 days' WHERE id = %s",
                [patient],
            )
        await asyncio.sleep(2.5)  # Two sweeps.
        assert (await client.read(patient))["status"] == "waiting"
        await answered(client, patient, {"request_id": of["pay"], "approve": True})
        assert (await client.ended(patient))["status"] == "succeeded"


async def test_items_of_a_batch_wait_are_counted_and_answered(client: Client) -> None:
    items = [
        {"custom_id": "waits", "query": json.dumps(PAY)},
        {"custom_id": "ends", "query": "[]"},
        {"custom_id": "waits too", "query": json.dumps(PAY)},
    ]
    created = await client.http.post(
        "/batches", json={"agent_type": "asks", "items": items, "max_running": 1, "wait_deadline_s": 60}
    )
    batch_id = created.json()["id"]

    async def counts() -> dict[str, int]:
        return (await client.http.get(f"/batches/{batch_id}")).json()["counts"]

    async def two_wait() -> bool:
        return await counts() == {
            "total": 3,
            "queued": 0,
            "running": 0,
            "waiting": 2,
            "succeeded": 1,
            "failed": 0,
            "cancelled": 0,
        }

    await soon(two_wait)
    runs = (await client.http.get("/runs", params={"batch_id": batch_id, "status": "waiting"})).json()["items"]
    for run in runs:
        await answered(client, run["id"], {"request_id": ids(run)["pay"], "approve": run["custom_id"] == "waits"})
    results = await client.http.get(f"/batches/{batch_id}/results", params={"follow": "true"}, timeout=30)
    lines = [json.loads(line) for line in results.text.splitlines() if line]
    outputs = {line["custom_id"]: json.loads(line["output"]) for line in lines if "cursor" in line}
    assert outputs == {"waits": ["pay: paid 3"], "ends": [], "waits too": ["pay: The tool call was denied."]}
    assert lines[-1]["counts"]["succeeded"] == 3
    assert (await counts())["waiting"] == 0


async def test_a_batch_that_waits_is_cancelled(client: Client) -> None:
    items = [{"custom_id": "waits", "query": json.dumps(PAY)}]
    batch_id = (await client.http.post("/batches", json={"agent_type": "asks", "items": items})).json()["id"]

    async def status() -> bool:
        return (await client.http.get(f"/batches/{batch_id}")).json()["counts"]["waiting"] == 1

    await soon(status)
    await client.http.post(f"/batches/{batch_id}/cancel")

    async def ended() -> dict[str, Any] | None:
        batch = (await client.http.get(f"/batches/{batch_id}")).json()
        return batch if batch["finished_at"] else None

    batch = await soon(ended)
    assert batch is not None
    assert (batch["status"], batch["counts"]["cancelled"], batch["counts"]["waiting"]) == ("cancelled", 1, 0)


@pytest.mark.parametrize("window", ["run_flushed", "run_waiting"])
async def test_a_worker_that_dies_around_the_wait_loses_nothing_and_does_nothing_twice(
    house: Service, ledger: Path, window: str
) -> None:
    """Before the transaction the attempt is lost, and another one asks, after the finished step."""
    house.environment |= {"LEASE_SECONDS": "2", "BEAT_SECONDS": "0.4"}
    api = house.api()
    doomed = house.worker(FAILPOINTS=f"{window}=kill")
    async with Client(api.url) as client:
        run_id = (await client.run(json.dumps([[["look", {}], *PAY[0]]]), agent_type="asks"))["id"]
        await asyncio.to_thread(doomed.process.wait, 30)
        if window == "run_flushed":
            house.worker()
        run = await waits(client, run_id)
        assert len(run["requests"]) == 1
        if window == "run_waiting":
            house.worker()
        await answered(client, run_id, {"request_id": ids(run)["pay"], "approve": True})
        assert (await client.ended(run_id))["status"] == "succeeded"
    assert paid(ledger) == ["0", "3"]


async def test_an_answer_whose_api_process_dies_counts_once(house: Service, ledger: Path) -> None:
    doomed, other = house.api(FAILPOINTS="answer_stored=kill"), house.api()
    house.worker()
    async with Client(doomed.url) as client, Client(other.url, user_id=client.user_id) as elsewhere:
        run_id = (await client.run(json.dumps(PAY), agent_type="asks"))["id"]
        approved = {"request_id": ids(await waits(client, run_id))["pay"], "approve": True}
        with pytest.raises(httpx.HTTPError):
            await answer(client, run_id, approved)
        assert (await answer(elsewhere, run_id, approved)).status_code == 200
        assert (await elsewhere.ended(run_id))["status"] == "succeeded"
    assert paid(ledger) == ["3"]


DEFERRED = DeferredCall(
    request_id="call-1",
    kind=RequestKind.APPROVAL,
    tool_name="pay",
    args="{}",
    prompt=None,
    schema=None,
    metadata=None,
)
URL = "https://receiver.example/"


async def come_to_wait(stage: Stage, run_id: UUID) -> None:
    left = Wait(text=None, last_entry=1, usage={}, transcript="[]", calls=[DEFERRED])
    assert await wait(stage.database, await stage.claimed(run_id, await stage.worker()), left, 60)


async def deliveries(stage: Stage) -> list[tuple[str, UUID]]:
    rows = await stage.execute("SELECT type, resource_id FROM webhook_deliveries ORDER BY created_at, id")
    return [(row.type, row.resource_id) for row in rows]


def let_pass(_number: int, _request: RunRequest, _answer: Mapping[str, Any]) -> None:
    """Take any answer."""


async def approve(stage: Stage, run_id: UUID) -> Answers:
    return await take_answer(stage.database, run_id, [Given("call-1", {"approve": True})], "somebody", let_pass)


async def test_a_webhook_tells_each_time_a_run_comes_to_wait(stage: Stage) -> None:
    run_id = await stage.query(webhook_url=URL)

    await come_to_wait(stage, run_id)
    answered = await approve(stage, run_id)
    assert answered.ring is not None
    assert (answered.ring.run_id, answered.ring.first) == (run_id, True)
    await come_to_wait(stage, run_id)

    assert await deliveries(stage) == [("run.waiting", run_id)] * 2


async def test_a_webhook_tells_once_all_that_is_left_of_a_batch_waits(stage: Stage) -> None:
    with Spool() as items:
        for number in range(3):
            items.add(f"row-{number}", "?", {})
        asked = Submission(
            tenant="acme",
            user_id=stage.user_id,
            agent_type="echo",
            deadline_seconds=60,
            run_seconds=60,
            webhook_url=URL,
        )
        settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere")
        batch = (await accept_batch(stage.database, asked, items, Admission(settings))).batch
    runs = [row.id for row in await stage.execute("SELECT id FROM runs WHERE batch_id IS NOT NULL ORDER BY id")]

    await come_to_wait(stage, runs[0])
    await come_to_wait(stage, runs[1])
    assert await deliveries(stage) == []
    await cancel(stage.database, runs[2])
    assert await deliveries(stage) == [("batch.waiting", batch.id)]
    await cancel(stage.database, runs[1])  # What is left waits as it did.
    assert await deliveries(stage) == [("batch.waiting", batch.id)]
    await approve(stage, runs[0])
    await come_to_wait(stage, runs[0])
    assert await deliveries(stage) == [("batch.waiting", batch.id)] * 2
    await cancel(stage.database, runs[0])
    assert await deliveries(stage) == [("batch.waiting", batch.id)] * 2 + [("batch.completed", batch.id)]
    (row,) = await stage.execute("SELECT waiting, cancelled FROM batches")
    assert (row.waiting, row.cancelled) == (0, 3)


async def test_a_wait_of_an_attempt_that_was_lost_or_is_to_be_cancelled_is_not_stored(stage: Stage) -> None:
    left = Wait(text=None, last_entry=1, usage={}, transcript="[]", calls=[DEFERRED])
    claimed = await stage.claimed(await stage.query(), await stage.worker())

    assert await wait(stage.database, replace(claimed, attempt=claimed.attempt + 1), left, 60) is None
    await cancel(stage.database, claimed.run_id)
    assert await wait(stage.database, claimed, left, 60) is None
    assert await stage.execute("SELECT FROM run_requests") == []
    assert (await stage.row(claimed.run_id)).status == "running"


async def test_the_command_line_answers_and_its_follower_goes_on(client: Client, tmp_path: Path) -> None:
    url = str(client.http.base_url).removesuffix("/api/v1/")
    async with Terminal(url, client.user_id, tmp_path) as terminal:
        asking = await terminal.begin("ask", json.dumps(EVERYTHING[:1]), "--agent", "asks")

        async def waiting() -> dict[str, Any] | None:
            items = (await client.http.get("/runs", params={"status": "waiting"})).json()["items"]
            return items[0] if items else None

        run = await soon(waiting)
        assert run is not None
        of = ids(run)
        listed = await terminal.run("answer", run["id"])
        assert listed.status == 2
        assert f"question {of['ask']}: ask" in listed.told
        first = await terminal.run(
            "answer", run["id"], "--approve", of["pay"], "--deny", of["refund"], "--message", "No."
        )
        assert first.answer == "The run is waiting. 1 requests are open.\n"
        wrong = await terminal.run("answer", run["id"], "--result", of["ask"], "7")
        assert wrong.status == 3
        await terminal.run("answer", run["id"], "--result", of["ask"], "Ann")
        ended = await asking.ended()
    assert f"agent-relay answer {run['id']}" in ended.told
    assert set(json.loads(ended.answer)) == {"pay: paid 3", "look: seen", "refund: No.", "ask: Ann"}


def test_a_person_is_asked_each_request_in_its_own_way() -> None:
    said = iter(["?", "y", "no", "Too late.", "Ann", "1.5", "n", ""])
    requests: list[dict[str, Any]] = [
        {"request_id": name, "kind": kind, "tool_name": "tool", "args": {}, "schema": schema}
        for name, kind, schema in (
            ("a", "approval", None),
            ("b", "approval", None),
            ("c", "question", {"type": "string"}),
            ("d", "external", None),
            ("e", "approval", None),
        )
    ]

    assert ask_for(requests, lambda: next(said)) == [
        {"request_id": "a", "approve": True},
        {"request_id": "b", "approve": False, "message": "Too late."},
        {"request_id": "c", "result": "Ann"},
        {"request_id": "d", "result": 1.5},
        {"request_id": "e", "approve": False},
    ]
