"""A schedule asks again and again: each tick once, whoever looks and whoever dies, and its failures are seen."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from agent_relay.shared.clock import now
from tests.support.client import TERMINAL, Client
from tests.support.eventually import soon
from tests.support.problems import errors_of, problem_of
from tests.support.service import OPERATOR_KEY, Running, Service, serving

DAILY: dict[str, Any] = {"cron": "0 8 * * *", "query": "hello", "agent_type": "echo"}


@dataclass(frozen=True)
class House:
    """Two API processes that both look for ticks, with a worker."""

    service: Service
    apis: tuple[Running, Running]

    def due(self, *schedule_ids: str, ago: timedelta = timedelta(seconds=1)) -> datetime:
        """Have the next tick of these be so long ago."""
        tick = now() - ago
        with psycopg.connect(self.service.database_url) as connection:
            changed = connection.execute(
                "UPDATE schedules SET next_times = ARRAY[%(tick)s::timestamptz] || next_times[2:], due_at = %(tick)s"
                " WHERE id = ANY(%(ids)s::uuid[]) AND due_at IS NOT NULL",
                {"tick": tick, "ids": list(schedule_ids)},
            )
            assert changed.rowcount == len(schedule_ids)
        return tick


@pytest.fixture(scope="module")
def house(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A house that all tests leave as it is."""
    environment = {"MAX_SCHEDULES_PER_USER": "20"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), environment) as service:
        apis = service.api(), service.api()
        service.worker()
        yield House(service, apis)


@pytest.fixture
async def user(house: House) -> AsyncGenerator[Client]:
    """A user whom nobody else is."""
    async with Client(house.apis[0].url) as client:
        yield client


async def made(user: Client, **asked: Any) -> dict[str, Any]:
    """Make a schedule."""
    response = await user.http.post("/schedules", json={**DAILY, **asked})
    assert response.status_code == 201, response.text
    assert response.headers["Location"] == f"/api/v1/schedules/{response.json()['id']}"
    return response.json()


async def shown(user: Client, schedule_id: str) -> dict[str, Any]:
    """Read a schedule."""
    response = await user.http.get(f"/schedules/{schedule_id}")
    assert response.status_code == 200, response.text
    return response.json()


async def runs_of(user: Client, schedule_id: str) -> list[dict[str, Any]]:
    """List the runs that a schedule has made."""
    return (await user.http.get("/runs", params={"schedule_id": schedule_id, "limit": 100})).json()["items"]


async def ticked(user: Client, former: dict[str, Any]) -> dict[str, Any]:
    """Wait until a schedule has done something about its tick."""

    async def look() -> dict[str, Any]:
        seen = await shown(user, former["id"])
        names = ("last_run_id", "last_error", "consecutive_failures", "paused")
        return seen if any(seen[name] != former[name] for name in names) else {}

    return await soon(look)


async def ended(user: Client, schedule_id: str) -> dict[str, Any]:
    """Wait until the last run of a schedule has ended."""
    await user.ended((await shown(user, schedule_id))["last_run_id"])
    return await shown(user, schedule_id)


