"""An export holds everything of its user, nothing of anybody else, and says when it is whole."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import httpx

from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import Running

LARGE = b"a page of text\n" * 40_000
"""More than one piece of a file."""


async def exported(client: Client) -> list[dict[str, Any]]:
    """Export everything of a user."""
    response = await client.http.get("/users/me/export")
    assert response.status_code == httpx.codes.OK, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["content-disposition"] == 'attachment; filename="export.jsonl"'
    return [json.loads(line) for line in response.text.splitlines()]


def of_type(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Select what the lines of a type hold."""
    return [line["data"] for line in lines if line["type"] == kind]


async def all_of(client: Client, path: str) -> list[dict[str, Any]]:
    """Read a list."""
    items: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"limit": 100}
    while True:
        page = (await client.http.get(path, params=parameters)).json()
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        parameters["cursor"] = page["next_cursor"]


async def test_an_export_holds_what_all_the_lists_do(client: Client) -> None:
    threads = [await client.thread("bank_support"), await client.thread("echo")]
    for thread_id in threads:
        await client.ended((await client.run("What is my balance?", thread_id=thread_id))["id"])
    items = [{"custom_id": f"row-{number}", "query": "hello"} for number in range(205)]
    batch = (await client.http.post("/batches", json={"agent_type": "echo", "items": items})).json()

    async def has_ended() -> bool:
        return (await client.http.get(f"/batches/{batch['id']}")).json()["status"] == "completed"

    await soon(has_ended)
    schedule = {"cron": "0 8 * * *", "query": "hello", "agent_type": "echo"}
    assert (await client.http.post("/schedules", json=schedule)).status_code == 201
    upload = await client.http.post("/files", content=LARGE, headers={"Content-Type": "text/plain"})
    assert upload.status_code == 201, upload.text

    lines = await exported(client)

    assert lines[0]["type"] == "user"
    assert lines[0]["id"] == client.user_id
    for kind, path in (("thread", "/threads"), ("batch", "/batches"), ("file", "/files")):
        assert of_type(lines, kind) == await all_of(client, path), kind
    runs = of_type(lines, "run")
    assert runs == await all_of(client, "/runs")
    assert len(runs) == 207
    assert [each["query"] for each in of_type(lines, "schedule")] == ["hello"]
    for thread_id in threads:
        messages = [line["data"] for line in lines if line["type"] == "message" and line["thread_id"] == thread_id]
        assert messages == await client.messages(thread_id)
    [asked] = [run for run in runs if run["thread_id"] == threads[0]]
    steps = [line["data"] for line in lines if line["type"] == "step" and line["run_id"] == asked["id"]]
    assert [step["kind"] for step in steps] == [
        step["kind"] for step in await all_of(client, f"/runs/{asked['id']}/steps")
    ]
    assert {step["kind"] for step in steps} >= {"tool_call", "response"}
    content = b"".join(base64.b64decode(line["base64"]) for line in lines if line["type"] == "file_content")
    assert hashlib.sha256(content).hexdigest() == upload.json()["sha256"]
    kinds = [line["type"] for line in lines[:-1]]
    assert lines[-1] == {"type": "end", "counts": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}}


async def test_nothing_of_anybody_else_is_in_it(shared_api: Running, client: Client) -> None:
    await client.ended((await client.run("c4n4ry", thread_id=await client.thread("echo")))["id"])
    async with Client(shared_api.url) as user, Client(shared_api.url, "other", client.user_id) as tenant:
        for somebody in (user, tenant):
            lines = await exported(somebody)
            assert [line["type"] for line in lines] == ["user", "end"]
            assert "c4n4ry" not in json.dumps(lines)


async def test_a_token_of_some_threads_exports_nothing(client: Client) -> None:
    thread_id = await client.thread("echo")
    asked = {"user_id": client.user_id, "ttl_s": 60, "threads": [thread_id]}
    token = (await client.http.post("/user-tokens", json=asked)).json()["token"]

    async with httpx.AsyncClient(base_url=client.http.base_url) as page:
        refused = await page.get("/users/me/export", headers={"Authorization": f"Bearer {token}"})

    problem_of(refused, 403, "token_restricted")
