"""One spelling for each request: what proxies, caches and browsers may read in another way is refused."""

from __future__ import annotations

import base64
import json
import socket
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import pytest

from agent_relay.shared.key_format import hash_key
from tests.support.client import Client
from tests.support.problems import errors_of, problem_of
from tests.support.service import OPERATOR_KEY, Running, Service

GET = b"GET /health/live HTTP/1.1\r\n"
POST = b"POST /api/v1/runs HTTP/1.1\r\n"
HOST = b"Host: relay\r\n"
END = b"Connection: close\r\n\r\n"


def exchange(api: Running, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read the status, the headers and the body of the answer."""
    address = urlsplit(api.url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=30)) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = [each.partition(": ")[::2] for each in lines]
    return int(line.split()[1]), {name.lower(): value for name, value in headers}, body


@pytest.mark.parametrize(
    "request_",
    [
        GET + HOST + HOST + END,
        GET + HOST + b"host: other\r\n" + END,
        GET + END,
        b"GET /health/live HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
        *(GET + b"Host: " + host + b"\r\n" + END for host in (b"a b", b"a/b", b"a@b", b"a,b:80:80", b"[::1", b"\xe4")),
        *(
            POST + HOST + b"Transfer-Encoding: " + coding + b"\r\n" + END + b"0\r\n\r\n"
            for coding in (b"gzip, chunked", b"gzip", b"identity", b"chunked, chunked", b"xchunked", b"\x0bchunked")
        ),
        POST + HOST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n" + END + b"0\r\n\r\n",
        b"POST /api/v1/runs HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n" + END + b"0\r\n\r\n",
        POST + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n" + END + b"0\r\n\r\n",
        *(
            POST + HOST + b"Content-Length: " + length + b"\r\n" + END + b"{}"
            for length in (
                b"2\r\nContent-Length: 2",
                b"2\r\nContent-Length: 3",
                b"2, 2",
                b"+2",
                b"-1",
                b"0x2",
                b"",
                b"2_0",
            )
        ),
        GET + HOST + b"X-Folded: a\r\n b\r\n" + END,
        GET + HOST + b"X-Folded: a\r\n\tb\r\n" + END,
        *(GET + HOST + b"X-Odd: a" + odd + b"c\r\n" + END for odd in (b"\0", b"\r", b"\n", b"\x01", b"\x7f")),
        GET + HOST + b"X-Odd : a\r\n" + END,
        b"GET /health/live HTTP/2.0\r\n" + HOST + END,
        b"GET /health/live HTTP/3.7\r\n" + HOST + END,
        b"GET /health/live\r\n\r\n",
        b"GET /health/live#top HTTP/1.1\r\n" + HOST + END,
    ],
)
def test_a_head_that_others_may_read_differently_is_refused(shared_api: Running, request_: bytes) -> None:
    status, headers, body = exchange(shared_api, request_)

    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(body)["code"] == "malformed_request"


@pytest.mark.parametrize(
    "host",
    [b"relay", b"relay:8000", b"127.0.0.1:80", b"[::1]:8000", b"[::1]", b"RELAY.example.com.", b"a_b", b"", b"a:"],
)
def test_a_host_that_a_url_may_have_is_taken(shared_api: Running, host: bytes) -> None:
    assert exchange(shared_api, GET + b"Host: " + host + b"\r\nTE: trailers\r\n" + END)[0] == 200


def test_http_1_0_needs_no_host(shared_api: Running) -> None:
    assert exchange(shared_api, b"GET /health/live HTTP/1.0\r\n\r\n")[0] == 200


def test_after_a_good_request_a_bad_one_does_not_take_its_answer(shared_api: Running) -> None:
    status, _, body = exchange(shared_api, GET + HOST + b"\r\n" + GET + HOST + HOST + END)

    assert status == 200
    assert body.count(b"HTTP/1.1") <= 1


SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (200, GET + HOST + END),
        (200, b"GET /metrics HTTP/1.1\r\n" + HOST + END),
        (200, b"HEAD /openapi.json HTTP/1.1\r\n" + HOST + END),
        (401, b"GET /api/v1/runs HTTP/1.1\r\n" + HOST + END),
        (404, b"GET /nowhere HTTP/1.1\r\n" + HOST + END),
        (405, b"DELETE /health/live HTTP/1.1\r\n" + HOST + END),
        (404, b"OPTIONS * HTTP/1.1\r\n" + HOST + END),
        (400, b"NONSENSE\r\n\r\n"),
        (400, GET + END),
        (431, GET + HOST + b"X-Long: " + b"x" * (100 << 10) + b"\r\n" + END),
    ],
)
def test_every_response_says_what_browsers_and_caches_may_do(shared_api: Running, status: int, request_: bytes) -> None:
    answered, headers, _ = exchange(shared_api, request_)

    assert answered == status
    assert headers.items() >= SAFE.items()
    assert "x-request-id" in headers


async def test_answers_to_a_user_say_what_browsers_and_caches_may_do(client: Client) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])
    ordinary = await client.http.get("/runs")
    made = await client.http.post("/threads", json={"agent_type": "echo"})
    stream = await client.http.get(f"/runs/{run['id']}/stream")
    of_run = await client.http.get(f"/runs/{run['id']}")
    unchanged = await client.http.get(f"/runs/{run['id']}", headers={"If-None-Match": of_run.headers["etag"]})

    assert [response.status_code for response in (ordinary, made, stream, of_run, unchanged)] == [
        200,
        201,
        200,
        200,
        304,
    ]
    for response in (ordinary, made, stream):
        assert response.headers.items() >= SAFE.items()
    for response in (of_run, unchanged):
        assert response.headers.items() >= (SAFE | {"cache-control": "no-cache"}).items()
        assert len(response.headers.get_list("cache-control")) == 1


async def test_a_preflight_says_it_too(service: Service) -> None:
    api = service.api(CORS_ORIGINS="https://app.example.com")
    asked = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with httpx.AsyncClient(base_url=api.url) as http:
        response = await http.options("/api/v1/runs", headers=asked)
        refused = await http.post("/api/v1/runs", headers={"Origin": "https://app.example.com"})

    assert response.status_code == 200
    assert response.headers.items() >= SAFE.items()
    allowed = response.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type"} <= {name.strip() for name in allowed.split(",")}
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"


async def test_the_page_keeps_no_key_and_runs_no_script_but_its_own(shared_api: Running) -> None:
    async with httpx.AsyncClient(base_url=shared_api.url) as http:
        page = await http.get("/docs")
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))

    assert '"persistAuthorization": false' in page.text
    assert 'localStorage.removeItem("authorized")' in page.text
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert policy["script-src"].count("sha256-") == page.text.count("<script>") == 2
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "limit", ["1_0", "+5", "\uff15", " 5", "5 ", "05", "5.0", "1e1", "0x5", "-0x5", "\u0665", "5\n", "--5"]
)
async def test_a_whole_number_is_written_in_plain_digits(client: Client, limit: str) -> None:
    for path in ("/runs", "/threads", "/batches", "/webhooks/deliveries"):
        assert errors_of(await client.http.get(path, params={"limit": limit})) == {("?limit", "int_parsing")}


@pytest.mark.parametrize(
    "wait",
    [
        "1_0",
        "+1",
        " 1",
        ".5",
        "1.",
        "infinity",
        "-inf",
        "NaN",
        "\uff11",
        "0x1",
        "01",
        "1e",
        "e1",
        "1e1_0",
        "1e+",
        "1e1.5",
    ],
)
async def test_a_number_is_written_as_json_writes_it(client: Client, wait: str) -> None:
    run = await client.run("hello", agent_type="echo")

    response = await client.http.get(f"/runs/{run['id']}", params={"wait": wait})

    assert errors_of(response) == {("?wait", "float_parsing")}


@pytest.mark.parametrize("value", ["yes", "1", "on", "y", "t", "True", "TRUE", "", "0", "off", "no"])
async def test_yes_and_no_are_written_true_and_false(client: Client, value: str) -> None:
    run = await client.run("hello", agent_type="echo")
    batch = await client.http.post(
        "/batches", json={"agent_type": "echo", "items": [{"custom_id": "a", "query": "hello"}]}
    )

    assert errors_of(await client.http.get(f"/runs/{run['id']}/stream", params={"deltas": value})) == {
        ("?deltas", "bool_parsing")
    }
    path = f"/batches/{batch.json()['id']}/results"
    assert errors_of(await client.http.get(path, params={"follow": value})) == {("?follow", "bool_parsing")}


@pytest.mark.parametrize("spelling", ["{{{}}}", "urn:uuid:{}", "{}\n", " {}"])
async def test_an_id_has_one_spelling(client: Client, spelling: str) -> None:
    thread_id = await client.thread("echo")
    without_dashes = thread_id.replace("-", "")

    for odd in (spelling.format(thread_id), without_dashes):
        response = await client.http.get("/runs", params={"thread_id": odd})
        assert errors_of(response) == {("?thread_id", "uuid_parsing")}
        problem_of(await client.http.get(f"/threads/{quote(odd)}"), 404, "not_found")
    assert (await client.http.get(f"/threads/{thread_id.upper()}")).status_code == 200


async def test_plain_parameters_are_taken(client: Client) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])

    assert (await client.http.get("/runs?limit=5")).status_code == 200
    for wait in ("0.25", "2", "1e-05", "5e-324", "1E1", "1.5e+0"):
        assert (await client.http.get(f"/runs/{run['id']}", params={"wait": wait})).status_code == 200
    assert (await client.http.get(f"/runs/{run['id']}/stream?deltas=true")).status_code == 200


@pytest.mark.parametrize("tenant", ["a\0b", "\0", "Acme", "a b", "a" * 64, "acme\n"])
async def test_a_tenant_is_asked_for_by_its_name(client: Client, tenant: str) -> None:
    response = await client.http.get("/operator/keys", params={"tenant": tenant}, headers={"X-API-Key": OPERATOR_KEY})

    assert errors_of(response) == {("?tenant", "string_pattern_mismatch")}


# Cursors


def written(values: Any) -> str:
    """Write values the way that cursors are written, without the signature."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


async def _cursor(client: Client, path: str) -> str:
    cursor: str = (await client.http.get(path, params={"limit": 1})).json()["next_cursor"]
    return cursor


async def test_a_cursor_is_of_its_list_and_its_user(shared_api: Running, client: Client) -> None:
    threads = [await client.thread("echo") for _ in range(2)]
    for thread_id in (threads[0], threads[1], threads[1]):
        await client.ended((await client.run("hello", thread_id=thread_id))["id"])
    of_runs, of_threads = await _cursor(client, "/runs"), await _cursor(client, "/threads")
    of_messages = await _cursor(client, f"/threads/{threads[1]}/messages")
    async with Client(shared_api.url) as user, Client(shared_api.url, "other", client.user_id) as tenant:
        for other in (user, tenant):
            for path, cursor in (("/runs", of_runs), ("/threads", of_threads)):
                problem_of(await other.http.get(path, params={"cursor": cursor}), 400, "malformed_cursor")
    for path, cursor in (
        ("/runs", of_threads),
        ("/threads", of_runs),
        ("/batches", of_runs),
        ("/webhooks/deliveries", of_runs),
        (f"/threads/{threads[0]}/messages", of_messages),
        (f"/threads/{threads[1]}/messages", of_runs),
    ):
        problem_of(await client.http.get(path, params={"cursor": cursor}), 400, "malformed_cursor")

    for path, cursor in (
        ("/runs", of_runs),
        ("/threads", of_threads),
        (f"/threads/{threads[1]}/messages", of_messages),
        (f"/threads/{threads[1].upper()}/messages", of_messages),
    ):
        assert (await client.http.get(path, params={"cursor": cursor})).status_code == 200


async def test_a_cursor_that_was_changed_or_made_up_is_refused(client: Client) -> None:
    thread_id = await client.thread("echo")
    for _ in range(2):
        await client.ended((await client.run("hello", thread_id=thread_id))["id"])
    path = f"/threads/{thread_id}/messages"
    cursor = await _cursor(client, path)
    changed = cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BB")
    made_up = [written([position]) for position in (-1, 0, 1, 10**6, 2**62, 2**63, -(2**63))]
    signature = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[:12]
    forged = base64.urlsafe_b64encode(signature + b"[1000000]").decode().rstrip("=")

    for odd in (changed, cursor + "=", cursor + "A", cursor[:-1], forged, "", "é", "\0", "A" * 10_000, *made_up):
        problem_of(await client.http.get(path, params={"cursor": odd}), 400, "malformed_cursor")
    assert (await client.http.get(path, params={"cursor": cursor})).status_code == 200


async def test_a_cursor_is_good_in_every_process(service: Service) -> None:
    first, second = service.api(), service.api()
    service.worker()
    async with Client(first.url) as client, Client(second.url, user_id=client.user_id) as again:
        for _ in range(2):
            await client.thread("bank_support")
        page = (await client.http.get("/threads", params={"limit": 1})).json()
        rest = (await again.http.get("/threads", params={"cursor": page["next_cursor"]})).json()

    assert len(rest["items"]) == 1
    assert rest["items"][0]["id"] != page["items"][0]["id"]


@pytest.mark.parametrize(
    "after",
    [
        "",
        "\u0661-1",
        "1-\u0661",
        "-1",
        "1--1",
        "0x1-1",
        "99999999999999999999-1",
        "1-1 ",
        "01-1",
        "1-01",
        "8002303451-0",
        "0-5920870707",
    ],
)
async def test_a_stream_has_plain_cursors(client: Client, after: str) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])

    response = await client.http.get(f"/runs/{run['id']}/stream", params={"after": after})

    problem_of(response, 400, "malformed_cursor")


