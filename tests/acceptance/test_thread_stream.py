"""The stream of a thread tells every run of it, whoever asked and however: one after the other, from any place on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest

from tests.support.client import Client, Event, names, read_events, texts_by_id
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import serving

MOST_CALLS = 6


@pytest.fixture(scope="module")
def database_url(new_database: Callable[[], str]) -> str:
    """A database of this module's own."""
    return new_database()


@pytest.fixture(scope="module")
def urls(
    database_url: str, new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Run two API processes and a worker."""
    environment = {"KEEPALIVE_SECONDS": "0.5", "MAX_OPEN_CALLS_PER_USER": str(MOST_CALLS)}
    with serving(database_url, new_redis(), tmp_path_factory.mktemp("threads"), environment) as service:
        service.worker()
        yield [service.api().url, service.api().url]


@pytest.fixture
async def asking(urls: list[str]) -> AsyncGenerator[Client]:
    """A user's first tab."""
    async with Client(urls[0]) as client:
        yield client


@pytest.fixture
async def watching(urls: list[str], asking: Client) -> AsyncGenerator[Client]:
    """The same user's second tab, at another process."""
    async with Client(urls[1], user_id=asking.user_id) as client:
        yield client


@asynccontextmanager
async def following(
    client: Client, thread_id: str, *, sse: bool = False, after: str | None = None, **parameters: Any
) -> AsyncGenerator[AsyncGenerator[Event]]:
    """Follow a thread."""
    headers = {"Accept": "text/event-stream"} if sse else {}
    headers |= {"Last-Event-ID": after} if after else {}
    url = f"/threads/{thread_id}/stream"
    async with client.http.stream("GET", url, params=parameters, headers=headers) as response:
        assert response.status_code == httpx.codes.OK, (await response.aread()).decode()
        yield read_events(response)


async def runs_in(stream: AsyncGenerator[Event], count: int) -> list[list[Event]]:
    """Read so many runs to their end, a list each."""
    runs: list[list[Event]] = [[]]
    async for event in stream:
        runs[-1].append(event)
        if event["event"] == "done":
            if len(runs) == count:
                return runs
            runs.append([])
    raise AssertionError(f"the stream ended in run {len(runs)} of {count}: {runs[-1]}")


async def told(client: Client, thread_id: str, count: int, **options: Any) -> list[Event]:
    """Follow a thread until so many runs have ended."""
    async with following(client, thread_id, **options) as stream:
        return [event for run in await runs_in(stream, count) for event in run]


def of_run(events: list[Event]) -> list[Event]:
    """Take away what the stream of a thread adds, and texts that another reader may not have been told."""
    shown = [{key: value for key, value in event.items() if key != "after_run_id"} for event in events]
    for event in shown:
        event["id"] = event["id"].partition("-")[2]
        if event["event"] != "message_created":
            del event["run_id"]
    return [event for event in shown if event["event"] != "text_delta"]


def places(events: list[Event]) -> list[tuple[int, ...]]:
    """Read the ids as what they are inside."""
    return [tuple(map(int, event["id"].split("-"))) for event in events]


@pytest.mark.parametrize("sse", [False, True], ids=["ndjson", "sse"])
async def test_a_second_tab_is_told_what_is_asked_in_the_first(asking: Client, watching: Client, sse: bool) -> None:
    thread_id = await asking.thread("bank_support")
    async with following(watching, thread_id, sse=sse, deltas="true") as stream:
        asked = [(await asking.run("What is my balance?", thread_id=thread_id))["id"]]
        first = await runs_in(stream, 1)
        asked += [(await asking.run(query, thread_id=thread_id))["id"] for query in ("And now?", "And then?")]
        runs = first + await runs_in(stream, 2)

    assert [{event["run_id"] for event in run} for run in runs] == [{run_id} for run_id in asked]
    assert [run[0]["after_run_id"] for run in runs] == [None, *asked[:2]]
    for run_id, run in zip(asked, runs, strict=True):
        whole = await asking.events(run_id)
        assert of_run(run) == [event for event in whole if event["event"] != "text_delta"]
        assert list(texts_by_id(run).values())[-1] == whole[-3]["token"]
    ids = places([event for run in runs for event in run])
    assert ids == sorted(set(ids))


async def test_runs_that_start_later_and_runs_of_schedules_are_told(
    asking: Client, watching: Client, database_url: str
) -> None:
    thread_id = await asking.thread("echo")
    schedule = {"cron": "0 8 * * *", "thread_id": thread_id, "query": "tick"}
    async with following(watching, thread_id) as stream:
        later = await asking.run("later", thread_id=thread_id, start_after_s=0.1)
        [run] = await runs_in(stream, 1)
        assert run[0]["run_id"] == later["id"]
        made = await asking.http.post("/schedules", json=schedule)
        assert made.status_code == 201, made.text
        with psycopg.connect(database_url) as connection:
            connection.execute("UPDATE schedules SET due_at = now() WHERE id = %s", [made.json()["id"]])
        [tick] = await runs_in(stream, 1)

    assert (await asking.read(tick[0]["run_id"]))["schedule_id"] == made.json()["id"]


async def test_what_is_sent_into_a_run_and_comes_too_late_is_told_in_its_turn(asking: Client, watching: Client) -> None:
    thread_id = await asking.thread("slow")
    first = await asking.run("1 second", thread_id=thread_id)
    waiting = await asking.run("0 seconds", thread_id=thread_id)
    sent = await asking.http.post(f"/runs/{first['id']}/messages", json={"query": "0 seconds, sent into it"})
    assert sent.status_code == 202, sent.text

    async with following(watching, thread_id) as stream:
        runs = await runs_in(stream, 3)

    assert [run[0]["run_id"] for run in runs[:2]] == [first["id"], waiting["id"]]
    assert runs[2][0]["message"]["id"] == sent.json()["id"]


async def test_it_goes_on_exactly_where_a_reader_got_to(asking: Client, watching: Client) -> None:
    thread_id = await asking.thread("second_thoughts")
    for query in ("one", "two", "three"):
        await asking.ended((await asking.run(query, thread_id=thread_id))["id"])
    whole = await told(asking, thread_id, 3)

    ends = [place for place, event in enumerate(whole) if event["event"] == "done"]
    for place, event in enumerate(whole[:-1]):
        rest = whole[place + 1 :]
        left = sum(end > place for end in ends)
        assert await told(watching, thread_id, left, after=event["id"]) == rest, event["id"]
    async with following(watching, thread_id, after=whole[-1]["id"]) as stream:
        run = await asking.run("four", thread_id=thread_id)
        [last] = await runs_in(stream, 1)
    assert last[0]["run_id"] == run["id"]
    assert (names(last)[0], names(last)[-1]) == ("message_created", "done")


async def test_a_page_begins_with_the_run_of_the_last_message_that_it_has(asking: Client, watching: Client) -> None:
    thread_id = await asking.thread("echo")
    old, last = [await asking.ended((await asking.run("hello", thread_id=thread_id))["id"]) for _ in range(2)]
    later = await asking.run("hello", thread_id=thread_id, start_after_s=600)
    url = f"/threads/{thread_id}/stream"

    events = await told(watching, thread_id, 1, from_run=last["id"])
    elsewhere = await asking.run("hello", agent_type="echo")

    assert {event["run_id"] for event in events} == {last["id"]}
    assert events[0]["after_run_id"] == old["id"]
    problem_of(await watching.http.get(url, params={"from_run": later["id"]}), 409, "not_started")
    problem_of(await watching.http.get(url, params={"from_run": elsewhere["id"]}), 404, "not_found")


async def test_what_was_taken_out_of_the_thread_is_told_to_nobody_who_comes_later(
    asking: Client, watching: Client
) -> None:
    thread_id = await asking.thread("echo")
    kept, out = [await asking.ended((await asking.run("hello", thread_id=thread_id))["id"]) for _ in range(2)]
    async with following(watching, thread_id) as stream:
        before = await runs_in(stream, 2)
        query = (await asking.messages(thread_id))[2]["id"]
        again = await asking.run("again", thread_id=thread_id, replace_from=query)
        [after] = await runs_in(stream, 1)
    replayed = await told(watching, thread_id, 2)

    assert [run[0]["run_id"] for run in before] == [kept["id"], out["id"]]
    assert (after[0]["run_id"], after[0]["after_run_id"]) == (again["id"], kept["id"])
    assert {event["run_id"] for event in replayed} == {kept["id"], again["id"]}


@pytest.mark.parametrize("query", [None, "60 seconds"], ids=["idle", "in a run"])
async def test_it_ends_with_the_thread(asking: Client, watching: Client, query: str | None) -> None:
    thread_id = await asking.thread("slow")
    async with following(watching, thread_id, sse=True) as stream:
        if query is not None:
            await asking.run(query, thread_id=thread_id)
            assert (await anext(stream))["event"] == "message_created"
        assert (await asking.http.delete(f"/threads/{thread_id}")).status_code == 204
        rest = [event async for event in stream]

    assert names(rest)[-1] == "thread_deleted"
    assert query is None or names(rest)[-3:-1] == ["cancelled", "done"]
    assert places(rest) == sorted(set(places(rest)))
    problem_of(await watching.http.get(f"/threads/{thread_id}/stream"), 404, "not_found")


async def test_it_says_that_it_is_alive_while_nothing_happens(asking: Client) -> None:
    thread_id = await asking.thread("echo")
    async with asking.http.stream("GET", f"/threads/{thread_id}/stream") as response:
        lines = response.aiter_lines()
        assert [await anext(lines) for _ in range(3)] == ["", "", ""]


async def test_it_takes_one_of_the_calls_that_a_user_may_have_open_and_gives_it_back(watching: Client) -> None:
    thread_id = await watching.thread("echo")
    url = f"/threads/{thread_id}/stream"
    for _ in range(2):
        async with AsyncExitStack() as opened:

            async def takes_another() -> bool:
                response = await opened.enter_async_context(watching.http.stream("GET", url))
                return response.status_code == 200

            for _ in range(MOST_CALLS):
                await soon(takes_another)  # Those that were closed before are given back.
            problem_of(await watching.http.get(url), 429, "user_calls_full")


async def test_a_place_that_it_never_had_is_refused(asking: Client) -> None:
    thread_id = await asking.thread("echo")
    run = await asking.ended((await asking.run("hello", thread_id=thread_id))["id"])
    url = f"/threads/{thread_id}/stream"

    for odd in (
        "1",
        "1-1",
        "0-0-0-0",
        "01-0-1",
        "1-1-",
        "-1-0-1",
        "1-0-99999999999",
        "9" * 19 + "-0-1",
        run["id"],
        "\0",
    ):
        problem_of(await asking.http.get(url, params={"after": odd}), 400, "malformed_cursor")
    for beyond in ("2-0-1", "1-0-0", "1-9-9", "0-0-1", "9" * 18 + "-0-1"):
        problem_of(await asking.http.get(url, params={"after": beyond}), 400, "impossible_cursor")
    problem_of(await asking.http.get(url, headers={"Accept": "text/html"}), 406, "not_acceptable")
