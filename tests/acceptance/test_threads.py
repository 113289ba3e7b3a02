"""Threads as a product lists them: titles, filters, what came last."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.client import Client
from tests.support.problems import errors_of, problem_of


async def listed(client: Client, **params: Any) -> list[str]:
    """List the user's threads; returns their ids."""
    response = await client.http.get("/threads", params=params)
    assert response.status_code == 200, response.text
    return [thread["id"] for thread in response.json()["items"]]


async def test_a_thread_has_the_title_that_it_was_given_last(client: Client) -> None:
    created = (await client.http.post("/threads", json={"agent_type": "echo", "title": "Lost card"})).json()
    path = f"/threads/{created['id']}"

    renamed = (await client.http.patch(path, json={"title": "Found card"})).json()
    nameless = (await client.http.patch(path, json={"title": None})).json()

    assert (created["title"], renamed["title"], nameless["title"]) == ("Lost card", "Found card", None)
    assert renamed["updated_at"] > created["updated_at"]
    assert (await client.http.get(path)).json()["title"] is None


async def test_what_a_change_leaves_out_stays(client: Client) -> None:
    body = {"agent_type": "echo", "title": "Card", "metadata": {"a": 1e308, "b": [True]}}
    created = (await client.http.post("/threads", json=body)).json()
    path = f"/threads/{created['id']}"

    renamed = (await client.http.patch(path, json={"title": "Other"})).json()
    refilled = (await client.http.patch(path, json={"metadata": {"c": None}})).json()

    assert (renamed["metadata"], renamed["title"]) == (body["metadata"], "Other")
    assert (refilled["metadata"], refilled["title"]) == ({"c": None}, "Other")


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({}, ""),
        ({"title": ""}, "/title"),
        ({"title": "x" * 201}, "/title"),
        ({"title": "a\0b"}, "/title"),
        ({"title": 7}, "/title"),
        ({"metadata": None}, "/metadata"),
        ({"metadata": []}, "/metadata"),
        ({"agent_type": "form"}, "/agent_type"),
    ],
)
async def test_an_odd_change_is_refused(client: Client, changes: dict[str, Any], pointer: str) -> None:
    thread_id = await client.thread("echo")

    response = await client.http.patch(f"/threads/{thread_id}", json=changes)

    assert {at for at, _ in errors_of(response)} == {pointer}


async def test_nobody_else_changes_a_thread(client: Client, shared_api: Any) -> None:
    thread_id = await client.thread("echo")
    async with Client(shared_api.url) as user, Client(shared_api.url, "other", client.user_id) as tenant:
        for somebody in (user, tenant):
            problem_of(await somebody.http.patch(f"/threads/{thread_id}", json={"title": "Mine"}), 404)
    assert (await client.http.get(f"/threads/{thread_id}")).json()["title"] is None
    await client.http.delete(f"/threads/{thread_id}")
    problem_of(await client.http.patch(f"/threads/{thread_id}", json={"title": "Gone"}), 404)


async def test_a_thread_says_what_came_last_and_what_is_unfinished(client: Client) -> None:
    thread_id = await client.thread("slow")
    fresh = (await client.http.get(f"/threads/{thread_id}")).json()
    run = await client.run("1000", thread_id=thread_id)
    waiting = (await client.http.get("/threads")).json()["items"][0]
    await client.http.post(f"/runs/{run['id']}/cancel", params={"wait": 30})
    after = (await client.http.get(f"/threads/{thread_id}")).json()

    assert (fresh["last_message_at"], fresh["unfinished_runs"]) == (None, 0)
    assert waiting["unfinished_runs"] == 1
    assert waiting["last_message_at"] is not None
    assert after["unfinished_runs"] == 0
    assert after["last_message_at"] == after["messages"][-1]["created_at"]