@pytest.mark.parametrize("after", ["1-999", "1-2147483647", "2-2", "3-0", "0-0", "0-2"])
async def test_a_stream_goes_on_only_where_it_has_been(client: Client, after: str) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])

    response = await client.http.get(f"/runs/{run['id']}/stream", params={"after": after})

    problem_of(response, 400, "impossible_cursor")


async def test_a_stream_goes_on_after_each_event_that_it_has_told(client: Client) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])
    path = f"/runs/{run['id']}/stream"
    told = [json.loads(line)["id"] for line in (await client.http.get(path)).text.splitlines()]

    for number, event_id in enumerate(told):
        rest = (await client.http.get(path, params={"after": event_id})).text.splitlines()
        assert [json.loads(line)["id"] for line in rest] == told[number + 1 :]


async def test_a_cursor_that_another_one_overrules_is_read_too(client: Client) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])
    path, headers = f"/runs/{run['id']}/stream", {"Last-Event-ID": "0-1"}

    for name in ("after", "lastEventId", "last-event-id", "evs_last_event_id"):
        problem_of(await client.http.get(path, params={name: "x"}, headers=headers), 400, "malformed_cursor")


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id"])
async def test_a_polyfill_that_has_seen_nothing_begins_at_the_beginning(client: Client, name: str) -> None:
    run = await client.ended((await client.run("hello", agent_type="echo"))["id"])

    response = await client.http.get(f"/runs/{run['id']}/stream", params={name: ""})

    assert json.loads(response.text.splitlines()[0])["event"] == "message_created"


