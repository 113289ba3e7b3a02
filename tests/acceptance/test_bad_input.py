"""No input breaks the service: what is wrong is refused with a reason, is not quoted, and leaves nothing behind."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import Client
from tests.support.problems import CANARY, SAME_FOR_ALL, errors_of, problem_of
from tests.support.service import KEYS, Running

LIMIT = 1 << 20
UNKNOWN = "0198c5a4-7c9e-7000-8000-000000000000"

THREAD = {"agent_type": "echo"}
QUERY = {"agent_type": "echo", "query": CANARY}
GOOD: dict[str, dict[str, Any]] = {"/threads": THREAD, "/runs": QUERY, "/agent/query": QUERY, "/agent/stream": QUERY}
ASKING = sorted(GOOD.keys() - {"/threads"})

creating = pytest.mark.parametrize("path", sorted(GOOD))


@pytest.fixture
async def visitor(client: Client) -> AsyncGenerator[Client]:
    """A user who leaves nothing behind."""
    yield client
    for noun in ("runs", "threads"):
        assert (await client.http.get(f"/{noun}")).json()["items"] == []


async def post(client: Client, path: str, body: bytes | str, **headers: str) -> httpx.Response:
    """Post a body as it is."""
    return await client.http.post(path, content=body, headers={"Content-Type": "application/json", **headers})


def nested(levels: int) -> str:
    """Write a thread whose metadata make it so many levels deep."""
    return '{"agent_type": "echo", "metadata": {"a": ' + "[" * (levels - 2) + "]" * (levels - 2) + "}}"


MALFORMED = {
    "empty": b"",
    "blank": b" \n",
    "cut off": b'{"agent_type": "c4n4ry',
    "not JSON": b"c4n4ry",
    "single quotes": b"{'agent_type': 'c4n4ry'}",
    "a comma too many": b'{"agent_type": "c4n4ry",}',
    "something after it": b'{"agent_type": "c4n4ry"} c4n4ry',
    "a control character": b'{"agent_type": "c4n4ry\n"}',
    "Latin-1": '{"agent_type": "c4n4ry é"}'.encode("latin-1"),
    "UTF-16": '{"agent_type": "c4n4ry"}'.encode("utf-16"),
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"agent_type": "c4n4ry"}',
    "a surrogate in UTF-8": b'{"agent_type": "c4n4ry \xed\xa0\x80"}',
    "NaN": b'{"agent_type": "c4n4ry", "metadata": {"a": NaN}}',
    "Infinity": b'{"agent_type": "c4n4ry", "metadata": {"a": Infinity}}',
    "-Infinity": b'{"agent_type": "c4n4ry", "deadline_s": -Infinity}',
    "more digits than a number has": b'{"agent_type": "c4n4ry", "metadata": {"a": ' + b"9" * 5000 + b"}}",
    "a name twice": b'{"agent_type": "c4n4ry", "agent_type": "echo"}',
    "a name twice, further in": b'{"agent_type": "echo", "metadata": [{"c4n4ry": 1, "c4n4ry": 1}]}',
    "65 levels": nested(65).encode(),
    "256 levels": nested(256).encode(),
    "100,000 levels": nested(100_000).encode(),
    "100,000 levels without an end": b"[" * 100_000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_body_is_refused(visitor: Client, body: bytes) -> None:
    for path in GOOD:
        problem_of(await post(visitor, path, body), 400, "malformed_json")


async def test_sixty_four_levels_are_not_too_deep(client: Client) -> None:
    response = await post(client, "/threads", nested(64))

    assert response.status_code == 201
    assert response.json()["metadata"] == json.loads(nested(64))["metadata"]


async def test_metadata_come_back_as_they_went_in(client: Client) -> None:
    metadata = {"Zażółć 👩‍🚀": ["e\u0301", "\u2028", ""], "": None, "__proto__": {"a/b~c": 1.5}, "big": 10**300}

    response = await client.http.post("/threads", json={"agent_type": "echo", "metadata": metadata})

    assert response.json()["metadata"] == metadata
    assert (await client.http.get(f"/threads/{response.json()['id']}")).json()["metadata"] == metadata


UNSTORABLE = {
    r'{"query": "\u0000"}': ("/query", "nul_character"),
    r'{"query": "c4n4ry \ud800"}': ("/query", "lone_surrogate"),
    r'{"query": "\ude00\ud83d c4n4ry"}': ("/query", "lone_surrogate"),
    r'{"agent_type": "c4n4ry\u0000"}': ("/agent_type", "nul_character"),
    r'{"c4n4ry\u0000": 1}': ("", "nul_character"),
    r'{"\udfff": 1}': ("", "lone_surrogate"),
    r'{"metadata": {"a": [{"b~/": "c4n4ry\u0000"}]}}': ("/metadata/a/0/b~0~1", "nul_character"),
    r'{"metadata": {"a": [{"\u0000": 1}]}}': ("/metadata/a/0", "nul_character"),
    r'{"metadata": {"a": [{"c4n4ry \udbff": 1}]}}': ("/metadata/a/0", "lone_surrogate"),
    r'{"metadata": {"a": [1, 1e400]}}': ("/metadata/a/1", "number_out_of_range"),
    r'{"deadline_s": -1e999}': ("/deadline_s", "number_out_of_range"),
}


@pytest.mark.parametrize("body", UNSTORABLE)
async def test_what_no_column_can_hold_is_refused(visitor: Client, body: str) -> None:
    for path in GOOD:
        assert errors_of(await post(visitor, path, body)) == {UNSTORABLE[body]}


@pytest.mark.parametrize("body", ["null", "true", "17", '"c4n4ry"', '["c4n4ry"]'])
async def test_a_body_is_an_object(visitor: Client, body: str) -> None:
    for path in GOOD:
        assert errors_of(await post(visitor, path, body)) == {("", "model_attributes_type")}


@creating
async def test_a_field_that_is_not_known_is_refused(visitor: Client, path: str) -> None:
    response = await visitor.http.post(path, json={**GOOD[path], "unknown": CANARY, "a/b": CANARY})

    assert errors_of(response) == {("/unknown", "extra_forbidden"), ("/a~1b", "extra_forbidden")}


@creating
async def test_an_agent_that_is_not_known_is_refused(visitor: Client, path: str) -> None:
    response = await visitor.http.post(path, json={**GOOD[path], "agent_type": CANARY})

    assert errors_of(response) == {("/agent_type", "unknown_agent")}


NOT_VALID: dict[str, tuple[dict[str, Any], set[tuple[str, str]]]] = {
    "no query": ({"query": ...}, {("/query", "missing")}),
    "an empty query": ({"query": ""}, {("/query", "string_too_short")}),
    "a query that is no text": ({"query": [CANARY]}, {("/query", "string_type")}),
    "no target": ({"agent_type": ...}, {("", "one_target")}),
    "two targets": ({"thread_id": UNKNOWN}, {("", "one_target")}),
    "a thread id that is none": ({"thread_id": CANARY}, {("/thread_id", "uuid_parsing")}),
    "an agent's name that is too long": ({"agent_type": CANARY * 20}, {("/agent_type", "string_too_long")}),
    "a strategy without a thread": ({"multitask_strategy": "enqueue"}, {("", "strategy_without_thread")}),
    "an unknown strategy": ({"multitask_strategy": CANARY}, {("/multitask_strategy", "enum")}),
    "a webhook to nowhere": ({"webhook_url": CANARY}, {("/webhook_url", "malformed_url")}),
    "a webhook to ourselves": (
        {"webhook_url": "https://c4n4ry.localhost"},
        {("/webhook_url", "address_not_public")},
    ),
    "a webhook that is no text": ({"webhook_url": [CANARY]}, {("/webhook_url", "string_type")}),
    "metadata that are no object": ({"metadata": [CANARY]}, {("/metadata", "dict_type")}),
    "metadata that are null": ({"metadata": None}, {("/metadata", "dict_type")}),
    "no time at all": ({"deadline_s": 0}, {("/deadline_s", "greater_than")}),
    "a deadline in the past": ({"deadline_s": -1}, {("/deadline_s", "greater_than")}),
    "a deadline after more than a day": ({"deadline_s": 86_400.5}, {("/deadline_s", "less_than_equal")}),
    "a deadline as far as numbers go": ({"deadline_s": 10**400}, {("/deadline_s", "number_out_of_range")}),
    "a deadline that is text": ({"deadline_s": "60"}, {("/deadline_s", "float_type")}),
    "a deadline that is a truth": ({"deadline_s": True}, {("/deadline_s", "float_type")}),
    "several at once": ({"query": 1, "deadline_s": 0}, {("/query", "string_type"), ("/deadline_s", "greater_than")}),
}


@pytest.mark.parametrize(("change", "errors"), NOT_VALID.values(), ids=NOT_VALID)
async def test_a_query_that_is_not_valid_is_refused(
    visitor: Client, change: dict[str, Any], errors: set[tuple[str, str]]
) -> None:
    body = {name: value for name, value in {**QUERY, **change}.items() if value is not ...}

    for path in ASKING:
        assert errors_of(await visitor.http.post(path, json=body)) == errors


@pytest.mark.parametrize("path", ["/agent/query", "/agent/stream"])
async def test_an_odd_wish_for_the_hang_up_is_refused(visitor: Client, path: str) -> None:
    response = await visitor.http.post(path, json={**QUERY, "on_disconnect": CANARY})

    assert errors_of(response) == {("/on_disconnect", "literal_error")}


async def test_whoever_does_not_wait_cannot_hang_up(visitor: Client) -> None:
    response = await visitor.http.post("/runs", json={**QUERY, "on_disconnect": "cancel"})

    assert errors_of(response) == {("/on_disconnect", "extra_forbidden")}


async def test_the_first_hundred_errors_are_told(visitor: Client) -> None:
    response = await visitor.http.post("/runs", json={**QUERY, **{f"unknown {n}": CANARY for n in range(1_500)}})

    assert len(errors_of(response)) == 100


@creating
@pytest.mark.parametrize("key", [b"", b"x" * 256, "c4n4ry é".encode(), b"c4n4ry\tc4n4ry"])
async def test_a_key_that_is_none_is_refused(visitor: Client, path: str, key: bytes) -> None:
    response = await visitor.http.post(path, json=GOOD[path], headers=[(b"Idempotency-Key", key)])

    problem_of(response, 400, "bad_request")


@creating
async def test_two_keys_are_refused(visitor: Client, path: str) -> None:
    headers = [("Idempotency-Key", CANARY), ("Idempotency-Key", CANARY)]

    problem_of(await visitor.http.post(path, json=GOOD[path], headers=headers), 400, "bad_request")


async def test_a_key_for_a_call_that_creates_nothing_is_refused_rather_than_ignored(visitor: Client) -> None:
    for path in (f"/runs/{UNKNOWN}/cancel", f"/runs/{UNKNOWN}/stream-ticket"):
        response = await visitor.http.post(path, headers={"Idempotency-Key": CANARY})

        assert errors_of(response) == {("header:Idempotency-Key", "not_offered")}


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/*"]
)
async def test_a_body_of_another_type_is_refused(visitor: Client, content_type: str) -> None:
    for path, body in GOOD.items():
        response = await post(visitor, path, json.dumps(body), **{"Content-Type": content_type})
        problem_of(response, 415, "unsupported_media_type")


async def test_a_compressed_body_is_refused(visitor: Client) -> None:
    response = await post(visitor, "/runs", json.dumps(QUERY), **{"Content-Encoding": "gzip"})

    problem_of(response, 415, "unsupported_media_type")
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("content_type", ["application/json; charset=latin-1", "APPLICATION/JSON ;;="])
async def test_json_is_utf8_whatever_its_type_adds(client: Client, content_type: str) -> None:
    response = await post(
        client, "/threads", '{"agent_type": "echo", "metadata": {"é": 1}}', **{"Content-Type": content_type}
    )

    assert response.json()["metadata"] == {"é": 1}


def of_size(size: int) -> bytes:
    """Write a thread of so many bytes."""
    empty = json.dumps({"agent_type": "echo", "metadata": {"a": ""}})
    return json.dumps({"agent_type": "echo", "metadata": {"a": "x" * (size - len(empty))}}).encode()


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Send a body without saying how long it is."""
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