async def test_threads_are_found(client: Client) -> None:
    plain = await client.thread("echo")
    titled = (await client.http.post("/threads", json={"agent_type": "form", "title": "Straße 100%_x"})).json()["id"]
    marked = await client.thread("echo", channel="web", vip=True, level=2)
    await client.ended((await client.run("Where is my PARCEL?", thread_id=plain))["id"])
    busy = await client.thread("slow", channel="web")
    run = await client.run("1000", thread_id=busy)

    assert await listed(client) == [busy, marked, titled, plain]
    assert await listed(client, agent_type="echo") == [marked, plain]
    assert await listed(client, q="parcel") == [plain]
    assert await listed(client, q="100%_X") == [titled]
    assert await listed(client, q="%") == [titled]
    assert await listed(client, has_unfinished=True) == [busy]
    assert await listed(client, has_unfinished=False) == [marked, titled, plain]
    assert await listed(client, **{"metadata.channel": "web"}) == [busy, marked]
    assert await listed(client, **{"metadata.vip": "true", "metadata.level": "2"}) == [marked]
    assert await listed(client, **{"metadata.": ""}) == []
    assert await listed(client, **{"metadata.a.b": "web", "agent_type": "echo"}) == []
    await client.http.post(f"/runs/{run['id']}/cancel")


async def test_a_search_is_paged_and_shows_nobody_else_s(client: Client, shared_api: Any) -> None:
    mine = [(await client.http.post("/threads", json={"agent_type": "echo", "title": f"c4n4ry {n}"})) for n in range(5)]
    async with Client(shared_api.url) as other:
        assert await listed(other, q="c4n4ry") == []
    found: list[str] = []
    params: dict[str, Any] = {"q": "C4N4RY", "limit": 2}
    while True:
        page = (await client.http.get("/threads", params=params)).json()
        found += [thread["id"] for thread in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]

    assert found == [response.json()["id"] for response in reversed(mine)]


@pytest.mark.parametrize(
    "query",
    [
        "q=",
        "q=%00",
        "q=a&q=b",
        f"q={'x' * 201}",
        "metadata=a",
        "metadata.a=%00",
        "metadata.%00=a",
        "metadata.a=1&metadata.a=2",
        "meta.a=1",
        "has_unfinished=maybe",
    ],
)
async def test_an_odd_filter_is_refused(client: Client, query: str) -> None:
    problem_of(await client.http.get(f"/threads?{query}"), 422)


# Forks.


async def conversation(client: Client, *queries: str, agent_type: str = "recalls", **thread: Any) -> str:
    """Ask these queries in a new thread; returns its id."""
    response = await client.http.post("/threads", json={"agent_type": agent_type, **thread})
    thread_id: str = response.json()["id"]
    for query in queries:
        await client.ended((await client.run(query, thread_id=thread_id))["id"])
    return thread_id


async def said(client: Client, thread_id: str) -> list[str]:
    return [message["content"] for message in await client.messages(thread_id)]


async def test_a_fork_goes_its_own_way(client: Client) -> None:
    thread_id = await conversation(client, "one", "two", "three", title="Numbers", metadata={"a": 1})
    messages = await client.messages(thread_id)

    forked = await client.http.post(f"/threads/{thread_id}/fork", json={"through_message_id": messages[3]["id"]})
    fork = forked.json()
    copies = await client.messages(fork["id"])
    ended = await client.ended((await client.run("four", thread_id=fork["id"]))["id"])

    assert forked.status_code == 201
    assert forked.headers["location"].endswith(f"/threads/{fork['id']}")
    assert (fork["title"], fork["metadata"], fork["agent_type"]) == ("Numbers", {"a": 1}, "recalls")
    assert ended["output"] == "one;two;four;"
    assert [message["content"] for message in copies] == ["one", "one;", "two", "one;two;"]
    assert not {message["id"] for message in copies} & {message["id"] for message in messages}
    run = await client.read(copies[3]["metadata"]["run_id"])
    assert (run["thread_id"], run["status"], run["message_id"]) == (fork["id"], "succeeded", copies[3]["id"])
    assert run["usage"]["requests"] == 0
    assert await client.messages(thread_id) == messages


async def test_a_fork_outlives_its_thread(client: Client) -> None:
    thread_id = await conversation(client, "one")
    fork = (await client.http.post(f"/threads/{thread_id}/fork", json={"title": "Mine"})).json()
    await client.http.delete(f"/threads/{thread_id}")

    ended = await client.ended((await client.run("two", thread_id=fork["id"]))["id"])

    assert (fork["title"], ended["output"]) == ("Mine", "one;two;")


