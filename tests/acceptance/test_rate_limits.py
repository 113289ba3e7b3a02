"""What one user or tenant may take of an API process, and that others keep their share."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import AsyncExitStack
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from agent_relay.api.problems import Refused
from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.api.requests.rate_limits import Limits, OpenCalls, RequestRate
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.shared.database import connect
from agent_relay.shared.fair_turns import CALLER
from agent_relay.shared.key_format import hash_key
from agent_relay.shared.settings import Settings
from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import KEYS, Service

ANNE, BOB, EVE = Owner("acme", uuid4()), Owner("acme", uuid4()), Owner("other", uuid4())
HALF_A_BATCH = (
    b"POST /api/v1/batches HTTP/1.1\r\nHost: relay\r\nX-API-Key: key-of-acme\r\nX-User-ID: %s\r\n"
    b'Content-Type: application/json\r\nContent-Length: 5000000\r\n\r\n{"agent_type": "echo", "items": ['
)
LARGE_ITEM = b'{"custom_id": "%d", "query": "' + b"x" * 100_000 + b'"}, '


def settings(**chosen: object) -> Settings:
    return Settings(database_url="postgresql://no/where", redis_url="redis://nowhere", **chosen)  # pyright: ignore[reportArgumentType]


def refusal(calls: OpenCalls, caller: Owner) -> str | None:
    """Open a call; say the code of the refusal."""
    try:
        calls.open(caller)
    except Refused as refused:
        return refused.code
    return None


def test_calls_are_limited_by_user_by_tenant_and_in_all() -> None:
    calls = OpenCalls(4, 3, 2, "calls")
    first = calls.open(ANNE)
    assert refusal(calls, ANNE) is None
    assert refusal(calls, ANNE) == "user_calls_full"
    assert refusal(calls, BOB) is None
    assert refusal(calls, BOB) == "tenant_calls_full"
    assert refusal(calls, EVE) is None
    assert refusal(calls, EVE) == "calls_full"
    first.close()
    first.close()
    assert refusal(calls, EVE) is None
    assert refusal(calls, Owner("third", uuid4())) == "calls_full"


def test_room_is_given_back_where_opening_a_stream_fails() -> None:
    calls = OpenCalls(1, 0, 0, "calls")
    with pytest.raises(ValueError, match="no stream"), calls.open(ANNE).kept():
        raise ValueError("no stream")
    with calls.open(ANNE).kept() as kept:
        pass
    assert refusal(calls, ANNE) == "calls_full"
    kept.close()
    assert not len(calls)


async def test_requests_are_limited_by_user_and_by_tenant() -> None:
    rate = RequestRate(2, 3)
    for left in reversed(range(10)):
        assert (await rate.take(ANNE))["RateLimit"] == f'"user";r={left};t=5'
    with pytest.raises(Refused) as refused:
        await rate.take(ANNE)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    assert refused.value.headers["RateLimit"] == '"user";r=0;t=5'
    for _ in range(5):
        await rate.take(BOB)
    with pytest.raises(Refused, match="this tenant"):
        await rate.take(BOB)
    assert (await rate.take(EVE))["RateLimit-Policy"] == '"user";q=10;w=5'


async def test_no_limit_of_requests_says_nothing() -> None:
    assert await RequestRate(0, 0).take(ANNE) == {}


async def test_callers_are_forgotten_rather_than_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_relay.api.requests.rate_limits.REMEMBERED", 10)
    rate = RequestRate(1, 0)
    for _ in range(100):
        await rate.take(Owner("acme", uuid4()))
    assert len(rate) == 10


def test_by_default_nobody_may_take_all() -> None:
    chosen = settings()
    assert 0 < chosen.queued_per_user < chosen.queued_per_tenant < chosen.max_queued
    assert 0 < chosen.batch_unfinished_per_tenant < chosen.max_batch_unfinished
    limits = Limits.of(chosen, connections=100)
    for _ in range(25):
        assert refusal(limits.calls, ANNE) is None
    assert refusal(limits.calls, ANNE) == "user_calls_full"
    assert refusal(limits.calls, EVE) is None


@pytest.mark.parametrize(
    ("wanted", "whole", "told"), [(None, 10, 2), (None, 0, 0), (None, 1, 1), (0, 10, 0), (7, 10, 7)]
)
def test_a_share_follows_the_whole_unless_it_is_set(wanted: int | None, whole: int, told: int) -> None:
    assert settings(max_queued=whole, max_queued_per_user=wanted).queued_per_user == told


async def test_open_streams_and_waits_are_counted_and_given_back(service: Service) -> None:
    api = service.api(MAX_OPEN_CALLS="9", MAX_OPEN_CALLS_PER_USER="2")
    service.worker()
    async with Client(api.url) as anne, Client(api.url) as bob, AsyncExitStack() as streams:
        await streams.enter_async_context(anne.asking("/nowhere", agent_type="patient"))
        events = await streams.enter_async_context(anne.asking("/nowhere", agent_type="patient"))
        run_id = (await anext(events))["run_id"]
        refused = await anne.http.post("/agent/stream", json={"query": "?", "agent_type": "patient"})
        assert problem_of(refused, 429, "user_calls_full")
        assert refused.headers["Retry-After"]
        for response in (
            await anne.http.get(f"/runs/{run_id}/stream"),
            await anne.http.get(f"/runs/{run_id}?wait=10"),
            await anne.http.post("/agent/query", json={"query": "?", "agent_type": "echo"}),
        ):
            problem_of(response, 429, "user_calls_full")
        assert len((await anne.http.get("/runs")).json()["items"]) == 2, "a refused call stored a run"
        assert (await anne.http.get(f"/runs/{run_id}")).is_success
        assert (await bob.ask("hello", agent_type="echo")).is_success
        assert (await anne.http.post(f"/runs/{run_id}/cancel")).status_code in {200, 202}
        await streams.aclose()

        async def again() -> bool:
            return (await anne.ask("hello", agent_type="echo")).is_success

        await soon(again)


async def test_a_caller_that_sends_too_much_is_slowed_down_alone(service: Service) -> None:
    api = service.api(MAX_REQUESTS_PER_SECOND_PER_USER="2")
    async with Client(api.url) as anne, Client(api.url) as bob:
        responses = await asyncio.gather(*(anne.http.get("/threads") for _ in range(30)))
        refused = [response for response in responses if response.status_code == 429]
        assert 10 <= len(refused) <= 20
        assert problem_of(refused[0], 429, "too_many_requests")
        assert refused[0].headers["RateLimit-Policy"] == '"user";q=10;w=5'
        assert (await bob.http.get("/threads")).headers["RateLimit"] == '"user";r=9;t=5'


async def test_batches_that_never_arrive_take_a_share_only(service: Service) -> None:
    api = service.api(MAX_UPLOADS="4", REQUEST_SECONDS="600")
    service.worker()
    port = int(api.url.rpartition(":")[2])
    async with Client(api.url) as anne, Client(api.url) as bob:
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(HALF_A_BATCH % anne.user_id.encode() + b"".join(LARGE_ITEM % n for n in range(6)))
            large = [{"custom_id": str(n), "query": "x" * 100_000} for n in range(6)]
            body = {"agent_type": "echo", "items": large}
            small = {"agent_type": "echo", "items": [{"custom_id": "1", "query": "hello"}]}

            async def is_counted() -> bool:
                response = await anne.http.post("/batches", json=body)
                return response.status_code == 429

            await soon(is_counted)
            assert (await bob.http.post("/batches", json=body)).status_code == 202
            assert (await anne.http.post("/batches", json=small)).status_code == 202
        await soon(lambda: _accepted(anne, body))


async def _accepted(client: Client, body: object) -> bool:
    return (await client.http.post("/batches", json=body)).status_code == 202


async def test_the_room_on_disk_is_limited_and_given_back(service: Service) -> None:
    api = service.api(MAX_UPLOAD_BYTES=str(1 << 20))
    service.worker()
    async with Client(api.url) as anne:
        large = {"agent_type": "echo", "items": [{"custom_id": str(n), "query": "x" * 100_000} for n in range(15)]}
        small = {"agent_type": "echo", "items": large["items"][:5]}
        for _ in range(3):
            response = await anne.http.post("/batches", json=large)
            assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert response.headers["Retry-After"]
            assert (await anne.http.post("/batches", json=small)).status_code == 202


async def test_the_pools_know_whom_a_request_is_of() -> None:
    router = APIRouter(route_class=StrictRoute)

    @router.get("/caller")
    async def caller() -> list[str]:  # pyright: ignore[reportUnusedFunction]
        return list(CALLER.get())

    app = FastAPI()
    app.include_router(router)
    known = settings(api_keys={hash_key(key.encode()): tenant for tenant, key in KEYS.items()})
    app.state.settings = known
    app.state.keys = KeyCache(known, connect(known), lambda _: None, lambda _: None)
    app.state.limits = Limits.of(known, 10)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://relay") as client:
        for owner in (ANNE, EVE):
            headers = {"X-API-Key": KEYS[owner.tenant], "X-User-ID": str(owner.user_id)}
            response = await client.get("/caller", headers=headers)
            assert response.json() == [owner.tenant, str(owner.user_id)]


REFUSED = [
    ("GET", "/runs?limit=1_0", None, 422),
    ("GET", "/runs?cursor=none", None, 400),
    ("GET", "/runs/0198c5a4-7c9e-7000-8000-0000000000a1", None, 404),
    ("GET", "/threads/none", None, 404),
    ("POST", "/runs", b"{", 400),
    ("POST", "/runs", b"{}", 422),
    ("POST", "/runs", b'{"agent_type": "nobody", "query": "?"}', 422),
    ("POST", "/runs", b" " * (1100 << 10), 413),
    ("POST", "/batches", b"{", 400),
    ("POST", "/runs/0198c5a4-7c9e-7000-8000-0000000000a1/cancel", None, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
async def test_a_refusal_says_how_many_requests_are_left(
    client: Client, method: str, path: str, body: bytes | None, status: int
) -> None:
    headers = {} if body is None else {"Content-Type": "application/json"}
    first, second = [await client.http.request(method, path, content=body, headers=headers) for _ in range(2)]

    assert (first.status_code, second.status_code) == (status, status)
    for each in (first, second):
        assert re.fullmatch(r'"user";r=[1-9][0-9]*;t=5', each.headers["ratelimit"])
    assert first.headers["ratelimit-policy"] == second.headers["ratelimit-policy"] == '"user";q=1000;w=5'


async def test_a_rotation_that_comes_too_soon_says_so_too(client: Client) -> None:
    answers = [await client.http.post("/webhooks/secret/rotate") for _ in range(2)]

    assert answers[1].status_code == 429
    assert "ratelimit" in answers[1].headers
    assert int(answers[1].headers["retry-after"]) > 0
