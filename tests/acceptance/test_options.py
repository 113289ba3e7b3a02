"""Options: what callers choose of an agent, for a run, a thread or a batch, and nothing beyond its schema."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import psycopg
import pytest

from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.problems import errors_of, problem_of
from tests.support.service import Service

SERVED = {
    "AGENTS": "chosen=tests.support.options_agents:chosen,named=tests.support.options_agents:named,"
    "echo=tests.support.agents:echo"
}
DEFAULTS = {"model": "own", "instructions": "Answer.\n\nBe kind.", "max_tokens": 5}


TICK = "UPDATE schedules SET next_times = ARRAY[now()] || next_times[2:], due_at = now()"


@pytest.fixture
async def chosen(service: Service) -> AsyncGenerator[Client]:
    """A caller of a service whose agents have options."""
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        yield client


async def said(client: Client, **asked: Any) -> dict[str, Any]:
    """Ask, and read what the agent was asked with."""
    run = await client.ended((await client.run("?", **asked))["id"])
    assert run["status"] == "succeeded", run["error"]
    return json.loads(run["output"])


async def results(client: Client, batch: dict[str, Any]) -> list[dict[str, Any]]:
    page = await client.http.get(f"/batches/{batch['id']}/results", params={"follow": "true"})
    return [line for line in map(json.loads, filter(None, page.text.splitlines())) if "custom_id" in line]


async def test_a_run_is_answered_as_its_options_say(service: Service) -> None:
    api = service.api(**SERVED)
    service.worker("--processes", "1", **SERVED)
    async with Client(api.url) as client:
        agents = {agent["agent_type"]: agent for agent in (await client.http.get("/agents")).json()}
        plain = await said(client, agent_type="chosen")
        empty = await said(client, agent_type="chosen", options={})
        other = await said(
            client,
            agent_type="chosen",
            options={"tone": "dry", "words": 9, "place": {"city": "Oslo"}, "other_model": True},
        )
        again = await client.run("?", agent_type="chosen", options={"dies_once": True, "words": 3})
        after_death = await client.ended(again["id"])
        form = await client.ended((await client.run("?", agent_type="chosen", options={"form": True}))["id"])
        by_name = await client.ended((await client.run("?", agent_type="named", options={"other_model": True}))["id"])
        refused = await client.ended((await client.run("?", agent_type="chosen", options={"refuses": True}))["id"])

    schema = agents["chosen"]["options_schema"]
    assert schema["additionalProperties"] is schema["$defs"]["Place"]["additionalProperties"] is False
    assert schema["properties"]["words"]["maximum"] == 50
    assert agents["echo"]["options_schema"] is None
    assert plain == empty == DEFAULTS
    assert other == {"model": "other", "instructions": "Answer.\n\nBe dry. For Oslo.", "max_tokens": 9}
    assert (after_death["attempt"], json.loads(after_death["output"])["max_tokens"]) == (2, 3)
    assert form["output"] == '{"words":7}'
    assert by_name["output"] == "success (no tool calls)"
    assert (refused["error"]["code"], refused["error"]["message"]) == ("agent_error", "The agent raised LookupError.")


async def test_a_thread_has_options_for_its_runs_and_a_run_chooses_otherwise(service: Service) -> None:
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        begun = {"agent_type": "chosen", "options": {"tone": "dry", "words": 9}}
        thread = (await client.http.post("/threads", json=begun)).json()
        of_thread = await said(client, thread_id=thread["id"])
        of_run = await said(client, thread_id=thread["id"], options={"words": 2})
        fork = (await client.http.post(f"/threads/{thread['id']}/fork", json={})).json()
        url = f"/threads/{thread['id']}"
        titled = (await client.http.patch(url, json={"title": "Other"})).json()
        changed = (await client.http.patch(url, json={"options": {"words": 4}})).json()
        of_changed = await said(client, thread_id=thread["id"])
        cleared = (await client.http.patch(url, json={"options": None})).json()
        of_cleared = await said(client, thread_id=thread["id"])
        of_fork = await said(client, thread_id=fork["id"])
        listed = {each["id"]: each["options"] for each in (await client.http.get("/threads")).json()["items"]}

    assert thread["options"] == titled["options"] == fork["options"] == {"tone": "dry", "words": 9}
    assert of_thread == of_fork == {"model": "own", "instructions": "Answer.\n\nBe dry.", "max_tokens": 9}
    assert of_run == {**of_thread, "max_tokens": 2}
    assert (changed["options"], of_changed) == ({"words": 4}, {**DEFAULTS, "max_tokens": 4})
    assert (cleared["options"], of_cleared) == (None, DEFAULTS)
    assert listed == {thread["id"]: None, fork["id"]: {"tone": "dry", "words": 9}}


async def test_a_batch_has_options_for_its_runs_also_retried(service: Service) -> None:
    api = service.api(**SERVED)
    service.worker(**SERVED)
    item = {"custom_id": "one", "query": "?"}
    async with Client(api.url) as client:
        body = {"agent_type": "chosen", "options": {"words": 8}, "items": [item]}
        (of_json,) = await results(client, (await client.http.post("/batches", json=body)).json())
        lines = await client.http.post(
            "/batches",
            content=json.dumps(item),
            headers={"Content-Type": "application/x-ndjson"},
            params={"agent_type": "chosen", "options": '{"words": 6}'},
        )
        (of_lines,) = await results(client, lines.json())
        failing = {**body, "options": {"refuses": True}}
        failed = (await client.http.post("/batches", json=failing)).json()
        (first,) = await results(client, failed)
        retried = (await client.http.post(f"/batches/{failed['id']}/retry")).json()
        (second,) = await results(client, retried)

    assert json.loads(of_json["output"]) == {**DEFAULTS, "max_tokens": 8}
    assert json.loads(of_lines["output"]) == {**DEFAULTS, "max_tokens": 6}
    assert [line["error"]["message"] for line in (first, second)] == ["The agent raised LookupError."] * 2


WRONG: list[tuple[Any, set[str]]] = [
    ({"words": "5"}, {"/words"}),
    ({"words": 51}, {"/words"}),
    ({"words": 0, "tone": "loud"}, {"/words", "/tone"}),
    ({"volume": 3}, {""}),
    ({"Words": 3}, {""}),
    ({"place": {"city": "Oslo", "street": "x"}}, {"/place"}),
    ({"place": "Oslo"}, {"/place"}),
    ({"words": None}, {"/words"}),
    ({"words": 5.5}, {"/words"}),
]


async def test_a_schedule_has_options_for_its_runs(chosen: Client, service: Service) -> None:
    async def ticked() -> dict[str, Any]:
        with psycopg.connect(service.database_url) as connection:
            connection.execute(TICK)
        before = (await chosen.http.get(url)).json()["last_run_id"]

        async def made() -> str | None:
            last = (await chosen.http.get(url)).json()["last_run_id"]
            return None if last == before else last

        run_id = await soon(made)
        assert run_id is not None
        return json.loads((await chosen.ended(run_id))["output"])

    daily = {"cron": "0 8 * * *", "query": "?", "agent_type": "chosen", "options": {"words": 9}}
    schedule = (await chosen.http.post("/schedules", json=daily)).json()
    url = f"/schedules/{schedule['id']}"
    assert schedule["options"] == {"words": 9}
    assert (await ticked())["max_tokens"] == 9
    assert (await chosen.http.patch(url, json={"query": "again"})).json()["options"] == {"words": 9}
    assert (await chosen.http.patch(url, json={"options": None})).json()["options"] is None
    assert await ticked() == DEFAULTS
    for refused in (
        await chosen.http.post("/schedules", json={**daily, "options": {"words": 99}}),
        await chosen.http.patch(url, json={"options": {"words": 99}}),
    ):
        assert errors_of(refused) == {("/options/words", "not_of_the_schema")}


async def test_what_does_not_fit_the_schema_is_refused(chosen: Client) -> None:
    batch = {"agent_type": "chosen", "items": [{"custom_id": "one", "query": "?"}]}
    thread_id = await chosen.thread("chosen")
    ndjson = {"Content-Type": "application/x-ndjson"}
    post = chosen.http.post
    for options, pointers in WRONG:
        in_thread = {"thread_id": thread_id, "query": "?", "options": options}
        line = {"agent_type": "chosen", "options": json.dumps(options)}
        in_body = [
            await post("/runs", json={"agent_type": "chosen", "query": "?", "options": options}),
            await post("/runs", json=in_thread),
            await post("/agent/stream", json=in_thread),
            await post("/threads", json={"agent_type": "chosen", "options": options}),
            await chosen.http.patch(f"/threads/{thread_id}", json={"options": options}),
            await post("/batches", json={**batch, "options": options}),
        ]
        in_url = [await post("/batches", content=json.dumps(batch["items"][0]), params=line, headers=ndjson)]
        for at, responses in (("/", in_body), ("?", in_url)):
            for response in responses:
                errors = problem_of(response, 422)["errors"]
                assert {error["code"] for error in errors} == {"not_of_the_schema"}, options
                assert {error["pointer"] for error in errors} == {f"{at}options{pointer}" for pointer in pointers}


async def test_an_agent_without_options_takes_none_and_options_are_an_object(chosen: Client) -> None:
    none = [
        await chosen.http.post("/runs", json={"agent_type": "echo", "query": "?", "options": options})
        for options in ({}, {"words": 1})
    ]
    no_object = [
        await chosen.http.post("/runs", json={"agent_type": "chosen", "query": "?", "options": options})
        for options in cast("list[Any]", [[], "words", 5])
    ]
    unknown = await chosen.http.post("/runs", json={"agent_type": "nobody", "query": "?", "options": {"words": 1}})
    no_thread = await chosen.http.patch(f"/threads/{'0' * 8}-0000-7000-8000-{'0' * 12}", json={"options": {"words": 1}})
    steers = {"thread_id": await chosen.thread("chosen"), "query": "?", "multitask_strategy": "steer"}
    steered = await chosen.http.post("/runs", json={**steers, "options": {"words": 1}})
    left_out = await chosen.http.post("/runs", json={"agent_type": "echo", "query": "?", "options": None})

    for response in none:
        (error,) = problem_of(response, 422)["errors"]
        assert (error["pointer"], error["code"]) == ("/options", "no_options")
    for response in no_object:
        assert [error["pointer"] for error in problem_of(response, 422)["errors"]] == ["/options"]
    assert problem_of(unknown, 422)["errors"][0]["code"] == "unknown_agent"
    assert problem_of(no_thread, 404)
    assert problem_of(steered, 422)["errors"][0]["code"] == "options_of_a_message"
    assert left_out.status_code == 202
