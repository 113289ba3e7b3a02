"""An agent is given exactly the bytes that were attached; queue, log and transcripts hold references and no bytes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from psycopg import sql

from tests.support.attachment_agents import PNG, shown
from tests.support.client import Client
from tests.support.eventually import eventually
from tests.support.problems import errors_of, problem_of
from tests.support.service import Service, serving

MEGABYTE = 1 << 20
SOME = random.Random(18)
PDF = b"%PDF-1.7\n" + SOME.randbytes(3 * MEGABYTE)
IMAGE = b"\x89PNG\r\n\x1a\n" + SOME.randbytes(MEGABYTE)
SMALL = b"\x89PNG\r\n\x1a\n" + SOME.randbytes(5000)
NAMES = ("sees", "images_only", "blind", "passes", "draws")
ENVIRONMENT = {
    "AGENTS": ",".join(f"{name}=tests.support.attachment_agents:{name}" for name in NAMES),
    "MAX_FILE_BYTES": str(4 * MEGABYTE),
    "MAX_ATTACHMENT_BYTES": str(6 * MEGABYTE),
    "WEBHOOK_TRUSTED_HOSTS": "127.0.0.1",
    "LEASE_SECONDS": "3",
    "BEAT_SECONDS": "0.5",
}
SEEN_PDF, SEEN_IMAGE, SEEN_SMALL = (
    shown(PDF, "application/pdf"),
    shown(IMAGE, "image/png"),
    shown(SMALL, "image/png"),
)


class Site(ThreadingHTTPServer):
    """A web site with files on it, and with traps."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                status, media_type, body = {
                    "/report.pdf": (200, "application/pdf", PDF),
                    "/lies.png": (200, "image/png", PDF[:2000]),
                    "/page.html": (200, "text/html", b"<html>"),
                    "/long.pdf": (200, "application/pdf", PDF + b" " * 4 * MEGABYTE),
                    "/moved.pdf": (302, "application/pdf", b""),
                }.get(self.path, (404, "text/plain", b"no"))
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Location", "/report.pdf")
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        """Say the address of a file."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site
        site.shutdown()


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that all tests leave as it is."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), ENVIRONMENT) as service:
        service.api()
        service.worker("--processes", "1")
        yield service


@pytest.fixture
async def user(service: Service) -> AsyncGenerator[Client]:
    """A user whom nobody else is."""
    async with Client(service.processes[0].url) as client:
        yield client


async def upload(
    user: Client, content: bytes = SMALL, media_type: str = "image/png", name: str = "a.png"
) -> dict[str, Any]:
    """Upload a file; returns it as a message shows it."""
    named = {"Content-Type": media_type, "Content-Disposition": f"attachment; filename={name}"}
    response = await user.http.post("/files", content=content, headers=named)
    assert response.status_code == 201, response.text
    file = response.json()
    return {"file_id": file["id"], **{field: file[field] for field in ("filename", "media_type", "bytes")}}


def inline(content: bytes = SMALL, media_type: str = "image/png", **more: Any) -> dict[str, Any]:
    """Attach bytes as they are."""
    return {"data": base64.b64encode(content).decode(), "media_type": media_type, **more}


async def seen(user: Client, query: str, attachments: list[Any], **target: Any) -> list[Any]:
    """Ask; returns what the agent was given."""
    run = await user.run(query, attachments=attachments, **(target or {"agent_type": "sees"}))
    ended = await user.ended(run["id"])
    assert ended["status"] == "succeeded", ended
    return json.loads(ended["output"])


def stored_bytes(service: Service) -> dict[str, int]:
    """Measure what holds references only: the transcripts, the steps, the runs and all of Redis."""
    tables = {
        "transcripts": "messages",
        "run_steps": "messages",
        "runs": "concat(query, output, attachments::text)",
        "messages": "concat(content, attachments::text)",
    }
    with psycopg.connect(service.database_url) as connection:
        longest = {
            table: f"SELECT coalesce(max(octet_length({value})), 0) FROM {table}" for table, value in tables.items()
        }
        sizes = {table: int(connection.execute(sql.SQL(asked)).fetchall()[0][0]) for table, asked in longest.items()}  # pyright: ignore[reportArgumentType]
    client: Any = redis.Redis.from_url(service.redis_url)
    sizes["redis"] = max((int(client.memory_usage(key) or 0) for key in client.scan_iter()), default=0)
    assert sizes["runs"] > 0
    return sizes


async def test_a_thread_is_given_the_same_bytes_again_and_nothing_else_holds_them(
    user: Client, service: Service, site: Site
) -> None:
    thread_id = await user.thread("sees")
    image = await upload(user, IMAGE, name="cat.png")
    told = [
        await seen(user, "a picture", [{"file_id": image["file_id"]}], thread_id=thread_id),
        await seen(user, "a report", [{"url": site.url("/report.pdf")}], thread_id=thread_id),
        await seen(user, "a scribble", [inline(filename="s.png")], thread_id=thread_id),
        await seen(user, "which were these?", [], thread_id=thread_id),
    ]

    assert told[0] == ["a picture", SEEN_IMAGE]
    assert told[1] == [*told[0], "a report", SEEN_PDF]
    assert told[2] == [*told[1], "a scribble", SEEN_SMALL]
    assert told[3] == [*told[2], "which were these?"]
    assert site.asked.count("/report.pdf") == 1
    messages = [message for message in await user.messages(thread_id) if message["role"] == "user"]
    assert [message["attachments"] for message in messages] == [
        [image],
        [{"url": site.url("/report.pdf"), "media_type": None}],
        [messages[2]["attachments"][0] | {"filename": "s.png", "media_type": "image/png", "bytes": len(SMALL)}],
        [],
    ]
    made = messages[2]["attachments"][0]["file_id"]
    assert (await user.http.get(f"/files/{made}/content")).content == SMALL
    names = [file["filename"] for file in (await user.http.get("/files")).json()["items"]]
    assert sorted(names) == ["cat.png", "report.pdf", "s.png"]
    assert max(stored_bytes(service).values()) < 20_000, stored_bytes(service)


async def test_each_way_to_ask_takes_attachments(user: Client) -> None:
    file = {"file_id": (await upload(user))["file_id"]}
    answer = await user.ask("one", agent_type="sees", attachments=[file])
    events = await user.stream("two", agent_type="sees", attachments=[file, inline()])
    items = [
        {"custom_id": "none", "query": "0"},
        {"custom_id": "file", "query": "1", "attachments": [file]},
        {"custom_id": "data", "query": "2", "attachments": [inline(b"a\\tb\n", "text/plain"), file]},
    ]
    batches = [
        await user.http.post("/batches", json={"agent_type": "sees", "items": items}),
        await user.http.post(
            "/batches",
            params={"agent_type": "sees"},
            content="\n".join(map(json.dumps, items)),
            headers={"Content-Type": "application/x-ndjson"},
        ),
    ]

    assert json.loads(answer.json()["response"]) == ["one", SEEN_SMALL]
    assert json.loads([event["token"] for event in events if "token" in event][-1]) == ["two", SEEN_SMALL, SEEN_SMALL]
    for batch in batches:
        assert batch.status_code == 202, batch.text
        path = f"/batches/{batch.json()['id']}/results"
        lines = (await user.http.get(path, params={"follow": "true"})).text.splitlines()
        results = {
            line["custom_id"]: line["output"] for line in map(json.loads, filter(None, lines)) if "cursor" in line
        }
        assert {name: json.loads(output) for name, output in results.items()} == {
            "none": ["0"],
            "file": ["1", SEEN_SMALL],
            "data": ["2", shown(b"a\\tb\n", "text/plain"), SEEN_SMALL],
        }


async def test_what_cannot_be_attached_is_refused_where_it_stands(user: Client, service: Service) -> None:
    async with Client(service.processes[0].url) as neighbour, Client(service.processes[0].url, "other") as stranger:
        foreign = [(await upload(other))["file_id"] for other in (neighbour, stranger)]
    mine = {"file_id": (await upload(user))["file_id"]}
    for attachment, pointer, code in (
        *(({"file_id": file_id}, "/attachments/1/file_id", "unknown_file") for file_id in (*foreign, str(uuid4()))),
        ({"url": "http://example.com/x.pdf"}, "/attachments/1/url", "https_required"),
        ({"url": "https://10.0.0.1/x.pdf"}, "/attachments/1/url", "address_not_public"),
        (inline(SMALL, "text/html"), "/attachments/1/media_type", "type_not_taken"),
        (inline(b"no image"), "/attachments/1/data", "wrong_content"),
        ({"data": "%%%%", "media_type": "text/plain"}, "/attachments/1/data", "base64"),
        ({"data": "aGVsbG8="}, "/attachments/1", "type_of_data"),
        ({}, "/attachments/1", "one_source"),
        ({**mine, "url": "https://example.com/"}, "/attachments/1", "one_source"),
        ({**mine, "media_type": "image/png"}, "/attachments/1", "type_of_file"),
        ({**mine, "name": "x"}, "/attachments/1/name", "extra_forbidden"),
    ):
        asked = {"query": "?", "agent_type": "sees", "attachments": [mine, attachment]}
        assert errors_of(await user.http.post("/runs", json=asked)) == {(pointer, code)}
        item = {"custom_id": "one", "query": "?", "attachments": [mine, attachment]}
        plain = {"agent_type": "sees", "items": [{"custom_id": "zero", "query": "?"}, item]}
        assert errors_of(await user.http.post("/batches", json=plain)) == {(f"/items/1{pointer}", code)}
    many = {"query": "?", "agent_type": "sees", "attachments": [mine] * 21}
    assert errors_of(await user.http.post("/runs", json=many)) == {("/attachments", "too_long")}
    large = {"file_id": (await upload(user, PDF, "application/pdf"))["file_id"]}
    assert errors_of(await user.http.post("/runs", json=many | {"attachments": [large] * 2})) == {
        ("/attachments", "attachments_too_large")
    }
    assert (await user.http.get("/runs")).json()["items"] == []
    files = (await user.http.get("/files")).json()["items"]
    assert len(files) == 2, "what is refused leaves no file behind"


async def test_an_agent_is_given_only_what_it_takes(user: Client, site: Site) -> None:
    agents = {agent["agent_type"]: agent for agent in (await user.http.get("/agents")).json()}
    assert agents["images_only"]["capabilities"] == {"attachments": ["image/*"], "waiting": False, "reasoning": True}
    assert agents["sees"]["capabilities"]["attachments"] == ["*/*"]
    assert await seen(user, "ok", [inline()], agent_type="images_only") == ["ok", SEEN_SMALL]
    for agent_type, attachment in (
        ("images_only", inline(PDF[:1000], "application/pdf")),
        ("blind", inline()),
        ("blind", {"url": site.url("/report.pdf")}),
    ):
        asked = {"query": "?", "agent_type": agent_type, "attachments": [attachment]}
        assert errors_of(await user.http.post("/runs", json=asked)) == {("/attachments/0", "type_not_taken")}
    [_, said] = await seen(user, "?", [{"url": site.url("/report.pdf")}], agent_type="images_only")
    assert "takes no application/pdf" in said
    assert await seen(user, "?", [{"url": site.url("/report.pdf")}], agent_type="passes") == [
        "?",
        {"url": site.url("/report.pdf")},
    ]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/lies.png", "not image/png"),
        ("/page.html", "not be of its type"),
        ("/long.pdf", "longer than"),
        ("/moved.pdf", "answered with 302"),
        ("/nothing", "answered with 404"),
    ],
)
async def test_an_agent_is_told_what_could_not_be_fetched(user: Client, site: Site, path: str, why: str) -> None:
    [_, said] = await seen(user, "?", [{"url": site.url(path)}])
    assert why in said
    assert (await user.http.get("/files")).json()["items"] == []


async def test_a_file_that_is_gone_becomes_a_sentence(user: Client) -> None:
    thread_id = await user.thread("sees")
    file = await upload(user)
    await seen(user, "one", [{"file_id": file["file_id"]}], thread_id=thread_id)
    assert (await user.http.delete(f"/files/{file['file_id']}")).status_code == 204

    told = await seen(user, "two", [], thread_id=thread_id)

    assert [told[0], told[2]] == ["one", "two"]
    assert "has been deleted since" in told[1]
    assert (await user.messages(thread_id))[0]["attachments"] == [file]


async def test_the_newest_files_are_given_again_as_far_as_there_is_room(user: Client) -> None:
    thread_id = await user.thread("sees")
    parts = [b"%PDF-1.7\n" + bytes([number]) * (2 * MEGABYTE) for number in range(3)]
    told: list[Any] = []
    for number, part in enumerate(parts):
        file = await upload(user, part, "application/pdf")
        told = await seen(user, str(number), [{"file_id": file["file_id"]}], thread_id=thread_id)

    assert told[-1] == shown(parts[2], "application/pdf")
    assert told[3] == shown(parts[1], "application/pdf")
    assert "too large to be shown again" in told[1]


async def test_a_fork_and_a_query_that_is_asked_again_keep_their_attachments(user: Client) -> None:
    thread_id = await user.thread("sees")
    file = await upload(user)
    await seen(user, "one", [{"file_id": file["file_id"]}], thread_id=thread_id)
    fork = (await user.http.post(f"/threads/{thread_id}/fork", json={})).json()["id"]
    first = (await user.messages(thread_id))[0]["id"]

    run = await user.http.post("/runs", json={"thread_id": thread_id, "replace_from": first})
    again = await user.ended(run.json()["id"])
    assert json.loads(again["output"]) == ["one", SEEN_SMALL]
    assert (await user.messages(thread_id))[0]["attachments"] == [file]
    assert (await user.messages(fork))[0]["attachments"] == [file]
    await user.http.delete(f"/threads/{thread_id}")
    assert await seen(user, "two", [], thread_id=fork) == ["one", SEEN_SMALL, "two"]


async def test_a_message_into_a_run_has_attachments_and_so_has_the_run_that_it_becomes(
    user: Client, tmp_path: Path
) -> None:
    thread_id = await user.thread("sees")
    file = await upload(user)
    go = tmp_path / "go"
    run = await user.run(f"call: wait_for {go}", thread_id=thread_id)
    await asyncio.to_thread(eventually, Path(f"{go}.begun").exists)
    sent = await user.http.post(
        f"/runs/{run['id']}/messages", json={"query": "and this?", "attachments": [{"file_id": file["file_id"]}]}
    )
    assert sent.status_code == 202, sent.text
    go.touch()
    ended = await user.ended(run["id"])
    late = await user.http.post(f"/runs/{run['id']}/messages", json={"query": "late", "attachments": [inline()]})
    later = await user.ended(late.json()["run_id"])

    told = [f"call: wait_for {go}", "it is there", "and this?", SEEN_SMALL]
    assert json.loads(ended["output"]) == told
    assert json.loads(later["output"]) == [*told, "late", SEEN_SMALL]
    asked = [message for message in await user.messages(thread_id) if message["role"] == "user"]
    assert [message["content"] for message in asked] == [told[0], "and this?", "late"]
    assert asked[1]["attachments"] == [file]
    assert asked[2]["attachments"][0]["bytes"] == len(SMALL)
    steps = (await user.http.get(f"/runs/{run['id']}/steps")).json()["items"]
    assert "and this?" in [step["text"] for step in steps if step["kind"] == "message"]


async def test_the_attempt_after_a_dead_worker_is_given_the_same_and_steps_hold_no_bytes(
    user: Client, service: Service, tmp_path: Path
) -> None:
    file = await upload(user, IMAGE)
    go = tmp_path / "go"
    run = await user.run(
        f"call: wait_for {go}", agent_type="sees", attachments=[{"file_id": file["file_id"]}, inline()]
    )
    await asyncio.to_thread(eventually, Path(f"{go}.begun").exists)
    with psycopg.connect(service.database_url) as connection:
        [(pid,)] = connection.execute(
            "SELECT pid FROM workers JOIN runs ON worker_id = workers.id WHERE runs.id = %s", [run["id"]]
        ).fetchall()
    os.kill(pid, signal.SIGKILL)
    go.touch()
    ended = await user.ended(run["id"])

    assert ended["attempt"] == 2
    assert json.loads(ended["output"]) == [f"call: wait_for {go}", SEEN_IMAGE, SEEN_SMALL, "it is there"]
    assert ended["usage"]["requests"] == 2, "the first step is not asked again"
    assert max(stored_bytes(service).values()) < 20_000


async def test_a_repeated_call_attaches_once(user: Client) -> None:
    asked = {"query": "?", "agent_type": "sees", "attachments": [inline()]}
    key = {"Idempotency-Key": "once"}
    first = await user.http.post("/runs", json=asked, headers=key)
    again = await user.http.post("/runs", json=asked, headers=key)
    assert again.json()["id"] == first.json()["id"]
    assert len((await user.http.get("/files")).json()["items"]) == 1
    file_id = (await user.http.get("/files")).json()["items"][0]["id"]
    named = asked | {"attachments": [{"file_id": file_id}]}
    run = await user.http.post("/runs", json=named, headers={"Idempotency-Key": "two"})
    await user.http.delete(f"/files/{file_id}")
    replayed = await user.http.post("/runs", json=named, headers={"Idempotency-Key": "two"})
    assert replayed.json()["id"] == run.json()["id"], "although the file is gone"
    problem_of(await user.http.post("/runs", json=asked, headers={"Idempotency-Key": "two"}), 422)


async def test_what_a_tool_makes_is_a_file_of_the_user(user: Client, service: Service) -> None:
    thread_id = await user.thread("sees")
    events = await user.stream("call: paint", thread_id=thread_id)
    [made] = [event for event in events if event["event"] == "file"]
    later = await seen(user, "again", [], thread_id=thread_id)
    [step] = [
        step
        for step in (await user.http.get(f"/runs/{events[0]['run_id']}/steps")).json()["items"]
        if step["kind"] == "tool_call"
    ]

    [file] = (await user.http.get("/files")).json()["items"]
    assert {"id": made["file_id"], "media_type": made["media_type"], "bytes": made["bytes"]} == {
        "id": file["id"],
        "media_type": "image/png",
        "bytes": len(PNG),
    }
    assert (await user.http.get(f"/files/{file['id']}/content")).content == PNG
    told = json.loads([event["token"] for event in events if "token" in event][-1])
    assert told == ["call: paint", "painted", shown(PNG, "image/png")]
    assert later == [*told, "again"]
    assert step["result"] == ["painted", {"file_id": file["id"], "media_type": "image/png"}]
    assert base64.b64encode(PNG[:300]).decode() not in json.dumps(events)
    assert max(stored_bytes(service).values()) < 20_000


async def test_an_output_that_is_a_file_is_told_as_one(user: Client) -> None:
    events = await user.stream("blue, please", agent_type="draws")
    ended = await user.ended(events[0]["run_id"])

    made = [event for event in events if event["event"] == "file"]
    assert [event["file_id"] for event in made] == [ended["output"]["file_id"]]
    assert ended["output"].keys() == {"file_id", "media_type", "bytes"}
    assert json.loads([event["token"] for event in events if "token" in event][-1]) == ended["output"]
    assert (await user.http.get(f"/files/{ended['output']['file_id']}/content")).content == PNG + b"blue"