async def test_a_schedule_is_shown_with_its_next_times(user: Client) -> None:
    schedule = await made(user, timezone="Europe/Berlin", metadata={"n": 1e308}, deadline_s=60, wait_deadline_s=90)
    others = [await made(user, cron="@hourly") for _ in range(2)]

    assert await shown(user, schedule["id"]) == schedule
    assert schedule["next_at"] == schedule["next_times"][0]
    assert len(schedule["next_times"]) == 5
    assert schedule["metadata"] == {"n": 1e308}
    assert (schedule["deadline_s"], schedule["wait_deadline_s"]) == (60, 90)
    quiet = ("paused", "last_run_id", "last_status", "last_error", "thread_id")
    assert [schedule[name] for name in quiet] == [False, None, None, None, None]
    assert schedule["consecutive_failures"] == 0
    page = (await user.http.get("/schedules", params={"limit": 2})).json()
    rest = (await user.http.get("/schedules", params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert page["items"] + rest["items"] == [*reversed(others), schedule]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({"cron": "0 0 30 2 *"}, "/cron", "wrong_cron"),
        ({"cron": "0 0 31 4 *"}, "/cron", "wrong_cron"),
        ({"cron": "* * * * * *"}, "/cron", "wrong_cron"),
        ({"cron": ""}, "/cron", "string_too_short"),
        ({"cron": None}, "/cron", "string_type"),
        ({"timezone": "Europe/Atlantis"}, "/timezone", "unknown_timezone"),
        ({"timezone": "../../etc/passwd"}, "/timezone", "unknown_timezone"),
        ({"timezone": "CEST"}, "/timezone", "unknown_timezone"),
        ({"agent_type": "nobody"}, "/agent_type", "unknown_agent"),
        ({"thread_id": str(uuid4())}, "", "one_target"),
        ({"agent_type": None}, "", "one_target"),
        ({"multitask_strategy": "reject"}, "", "strategy_without_thread"),
        ({"multitask_strategy": "steer"}, "/multitask_strategy", "literal_error"),
        ({"query": ""}, "/query", "string_too_short"),
        ({"deadline_s": 1e9}, "/deadline_s", "less_than_equal"),
        ({"start_after_s": 1}, "/start_after_s", "extra_forbidden"),
        ({"webhook_url": "http://10.0.0.1/"}, "/webhook_url", None),
    ],
)
async def test_what_is_wrong_is_said(user: Client, wrong: dict[str, Any], pointer: str, code: str | None) -> None:
    [(where, what)] = errors_of(await user.http.post("/schedules", json=DAILY | wrong))

    assert where == pointer
    assert code in {None, what}
    assert (await user.http.get("/schedules")).json()["items"] == []


async def test_what_is_of_somebody_else_is_not_there(user: Client, house: House) -> None:
    schedule = await made(user)
    path = f"/schedules/{schedule['id']}"
    thread_id = await user.thread("echo")

    for tenant, user_id in (("acme", None), ("other", user.user_id)):
        async with Client(house.apis[1].url, tenant, user_id) as stranger:
            answers = [
                await stranger.http.get(path),
                await stranger.http.patch(path, json={"paused": True}),
                await stranger.http.delete(path),
                await stranger.http.post("/schedules", json={"cron": "@daily", "query": "?", "thread_id": thread_id}),
            ]
            listed = (await stranger.http.get("/schedules")).json()["items"]
        assert [answer.status_code for answer in answers] == [404] * 4
        assert listed == []
    assert await shown(user, schedule["id"]) == schedule


async def test_a_user_has_so_many_and_no_more(user: Client) -> None:
    for _ in range(20):
        await made(user)

    refused = problem_of(await user.http.post("/schedules", json=DAILY), 429, "schedules_full")

    assert "20" in refused["detail"]


async def test_a_repeated_call_makes_one_schedule(user: Client) -> None:
    headers = {"Idempotency-Key": user.user_id}

    first, second = [await user.http.post("/schedules", json=DAILY, headers=headers) for _ in range(2)]

    assert first.json() == second.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len((await user.http.get("/schedules")).json()["items"]) == 1


async def test_a_tick_makes_one_run_however_many_look(user: Client, house: House) -> None:
    schedules = [await made(user, metadata={"number": number}) for number in range(20)]
    tick = house.due(*(schedule["id"] for schedule in schedules))

    for number, schedule in enumerate(schedules):
        after = await ticked(user, schedule)
        [run] = await runs_of(user, schedule["id"])
        assert run["id"] == after["last_run_id"]
        assert run["schedule_id"] == schedule["id"]
        assert run["metadata"] == {"number": number}
        assert datetime.fromisoformat(run["start_at"]) == tick
        assert after["next_times"][0] > now().isoformat()
    last = await ended(user, schedules[-1]["id"])
    assert (last["last_status"], last["consecutive_failures"]) == ("succeeded", 0)
    assert [len(await runs_of(user, schedule["id"])) for schedule in schedules] == [1] * 20


async def test_what_was_missed_is_caught_up_once(user: Client, house: House) -> None:
    schedule = await made(user, cron="0 * * * *")
    house.due(schedule["id"], ago=timedelta(days=3))

    after = await ticked(user, schedule)

    assert len(await runs_of(user, schedule["id"])) == 1
    assert datetime.fromisoformat(after["next_at"]) > now()
    assert len(after["next_times"]) == 5