@pytest.mark.parametrize("after", ["", "\u0661", "-1", "1_0", "+0", " 0", "00", "0.0", "9" * 30])
async def test_the_results_of_a_batch_have_plain_cursors(client: Client, after: str) -> None:
    batch = await client.http.post(
        "/batches", json={"agent_type": "echo", "items": [{"custom_id": "a", "query": "hello"}]}
    )

    response = await client.http.get(f"/batches/{batch.json()['id']}/results", params={"after": after})

    problem_of(response, 400, "malformed_cursor")


# Idempotency keys


async def _asked(api: str, client: Client, path: str, key: str) -> httpx.Response:
    """Ask under a key, by a path that nothing makes plain on the way."""
    body = b'{"agent_type": "bank_support", "query": "hello"}'
    headers = {**client.http.headers, "Content-Type": "application/json", "Idempotency-Key": key}
    async with httpx.AsyncClient() as http:
        url = httpx.URL(api).copy_with(raw_path=path.encode())
        return await http.post(url, content=body, headers=headers)


@pytest.mark.parametrize(
    ("prefix", "spellings"),
    [
        ("", ["/api/v1/%72uns", "/%61pi/v1/runs", "/api%2Fv1/runs", "/api/v1/runs?"]),
        ("/relay", ["/relay/api/v1/runs", "/api/v1/runs", "/relay/api/v1/%72uns"]),
        ("/api", ["/api/api/v1/runs", "/api/v1/runs"]),
    ],
)
async def test_the_same_call_by_another_spelling_of_its_path_creates_once(
    service: Service, prefix: str, spellings: list[str]
) -> None:
    plain, prefixed = service.api(), service.api(ROOT_PATH=prefix)
    service.worker()
    key = str(uuid4())
    async with Client(plain.url) as client:
        first = await _asked(plain.url, client, "/api/v1/runs", key)
        again = [await _asked(prefixed.url, client, path, key) for path in spellings]
        runs = (await client.http.get("/runs")).json()["items"]

    assert first.status_code == 202
    assert [response.headers["idempotency-replayed"] for response in again] == ["true"] * len(spellings)
    assert {response.json()["id"] for response in again} == {first.json()["id"]}
    assert len(runs) == 1


