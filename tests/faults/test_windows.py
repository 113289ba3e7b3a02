"""In each window a process dies, or freezes until others have gone on without it; the run ends as if nothing had."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import psycopg
import pytest

from agent_relay.shared.failpoints import Action, Failpoint
from tests.faults.house import TRAPS
from tests.support.client import Client, ids, names
from tests.support.eventually import eventually
from tests.support.service import Running, Service
from tests.support.step_agents import Planned

PATIENCE = {"LEASE_SECONDS": "3", "BEAT_SECONDS": "0.5"}
SEEN_TO_BELOW = {
    Failpoint.RUN_GIVEN_BACK,
    Failpoint.RUNS_TAKEN_BACK,
    Failpoint.CANCEL_STORED,
    Failpoint.STEP_FINISHED,
    Failpoint.STEP_STORED,
}
"""Windows that a run comes by only if something else has happened."""
SEEN_TO_ELSEWHERE = {
    Failpoint.RUN_WAITING: "test_waiting.py",
    Failpoint.ANSWER_STORED: "test_waiting.py",
    Failpoint.MESSAGE_STORED: "test_messages_into_runs.py",
    Failpoint.MESSAGE_GIVEN: "test_messages_into_runs.py",
    Failpoint.RUNS_STARTED: "test_later.py",
    Failpoint.TICK_MADE: "test_schedules.py",
    Failpoint.TICK_STORED: "test_schedules.py",
}
"""The file of `tests/acceptance` that has processes die there."""


def fallen(trapped: Running) -> bool:
    """Tell whether the process has come by its failpoint."""
    return "failpoint.reached" in trapped.log.read_text()


@pytest.mark.long
@pytest.mark.parametrize("action", [Action.KILL, Action.FREEZE])
@pytest.mark.parametrize("window", [window for window in TRAPS["worker"] if window not in SEEN_TO_BELOW])
async def test_a_worker_that_stops_in_a_window_leaves_a_whole_run(
    service: Service, window: Failpoint, action: Action
) -> None:
    api = service.api(**PATIENCE)
    trapped = service.worker(**PATIENCE, FAILPOINTS=f"{window}={action}")
    async with Client(api.url) as client:
        thread_id = await client.thread("slow")
        first, second = [await client.run("0.5 seconds", thread_id=thread_id) for _ in range(2)]
        following = [asyncio.create_task(client.events(run["id"])) for run in (first, second)]
        await asyncio.to_thread(eventually, lambda: fallen(trapped))
        await asyncio.to_thread(service.worker, **PATIENCE)
        told = await asyncio.gather(*following)
        trapped.thaw()
        ended = [await client.ended(run["id"]) for run in (first, second)]
        messages = await client.messages(thread_id)

    assert [run["status"] for run in ended] == ["succeeded"] * 2
    assert [names(events)[-2:] for events in told] == [["message_complete", "done"]] * 2
    assert all(ids(events) == sorted(set(ids(events))) for events in told)
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]


@pytest.mark.long
@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(
    ("window", "passes"),
    [(window, passes) for window in (Failpoint.STEP_FINISHED, Failpoint.STEP_STORED) for passes in range(4)],
)
async def test_a_worker_that_stops_between_two_steps_has_each_done_once(
    service: Service, tmp_path: Path, window: Failpoint, passes: int, action: Action
) -> None:
    """The ledger of the tools says so: finished is once; not stored is once an attempt."""
    served = PATIENCE | {"AGENTS": "steps=tests.support.step_agents:steps"}
    planned = Planned(tmp_path, [["work"], ["work", "work"], ["work"]])
    api = service.api(**served)
    trapped = service.worker(**served, FAILPOINTS=f"{window}={action}@{passes}")
    async with Client(api.url) as client:
        run = await client.run(planned.query, agent_type="steps")
        following = asyncio.create_task(client.events(run["id"]))
        await asyncio.to_thread(eventually, lambda: fallen(trapped))
        with psycopg.connect(service.database_url) as connection:
            stored = connection.execute("SELECT coalesce(string_agg(messages, ''), '') FROM run_steps").fetchone()
        await asyncio.to_thread(service.worker, **served)
        told = await following
        trapped.thaw()
        ended = await client.ended(run["id"])

    assert stored is not None
    finished = [call for call in planned.calls if f'"content":"done","tool_call_id":"{call}"' in stored[0]]
    assert (ended["status"], ended["output"], ended["attempt"]) == ("succeeded", "4 results. ", 2)
    assert names(told)[-2:] == ["message_complete", "done"]
    assert [len(planned.ledger.begun(call)) for call in finished] == [1] * len(finished)
    assert all(1 <= len(planned.ledger.begun(call)) <= 2 for call in planned.calls)
    assert sorted(set(planned.ledger.ended)) == planned.calls


@pytest.mark.long
@pytest.mark.parametrize("window", [window for window in TRAPS["api"] if window not in SEEN_TO_BELOW])
async def test_a_query_whose_api_dies_before_it_can_say_so_is_answered(service: Service, window: Failpoint) -> None:
    trapped, api = service.api(**PATIENCE, FAILPOINTS=f"{window}=kill"), service.api(**PATIENCE)
    service.worker(**PATIENCE)
    async with Client(trapped.url) as there, Client(api.url, user_id=there.user_id) as here:
        with pytest.raises(httpx.HTTPError):
            await there.run("hello", agent_type="echo")
        (run,) = (await here.http.get("/runs")).json()["items"]

        assert (await here.ended(run["id"]))["status"] == "succeeded"


@pytest.mark.long
async def test_a_cancel_that_nobody_was_told_of_is_one(service: Service) -> None:
    trapped, api = service.api(**PATIENCE, FAILPOINTS=f"{Failpoint.CANCEL_STORED}=kill"), service.api(**PATIENCE)
    service.worker(**PATIENCE)
    async with Client(trapped.url) as there, Client(api.url, user_id=there.user_id) as here:
        run = await here.run("30 seconds", agent_type="slow")
        following = asyncio.create_task(here.events(run["id"]))
        with pytest.raises(httpx.HTTPError):
            await there.http.post(f"/runs/{run['id']}/cancel")

        assert names(await following)[-2:] == ["cancelled", "done"]


@pytest.mark.long
async def test_a_run_that_was_given_back_without_a_ring_begins_again(service: Service) -> None:
    api = service.api(**PATIENCE)
    trapped = service.worker(**PATIENCE, DRAIN_SECONDS="0", FAILPOINTS=f"{Failpoint.RUN_GIVEN_BACK}=kill")
    async with Client(api.url) as client, client.asking("1 second", agent_type="slow") as stream:
        events = [await anext(stream) for _ in range(3)]
        await asyncio.to_thread(trapped.terminate)
        await asyncio.to_thread(service.worker, **PATIENCE)
        events += [event async for event in stream]
        run = await client.read(events[0]["run_id"])

    assert fallen(trapped)
    assert (run["status"], run["attempt"]) == ("succeeded", 2)


@pytest.mark.long
async def test_runs_that_were_taken_back_without_a_ring_begin_again(service: Service) -> None:
    traps = {"FAILPOINTS": f"{Failpoint.RUNS_TAKEN_BACK}=kill"}
    watching = service.worker(**PATIENCE, **traps)
    held = service.worker(**PATIENCE)
    api = service.api(LEASE_SECONDS="600", BEAT_SECONDS="1")  # Of the two it is the worker who takes back.
    async with Client(api.url) as client:
        runs = [await client.run("2 seconds", agent_type="slow") for _ in range(8)]
        await asyncio.sleep(1)
        held.kill()
        await asyncio.to_thread(eventually, lambda: fallen(watching))
        await asyncio.to_thread(service.worker, **PATIENCE)
        ended = [await client.ended(run["id"]) for run in runs]

    assert [run["status"] for run in ended] == ["succeeded"] * 8


def test_the_soak_and_these_tests_know_every_window() -> None:
    trapped = {window for windows in TRAPS.values() for window in windows}
    assert trapped | SEEN_TO_ELSEWHERE.keys() == set(Failpoint)
    acceptance = Path(__file__).parents[1] / "acceptance"
    assert all(window in (acceptance / file).read_text() for window, file in SEEN_TO_ELSEWHERE.items())
    told = Path(__file__).read_text()
    assert all(told.count(f"Failpoint.{window.name}") == 2 for window in SEEN_TO_BELOW)