async def test_one_that_is_paused_makes_no_run_and_catches_up_none(user: Client, house: House) -> None:
    schedule, witness = await made(user), await made(user)
    path = f"/schedules/{schedule['id']}"
    house.due(schedule["id"], ago=timedelta(hours=-1))
    paused = (await user.http.patch(path, json={"paused": True})).json()
    house.due(witness["id"])
    await ticked(user, witness)
    resumed = (await user.http.patch(path, json={"paused": False})).json()

    assert (paused["paused"], paused["next_at"], paused["next_times"]) == (True, None, [])
    assert resumed["next_times"] == schedule["next_times"]
    assert await runs_of(user, schedule["id"]) == []


async def test_a_change_counts_from_now_and_leaves_the_rest(user: Client) -> None:
    schedule = await made(user, deadline_s=60, metadata={"a": 1})
    path = f"/schedules/{schedule['id']}"

    asked = (await user.http.patch(path, json={"query": "another", "deadline_s": None})).json()
    timed = (await user.http.patch(path, json={"cron": "30 9 * * *", "timezone": "Asia/Kolkata"})).json()

    kept = {"updated_at": schedule["updated_at"], "query": "hello", "deadline_s": 60.0}
    assert (asked["query"], asked["deadline_s"]) == ("another", None)
    assert asked | kept == schedule
    assert timed["next_at"][11:19] == "04:00:00"
    assert timed["metadata"] == {"a": 1}
    for wrong in ({}, {"cron": "0 0 30 2 *"}, {"cron": None}, {"timezone": "?"}, {"agent_type": "form"}):
        assert (await user.http.patch(path, json=wrong)).status_code == 422
    assert await shown(user, schedule["id"]) == timed


async def test_one_that_is_deleted_leaves_its_runs(user: Client, house: House) -> None:
    schedule = await made(user)
    house.due(schedule["id"])
    await ticked(user, schedule)

    assert (await user.http.delete(f"/schedules/{schedule['id']}")).status_code == 204

    assert (await user.http.get(f"/schedules/{schedule['id']}")).status_code == 404
    [run] = await runs_of(user, schedule["id"])
    assert (await user.ended(run["id"]))["status"] == "succeeded"


async def test_its_failures_are_counted_until_one_succeeds(user: Client, house: House) -> None:
    schedule = await made(user, agent_type="breaks")
    for number in (1, 2):
        house.due(schedule["id"], ago=timedelta(seconds=3 - number))
        schedule = await ticked(user, schedule)
        schedule = await ended(user, schedule["id"])
        assert (schedule["last_status"], schedule["consecutive_failures"]) == ("failed", number)
    with psycopg.connect(house.service.database_url) as connection:
        connection.execute("UPDATE runs SET status = 'succeeded' WHERE id = %s", [schedule["last_run_id"]])

    assert (await shown(user, schedule["id"]))["consecutive_failures"] == 0


async def test_it_asks_in_its_thread_and_a_tick_that_would_not_wait_makes_no_run(user: Client, house: House) -> None:
    thread_id = await user.thread("patient")
    target: dict[str, Any] = {"agent_type": None, "thread_id": thread_id}
    schedule = await made(user, query="/nowhere", multitask_strategy="reject", **target)
    house.due(schedule["id"])
    first = await ticked(user, schedule)
    house.due(schedule["id"])

    busy = await ticked(user, first)

    assert schedule["agent_type"] == "patient"
    assert busy["last_run_id"] == first["last_run_id"]
    assert busy["last_error"]["code"] == "thread_busy"
    assert (busy["consecutive_failures"], busy["paused"]) == (1, False)
    assert busy["next_at"] is not None
    await user.http.post(f"/runs/{first['last_run_id']}/cancel")
    house.due(schedule["id"])
    again = await ticked(user, busy)
    assert (again["last_error"], again["consecutive_failures"]) == (None, 0)
    assert (await user.http.delete(f"/threads/{thread_id}")).status_code == 204
    assert (await user.http.get(f"/schedules/{schedule['id']}")).status_code == 404