@pytest.mark.parametrize("counted", [False, True], ids=["length told", "length counted"])
async def test_a_body_may_be_as_long_as_the_limit_and_no_longer(client: Client, counted: bool) -> None:
    async def send(size: int) -> httpx.Response:
        body = in_pieces(of_size(size)) if counted else of_size(size)
        return await client.http.post("/threads", content=body, headers={"Content-Type": "application/json"})

    assert (await send(LIMIT)).status_code == 201
    problem_of(await send(LIMIT + 1), 413, "body_too_large")
    problem_of(await send(20 * LIMIT), 413, "body_too_large")
    assert len((await client.http.get("/threads")).json()["items"]) == 1


@creating
async def test_a_parameter_that_is_not_known_is_refused(visitor: Client, path: str) -> None:
    response = await visitor.http.post(f"{path}?unknown={CANARY}&%00=1&%FF=1", json=GOOD[path])

    assert errors_of(response) == {(pointer, "extra_forbidden") for pointer in ("?unknown", "?\0", "?\ufffd")}


ODD_PARAMETERS = {
    "/runs?limit=0": ("?limit", "greater_than_equal"),
    "/runs?limit=101": ("?limit", "less_than_equal"),
    "/runs?limit=-1": ("?limit", "greater_than_equal"),
    "/runs?limit=c4n4ry": ("?limit", "int_parsing"),
    "/runs?limit=": ("?limit", "int_parsing"),
    "/runs?limit=1.5": ("?limit", "int_parsing"),
    "/runs?limit=%00": ("?limit", "int_parsing"),
    f"/runs?limit={'9' * 5000}": ("?limit", "int_parsing_size"),
    "/runs?limit=1&limit=2": ("?limit", "repeated"),
    "/runs?status=c4n4ry": ("?status", "enum"),
    "/runs?thread_id=c4n4ry": ("?thread_id", "uuid_parsing"),
    "/runs?batch_id=c4n4ry": ("?batch_id", "uuid_parsing"),
    "/threads?limit=0": ("?limit", "greater_than_equal"),
    "/threads?status=queued": ("?status", "extra_forbidden"),
    f"/threads/{UNKNOWN}/messages?limit=101": ("?limit", "less_than_equal"),
    "/agents?limit=1": ("?limit", "extra_forbidden"),
    f"/runs/{UNKNOWN}?wait=-1": ("?wait", "greater_than_equal"),
    f"/runs/{UNKNOWN}?wait=61": ("?wait", "less_than_equal"),
    f"/runs/{UNKNOWN}?wait=inf": ("?wait", "float_parsing"),
    f"/runs/{UNKNOWN}?wait=nan": ("?wait", "float_parsing"),
    f"/runs/{UNKNOWN}?wait=c4n4ry": ("?wait", "float_parsing"),
    f"/runs/{UNKNOWN}?wait=1&wait=2": ("?wait", "repeated"),
    f"/runs/{UNKNOWN}/stream?from=c4n4ry": ("?from", "extra_forbidden"),
    f"/threads/{UNKNOWN}/stream?until=waiting": ("?until", "extra_forbidden"),
    f"/threads/{UNKNOWN}/stream?from_run=c4n4ry": ("?from_run", "uuid_parsing"),
}