@pytest.mark.parametrize(
    "path",
    [
        "//api/v1/runs",
        "/api//v1/runs",
        "/api/v1/runs/",
        "/api/v1/runs%0A",
        "/API/v1/runs",
        "/api/v1/runs;a=b",
        "/api/v1%0A/runs",
    ],
)
async def test_an_odd_spelling_of_a_path_is_not_there(shared_api: Running, client: Client, path: str) -> None:
    response = await _asked(shared_api.url, client, path, str(uuid4()))

    assert response.status_code == 404
    assert (await client.http.get("/runs")).json()["items"] == []


async def test_an_id_in_capitals_is_the_same_call(client: Client) -> None:
    batch = await client.http.post(
        "/batches", json={"agent_type": "breaks", "items": [{"custom_id": "a", "query": "hello"}]}
    )
    batch_id = batch.json()["id"]
    await client.http.get(f"/batches/{batch_id}/results", params={"follow": "true"}, timeout=60)
    headers = {"Idempotency-Key": str(uuid4())}

    first = await client.http.post(f"/batches/{batch_id}/retry", headers=headers)
    again = await client.http.post(f"/batches/{batch_id.upper()}/retry", headers=headers)

    assert first.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"


async def test_lists_of_operators_have_cursors_of_their_own(service: Service) -> None:
    api = service.api(OPERATOR_KEYS=f"ops:{hash_key(OPERATOR_KEY.encode())}")
    async with httpx.AsyncClient(base_url=f"{api.url}/api/v1/operator", headers={"X-API-Key": OPERATOR_KEY}) as http:
        for name in ("one", "two"):
            assert (await http.post("/keys", json={"tenant": name})).status_code == 201
        cursor = (await http.get("/keys", params={"limit": 1})).json()["next_cursor"]

        assert len((await http.get("/keys", params={"cursor": cursor})).json()["items"]) == 1
        problem_of(await http.get("/dead-letters", params={"cursor": cursor}), 400, "malformed_cursor")