async def test_a_key_that_is_gone_pauses_its_schedules_and_another_resumes_them(user: Client, house: House) -> None:
    operator = httpx.AsyncClient(
        base_url=f"{house.apis[0].url}/api/v1/operator", headers={"X-API-Key": OPERATOR_KEY}, verify=False
    )
    async with operator:
        first = (await operator.post("/keys", json={"tenant": "acme", "agents": ["echo"]})).json()
        rotated = (await operator.post("/keys", json={"tenant": "acme"})).json()

        async def make(key: str, **asked: Any) -> httpx.Response:
            return await user.http.post("/schedules", json=DAILY | asked, headers={"X-API-Key": key})

        async def usable() -> bool:
            return {(await make(each["key"], agent_type="?")).status_code for each in (first, rotated)} == {422}

        await soon(usable)
        assert (await make(first["key"], agent_type="form")).status_code == 422
        paused, goes_on = (await make(first["key"])).json(), (await make(rotated["key"])).json()
        successor = (await operator.post(f"/keys/{rotated['id']}/rotate", json={"overlap_hours": 0})).json()
        await operator.delete(f"/keys/{first['id']}")

    async def gone() -> bool:
        return {(await make(each["key"])).status_code for each in (first, rotated)} == {401}

    await soon(gone)
    with psycopg.connect(house.service.database_url) as connection:
        connection.execute("UPDATE schedules SET updated_at = updated_at - interval '1 minute'")
    house.due(paused["id"], goes_on["id"])
    after, other = await ticked(user, paused), await ticked(user, goes_on)
    path = f"/schedules/{paused['id']}"
    resumed = (await user.http.patch(path, json={"paused": False})).json()

    assert successor["key"]
    assert other["last_run_id"] is not None
    assert (after["paused"], after["next_at"], after["last_run_id"]) == (True, None, None)
    assert after["last_error"]["code"] == "key_gone"
    assert (resumed["paused"], resumed["last_error"], resumed["consecutive_failures"]) == (False, None, 0)
    house.due(paused["id"])
    assert (await ticked(user, resumed))["last_run_id"] is not None


@pytest.mark.parametrize("window", ["tick_made", "tick_stored"])
async def test_a_tick_makes_one_run_whoever_dies_over_it(service: Service, window: str) -> None:
    doomed = service.api(FAILPOINTS=f"{window}=kill")
    service.worker()
    async with Client(doomed.url) as user:
        schedule = await made(user)
        House(service, (doomed, doomed)).due(schedule["id"])
        doomed.process.wait()
    async with Client(service.api().url, user_id=user.user_id) as survivor:
        after = await ticked(survivor, schedule)
        assert (await survivor.ended(after["last_run_id"]))["status"] in TERMINAL
        [run] = await runs_of(survivor, schedule["id"])
    assert run["status"] == "succeeded"
    assert run["attempt"] == 1


async def test_without_a_worker_a_tick_makes_no_run_and_says_why(service: Service) -> None:
    api = service.api(AGENT_UNSERVED_SECONDS="1")
    worker = service.worker()
    async with Client(api.url) as user:
        schedule = await made(user)
        worker.terminate()
        with psycopg.connect(service.database_url) as connection:
            connection.execute("UPDATE agents SET registered_at = registered_at - interval '1 minute'")
            connection.execute("UPDATE workers SET ended_at = now() - interval '1 minute'")
        House(service, (api, api)).due(schedule["id"])
        after = await ticked(user, schedule)

    assert after["last_error"]["code"] == "agent_not_served"
    assert (after["consecutive_failures"], after["paused"], after["last_run_id"]) == (1, False, None)
    assert after["next_at"] is not None


async def test_a_tick_without_room_in_the_queue_is_tried_again(service: Service) -> None:
    api = service.api(MAX_QUEUED_PER_USER="1")
    service.worker().terminate()
    async with Client(api.url) as user:
        schedule, waiting = await made(user), await user.run("hello", agent_type="echo")
        tick = House(service, (api, api)).due(schedule["id"])
        full = await ticked(user, schedule)
        await user.http.post(f"/runs/{waiting['id']}/cancel")
        after = await ticked(user, full)
        [run] = await runs_of(user, schedule["id"])

    assert full["last_error"]["code"] == "user_queue_full"
    assert full["consecutive_failures"] == 0
    assert datetime.fromisoformat(full["next_at"]) == tick
    assert after["last_run_id"] == run["id"]
    assert datetime.fromisoformat(run["start_at"]) == tick