@pytest.mark.parametrize("url", ODD_PARAMETERS)
async def test_a_parameter_that_is_not_valid_is_refused(visitor: Client, url: str) -> None:
    assert errors_of(await visitor.http.get(url)) == {ODD_PARAMETERS[url]}


def cursor(value: object) -> str:
    """Write a value the way lists write their cursors."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


NOW = "2026-01-01T00:00:00+00:00"
BAD_VALUES: list[Any] = [None, 1, {}, [], CANARY, [CANARY], [None], [[]]]
BAD_CURSORS = ["", CANARY, "é", "\0", "A" * 10_000, *map(cursor, BAD_VALUES)]
BAD_PLACES: list[Any] = [[NOW], [NOW, UNKNOWN, 1], [UNKNOWN, NOW], [NOW, CANARY], ["\0", UNKNOWN], {NOW: 1, UNKNOWN: 2}]
BAD_POSITIONS: list[Any] = [[2**63], [-(2**70)], [1.5], [True], ["1"], [1, 2], [float("nan")], [float("inf")]]


@pytest.mark.parametrize("path", ["/runs", "/threads"])
async def test_a_cursor_that_no_list_gave_out_is_refused(client: Client, path: str) -> None:
    for odd in (*BAD_CURSORS, *map(cursor, BAD_PLACES), "!" + cursor([NOW, UNKNOWN])):
        problem_of(await client.http.get(path, params={"cursor": odd}), 400, "malformed_cursor")


async def test_a_cursor_that_no_conversation_gave_out_is_refused(client: Client) -> None:
    path = f"/threads/{await client.thread('echo')}/messages"

    for odd in (*BAD_CURSORS, *map(cursor, BAD_POSITIONS)):
        problem_of(await client.http.get(path, params={"cursor": odd}), 400, "malformed_cursor")


MALFORMED_IDS = [CANARY, "1", "1-", "-1-1", "01-1", "1-01", "1-1-1", "1.5-1", "1-99999999999", " 1-1", "\0", "1-1\n"]
IMPOSSIBLE_IDS = ["0-0", "0-2", "3-0", "9-9", "2-2"]


@pytest.mark.parametrize("in_header", [False, True], ids=["after", "Last-Event-ID"])
async def test_a_place_that_a_stream_never_had_is_refused(client: Client, in_header: bool) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])

    async def follow(event_id: str) -> httpx.Response:
        url = f"/runs/{run['id']}/stream"
        if in_header:
            return await client.http.get(url, headers={"Last-Event-ID": event_id})
        return await client.http.get(url, params={"after": event_id})

    for event_id in MALFORMED_IDS:
        if not in_header or (event_id.isprintable() and event_id == event_id.strip()):
            problem_of(await follow(event_id), 400, "malformed_cursor")
    for event_id in IMPOSSIBLE_IDS:
        problem_of(await follow(event_id), 400, "impossible_cursor")


@pytest.mark.parametrize("accept", ["text/html", "application/xml, image/*", "text/event-stream;q=0", CANARY])
async def test_a_stream_in_no_framing_of_ours_is_refused(client: Client, accept: str) -> None:
    run = await client.run("hello", agent_type="echo")
    headers = [("Accept", accept)]

    asked = await client.http.post("/agent/stream", json=QUERY, headers=headers)
    followed = await client.http.get(f"/runs/{run['id']}/stream", headers=headers)

    problem_of(asked, 406, "not_acceptable")
    problem_of(followed, 406, "not_acceptable")
    assert len((await client.http.get("/runs")).json()["items"]) == 1


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/agents", "GET, HEAD"),
        ("/threads", "GET, HEAD, POST"),
        (f"/threads/{UNKNOWN}", "DELETE, GET, HEAD, PATCH"),
        (f"/threads/{UNKNOWN}/messages", "GET, HEAD"),
        (f"/threads/{UNKNOWN}/stream", "GET, HEAD"),
        ("/runs", "GET, HEAD, POST"),
        (f"/runs/{UNKNOWN}", "GET, HEAD"),
        (f"/runs/{UNKNOWN}/stream", "GET, HEAD"),
        (f"/runs/{UNKNOWN}/cancel", "POST"),
        (f"/runs/{UNKNOWN}/stream-ticket", "POST"),
        ("/agent/query", "POST"),
        ("/agent/stream", "POST"),
    ],
)
async def test_another_method_is_refused_with_those_there_are(visitor: Client, path: str, allowed: str) -> None:
    for method in sorted({"PUT", "PATCH", "OPTIONS", "TRACE"} - set(allowed.split(", "))):
        response = await visitor.http.request(method, path)
        problem_of(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/", "/c4n4ry", "/runs/", "/agents/echo", f"/runs/{UNKNOWN}/c4n4ry", "//runs", "/%00"]
)
async def test_a_path_that_leads_nowhere_is_not_found(visitor: Client, path: str) -> None:
    problem_of(await visitor.http.get(path), 404, "not_found")


async def test_head_is_get_without_its_body(client: Client) -> None:
    thread_id = await client.thread("echo")
    run = await client.ended((await client.run("hello", thread_id=thread_id))["id"])

    for path in ("/agents", "/threads", f"/threads/{thread_id}", f"/runs/{run['id']}", "/runs", f"/runs/{UNKNOWN}"):
        got, head = await client.http.get(path), await client.http.head(path)
        assert head.status_code == got.status_code
        assert head.content == b""
        of_the_moment = dict.fromkeys(("date", "ratelimit", "x-request-id"), 0)
        assert dict(head.headers) | of_the_moment == dict(got.headers) | of_the_moment


async def test_the_head_of_a_stream_does_not_wait_for_its_end(client: Client) -> None:
    run = await client.run("60 seconds", agent_type="slow")

    response = await client.http.head(f"/runs/{run['id']}/stream")

    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    assert (await client.http.post(f"/runs/{run['id']}/cancel")).json()["status"] == "cancelled"


@pytest.mark.parametrize(
    "prefer",
    [
        "",
        "wait",
        "wait=",
        "wait=-1",
        "wait=c4n4ry",
        "nowait=0",
        "return=minimal",
        "=",
        ",;,",
        "x" * 9000,
    ],
)
async def test_a_preference_that_says_nothing_is_ignored(client: Client, prefer: str) -> None:
    response = await client.http.post("/agent/query", json=QUERY, headers={"Prefer": prefer})

    assert response.status_code == 200
    assert "preference-applied" not in response.headers


@pytest.mark.parametrize("name", ["X-Request-ID", "Last-Event-ID", "If-None-Match", "Prefer", "Cookie", "X-Anything"])
async def test_a_huge_header_hurts_nobody(client: Client, name: str) -> None:
    run = await client.run("hello", agent_type="echo")

    response = await client.http.get(f"/runs/{run['id']}", headers={name: "x" * 60_000})

    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 36


@pytest.mark.parametrize("body", [b"{}", b'{"c4n4ry": 1', b"\xff" * 100_000])
async def test_a_body_where_none_belongs_is_not_looked_at(client: Client, body: bytes) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])

    read = await client.http.request("GET", f"/runs/{run['id']}", content=body)
    cancelled = await client.http.post(f"/runs/{run['id']}/cancel", content=body)

    assert read.json() == cancelled.json() == run


THREAD_CALLS = [
    ("GET", "/threads/{}"),
    ("DELETE", "/threads/{}"),
    ("GET", "/threads/{}/messages"),
    ("GET", "/threads/{}/stream"),
]
RUN_CALLS = [
    ("GET", "/runs/{}"),
    ("GET", "/runs/{}?wait=5"),
    ("GET", "/runs/{}/stream"),
    ("POST", "/runs/{}/cancel"),
    ("POST", "/runs/{}/stream-ticket"),
]
NO_IDS = [CANARY, "0", "null", f"{UNKNOWN}0", f"{{{CANARY}}}", "%00", "%ED%A0%80", quote("Ω" * 300), "'; --"]


@pytest.mark.parametrize(("method", "url"), THREAD_CALLS + RUN_CALLS)
async def test_what_is_not_yours_is_as_unknown_as_what_is_not_there(
    shared_api: Running, client: Client, method: str, url: str
) -> None:
    thread_id = await client.thread("echo")
    run = await client.ended((await client.run("hello", thread_id=thread_id))["id"])
    own = thread_id if url.startswith("/threads") else run["id"]
    noun = "thread" if url.startswith("/threads") else "run"
    async with Client(shared_api.url) as user, Client(shared_api.url, "other", client.user_id) as tenant:
        foreign = [await somebody.http.request(method, url.format(own)) for somebody in (user, tenant)]
    unknown = [await client.http.request(method, url.format(no_id)) for no_id in (UNKNOWN, *NO_IDS)]

    problems = [problem_of(response, 404, "not_found") for response in foreign + unknown]

    expected = {name: problems[0][name] for name in SAME_FOR_ALL}
    assert expected["detail"] == f"There is no such {noun}."
    assert all({name: problem[name] for name in SAME_FOR_ALL} == expected for problem in problems)
    assert all(response.headers.keys() == foreign[0].headers.keys() for response in foreign + unknown)
    assert len(await client.messages(thread_id)) == 2
    assert await client.read(run["id"]) == run


@pytest.mark.parametrize("path", ASKING)
async def test_nobody_asks_in_the_thread_of_somebody_else(shared_api: Running, client: Client, path: str) -> None:
    thread_id = await client.thread("echo")
    async with Client(shared_api.url) as user, Client(shared_api.url, "other", client.user_id) as tenant:
        for somebody, target in [(user, thread_id), (tenant, thread_id), (user, UNKNOWN)]:
            response = await somebody.http.post(path, json={"thread_id": target, "query": CANARY})
            assert problem_of(response, 404, "not_found")["detail"] == "There is no such thread."
            listed = await somebody.http.get("/runs", params={"thread_id": thread_id})
            assert listed.json() == {"items": [], "next_cursor": None}

    assert await client.messages(thread_id) == []
    assert (await client.http.get("/runs")).json()["items"] == []


def exchange(url: str, request: bytes) -> bytes:
    """Send bytes and nothing more, and read until the other side closes."""
    address = urlsplit(url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=30)) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def head(**headers: str) -> bytes:
    """Write the head of a query of an unknown user."""
    lines = {"Host": "x", "X-API-Key": KEYS["acme"], "X-User-ID": str(uuid4()), "Content-Type": "application/json"}
    return "".join(f"{name}: {value}\r\n" for name, value in {**lines, **headers}.items()).encode() + b"\r\n"


POST = b"POST /api/v1/runs HTTP/1.1\r\n"
GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nothing": b"",
    "empty lines": b"\r\n\r\n\r\n",
    "no method of HTTP": b"C4N4RY /api/v1/runs HTTP/1.1\r\n" + head(),
    "bytes in the path": b"GET /api/v1/runs/\xff\xfe\x00 HTTP/1.1\r\n" + head(),
    "an address that is none": b"GET http://[::1 HTTP/1.1\r\n" + head(),
    "a header without a name": POST + b": c4n4ry\r\n" + head(),
    "a NUL in a header": POST + b"X-Anything: c4n4ry\0\r\n" + head(),
    "half a head": POST + head()[:-20],
    "a length that is none": POST + head(**{"Content-Length": "c4n4ry"}) + b"{}",
    "a negative length": POST + head(**{"Content-Length": "-5"}) + b"{}",
    "a length beyond numbers": POST + head(**{"Content-Length": "9" * 40}) + b"{}",
    "two lengths": POST + b"Content-Length: 3\r\n" + head(**{"Content-Length": "5"}) + b"{}   ",
    "a length and chunks": POST + head(**{"Content-Length": "2", "Transfer-Encoding": "chunked"}) + b"0\r\n\r\n",
    "chunks that are none": POST + head(**{"Transfer-Encoding": "chunked"}) + b"c4n4ry\r\n\r\n",
    "a body shorter than it says": POST + head(**{"Content-Length": "500"}) + json.dumps(QUERY).encode(),
    "a body longer than it says": POST + head(**{"Content-Length": "5"}) + json.dumps(QUERY).encode(),
    "a request within a request": POST + head(**{"Content-Length": "2"}) + b"{}" + POST + b"c4n4ry\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", GARBAGE.values(), ids=GARBAGE)
async def test_what_is_not_http_hurts_nobody_else(shared_api: Running, client: Client, request_bytes: bytes) -> None:
    answer = exchange(shared_api.url, request_bytes)

    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 "))
    assert CANARY.encode() not in answer.lower()
    assert (await client.ask("hello", agent_type="echo")).status_code == 200
    assert shared_api.process.poll() is None


async def test_a_head_that_does_not_end_is_cut_off(shared_api: Running, client: Client) -> None:
    address = urlsplit(shared_api.url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=30)) as connection:
        connection.sendall(b"GET /api/v1/runs HTTP/1.1\r\nX-Anything: " + b"x" * 70_000)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert (await client.http.get("/runs")).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
fields = ["agent_type", "thread_id", "query", "metadata", "deadline_s", "multitask_strategy", "on_disconnect"]
bodies = json_values | st.dictionaries(
    st.sampled_from(fields) | st.text(st.characters()),
    json_values | st.sampled_from(["echo", "enqueue", "cancel", UNKNOWN, 1]),
    max_size=5,
)


@creating
@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies.map(json.dumps).map(str.encode) | st.binary())
def test_no_body_breaks_anything(shared_api: Running, path: str, body: bytes) -> None:
    headers = {"X-API-Key": KEYS["acme"], "X-User-ID": str(uuid4()), "Content-Type": "application/json"}

    with httpx.Client(base_url=f"{shared_api.url}/api/v1", headers=headers, verify=False, timeout=60) as caller:
        response = caller.post(path, content=body, headers={"Prefer": "wait=0"})

    assert response.status_code < 500
    if response.is_error:
        problem_of(response, response.status_code)