async def test_a_fork_leaves_out_what_has_not_ended_and_what_the_model_never_knew(client: Client) -> None:
    thread_id = await conversation(client, "1 tick", "2 ticks", agent_type="breaks")
    slow = await conversation(client, "0.1", agent_type="slow")
    run = await client.run("1000", thread_id=slow)
    unfinished = (await client.messages(slow))[-1]["id"]

    busy = await client.http.post(f"/threads/{slow}/fork", json={"through_message_id": unfinished})
    fork = (await client.http.post(f"/threads/{slow}/fork", json={})).json()
    failed = (await client.http.post(f"/threads/{thread_id}/fork", json={})).json()
    await client.http.post(f"/runs/{run['id']}/cancel")

    assert problem_of(busy, 409, "thread_busy")["run_id"] == run["id"]
    assert (await said(client, fork["id"]))[0] == "0.1"
    assert len(await said(client, fork["id"])) == 2
    assert fork["unfinished_runs"] == 0
    assert await said(client, failed["id"]) == ["1 tick", "2 ticks"]


async def test_a_fork_is_made_once_and_of_your_own_thread_only(client: Client, shared_api: Any) -> None:
    thread_id, another = await conversation(client, "one"), await conversation(client, "two")
    messages = await client.messages(thread_id)
    path = f"/threads/{thread_id}/fork"

    first, again = [await client.http.post(path, json={}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    foreign = await client.http.post(path, json={"through_message_id": (await client.messages(another))[1]["id"]})
    asked = await client.http.post(path, json={"through_message_id": messages[0]["id"]})
    async with Client(shared_api.url) as user:
        for body in ({}, {"through_message_id": messages[1]["id"]}):
            problem_of(await user.http.post(path, json=body), 404, "not_found")

    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    for response in (foreign, asked):
        assert errors_of(response) == {("/through_message_id", "unknown_message")}


# Replacing.


async def test_a_query_takes_the_place_of_another_and_of_all_after_it(client: Client) -> None:
    thread_id = await conversation(client, "one", "two", "three")
    messages = await client.messages(thread_id)

    answer = await client.ask("TWO", thread_id=thread_id, replace_from=messages[2]["id"])
    again = await client.http.post("/agent/query", json={"thread_id": thread_id, "replace_from": messages[0]["id"]})

    assert answer.json()["response"] == "one;TWO;"
    assert again.json()["response"] == "one;"
    assert await said(client, thread_id) == ["one", "one;"]
    gone = await client.read(messages[4]["metadata"]["run_id"])
    assert (gone["status"], gone["output"]) == ("succeeded", "one;two;three;")


async def test_what_is_replaced_ends(client: Client) -> None:
    thread_id = await conversation(client, "0.1", agent_type="slow")
    running, queued = [await client.run("1000", thread_id=thread_id) for _ in range(2)]
    message_id = (await client.messages(thread_id))[2]["id"]

    ended = await client.ended((await client.run("0.2", thread_id=thread_id, replace_from=message_id))["id"])

    assert ended["status"] == "succeeded"
    for run in (running, queued):
        assert (await client.ended(run["id"]))["status"] == "cancelled"
    assert [message["role"] for message in await client.messages(thread_id)] == ["user", "assistant"] * 2


@pytest.mark.parametrize("path", ["/runs", "/agent/query", "/agent/stream"])
async def test_only_a_message_of_the_user_in_this_thread_is_replaced(client: Client, path: str) -> None:
    thread_id, another = await conversation(client, "one"), await conversation(client, "two")
    answer, foreign = (await client.messages(thread_id))[1], (await client.messages(another))[0]

    for message_id in (answer["id"], foreign["id"], thread_id):
        body = {"thread_id": thread_id, "query": "x", "replace_from": message_id}
        assert errors_of(await client.http.post(path, json=body)) == {("/replace_from", "unknown_message")}
    for body, error in [
        ({"agent_type": "echo", "query": "x", "replace_from": answer["id"]}, ("", "replace_without_thread")),
        ({"thread_id": thread_id}, ("/query", "missing")),
        ({"thread_id": thread_id, "query": None}, ("/query", "missing")),
    ]:
        assert errors_of(await client.http.post(path, json=body)) == {error}
    assert await said(client, thread_id) == ["one", "one;"]
