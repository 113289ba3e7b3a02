"""Tokens of users: what a browser may be given. They allow no more than they say, nor more than their key."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from agent_relay.api.requests.key_cache import KeyCache, KeysUnknown
from agent_relay.api.requests.user_tokens import UserTokens
from agent_relay.shared import database
from agent_relay.shared.clock import now
from agent_relay.shared.key_format import hash_key
from agent_relay.shared.settings import Settings
from tests.support.client import Client, names, read_events
from tests.support.eventually import soon
from tests.support.problems import CANARY, errors_of, problem_of
from tests.support.service import KEYS, OPERATOR_KEY, Running, Service, serving

ANN = "auth0|ann"
SECRET = "a secret of the service for tests"


@dataclass(frozen=True)
class Deployment:
    """A service with two API processes."""

    service: Service
    apis: tuple[Running, Running]


@pytest.fixture(scope="module")
def deployment(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Two API processes, whose secret the tests know, and a worker."""
    environment = {"TICKET_SECRET": SECRET, "CORS_ORIGINS": "https://app.example.com"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), environment) as service:
        apis = service.api(), service.api()
        service.worker()
        yield Deployment(service, apis)


@pytest.fixture
async def backend(deployment: Deployment) -> AsyncGenerator[httpx.AsyncClient]:
    """The tenant's own server, which makes tokens at the first API process. It names no user in its headers."""
    url = f"{deployment.apis[0].url}/api/v1"
    async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": KEYS["acme"]}, verify=False, timeout=60) as http:
        yield http


@pytest.fixture
async def http(deployment: Deployment) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the second API process, without anything."""
    async with httpx.AsyncClient(base_url=f"{deployment.apis[1].url}/api/v1", verify=False, timeout=60) as http:
        yield http


@pytest.fixture
async def ann(deployment: Deployment) -> AsyncGenerator[Client]:
    """A user of her own for each test, with the tenant's key."""
    async with Client(deployment.apis[1].url, user_id=f"{ANN} {uuid4()}") as client:
        yield client


async def made(backend: httpx.AsyncClient, user_id: str, **wanted: Any) -> dict[str, str]:
    """Make a token; returns the header that shows it."""
    response = await backend.post("/user-tokens", json={"user_id": user_id, "ttl_s": 600, **wanted})
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.json().keys() == {"token", "expires_at"}
    return {"Authorization": f"Bearer {response.json()['token']}"}


async def test_a_token_acts_as_its_user_and_says_who_that_is(
    backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    thread_id = await ann.thread("echo")
    token = await made(backend, ann.user_id)

    threads = (await http.get("/threads", headers=token)).json()["items"]
    answer = await http.post("/agent/query", headers=token, json={"thread_id": thread_id, "query": "hello"})
    same = await http.get("/threads", headers={**token, "X-User-ID": ann.user_id})
    as_uuid = await http.get("/threads", headers={**token, "X-User-ID": threads[0]["user_id"]})
    other = await http.get("/threads", headers={**token, "X-User-ID": "bob"})

    assert [thread["id"] for thread in threads] == [thread_id]
    assert (answer.status_code, answer.json()["response"]) == (200, "You said: hello")
    assert same.json()["items"][0]["id"] == as_uuid.json()["items"][0]["id"] == thread_id
    problem_of(other, 400, "bad_request")
    both = {**token, "X-API-Key": KEYS["acme"], "X-User-ID": ann.user_id}
    problem_of(await http.get("/threads", headers=both), 400, "bad_request")
    problem_of(await http.get("/threads", headers={"X-API-Key": token["Authorization"].split()[1]}), 401)
    problem_of(await http.get(f"/threads/{thread_id}", headers=await made(backend, "bob")), 404)


async def test_a_page_of_another_origin_may_use_one(deployment: Deployment, backend: httpx.AsyncClient) -> None:
    origin = {"Origin": "https://app.example.com"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with httpx.AsyncClient(base_url=deployment.apis[0].url, verify=False) as page:
        preflight = await page.options("/api/v1/runs", headers=origin | asked)
        listed = await page.get("/api/v1/runs", headers=origin | await made(backend, ANN))

    assert preflight.status_code == listed.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert listed.headers["access-control-allow-origin"] == origin["Origin"]


async def test_no_token_makes_rights_that_outlive_it_or_reads_what_is_of_the_tenant(
    deployment: Deployment, backend: httpx.AsyncClient, http: httpx.AsyncClient
) -> None:
    token = await made(backend, ANN)
    root = deployment.apis[1].url
    for method, url, body in (
        ("POST", "/user-tokens", {"user_id": ANN, "ttl_s": 60}),
        ("DELETE", "/user-tokens?user_id=bob", None),
        ("GET", "/usage", None),
        ("GET", "/webhooks/secret", None),
        ("POST", "/webhooks/secret/rotate", None),
        ("POST", f"{root}/console/codes", None),
        ("GET", f"{root}/console/session", None),
    ):
        problem_of(await http.request(method, url, headers=token, json=body), 403, "key_needed")
    problem_of(await http.get("/operator/keys", headers=token), 401)


async def test_who_makes_tokens_needs_a_key_and_no_user(
    backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    body = {"user_id": ann.user_id, "ttl_s": 60}
    bearer = {"Authorization": f"Bearer {KEYS['acme']}"}

    assert (await http.post("/user-tokens", json=body, headers=bearer)).status_code == 201
    assert (await ann.http.post("/user-tokens", json=body)).status_code == 201
    assert (await ann.http.post("/user-tokens", json={**body, "user_id": "bob"})).status_code == 201
    problem_of(await http.post("/user-tokens", json=body), 401)
    problem_of(await http.post("/user-tokens", json=body, headers={"X-API-Key": OPERATOR_KEY}), 401)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"ttl_s": 0}, "/ttl_s"),
        ({"ttl_s": 86_401}, "/ttl_s"),
        ({"ttl_s": "60"}, "/ttl_s"),
        ({"user_id": ""}, "/user_id"),
        ({"user_id": f"{CANARY} "}, "/user_id"),
        ({"user_id": "x" * 129}, "/user_id"),
        ({"user_id": "ä"}, "/user_id"),
        ({"threads": []}, "/threads"),
        ({"threads": ["x"]}, "/threads/0"),
        ({"agent_types": []}, "/agent_types"),
        ({"scopes": []}, "/scopes"),
    ]
    for wrong, where in refused:
        response = await backend.post("/user-tokens", json={**body, **wrong})
        assert {pointer for pointer, _ in errors_of(response)} == {where}
    assert errors_of(await backend.delete("/user-tokens")) == {("?user_id", "missing")}
    assert {pointer for pointer, _ in errors_of(await backend.delete("/user-tokens?user_id="))} == {"?user_id"}


# What a token is restricted to.


async def test_a_token_that_only_reads(backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client) -> None:
    run = await ann.ended((await ann.run("hello", thread_id=await ann.thread("echo")))["id"])
    token = await made(backend, ann.user_id, read_only=True)
    thread, one = f"/threads/{run['thread_id']}", f"/runs/{run['id']}"

    for url in ("/threads", thread, f"{thread}/messages", "/runs", one, f"{one}/stream", "/agents", "/batches"):
        assert (await http.get(url, headers=token)).status_code == 200, url
    assert (await http.post(f"{one}/stream-ticket", headers=token)).status_code == 201
    query = {"thread_id": run["thread_id"], "query": "?"}
    for method, url, body in (
        ("POST", "/threads", {"agent_type": "echo"}),
        ("PATCH", thread, {"title": "x"}),
        ("DELETE", thread, None),
        ("POST", f"{thread}/fork", {}),
        ("POST", "/runs", query),
        ("POST", "/agent/query", query),
        ("POST", "/agent/stream", query),
        ("POST", f"{one}/cancel", None),
        ("POST", f"{one}/messages", {"query": "?"}),
        ("POST", "/batches", {"agent_type": "echo", "items": [{"custom_id": "1", "query": "?"}]}),
        ("POST", "/schedules", {"agent_type": "echo", "query": "?", "cron": "@daily"}),
    ):
        problem_of(await http.request(method, url, headers=token, json=body), 403, "token_read_only")


async def test_for_a_token_of_some_threads_nothing_else_exists(
    backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    seen, hidden = await ann.thread("echo"), await ann.thread("echo")
    run, hidden_run = await ann.run("hello", thread_id=seen), await ann.run("hello", thread_id=hidden)
    stateless = await ann.run("hello", agent_type="echo")
    token = await made(backend, ann.user_id, threads=[seen])

    assert [each["id"] for each in (await http.get("/threads", headers=token)).json()["items"]] == [seen]
    assert [each["id"] for each in (await http.get("/runs", headers=token)).json()["items"]] == [run["id"]]
    assert (await http.get(f"/runs?thread_id={hidden}", headers=token)).json()["items"] == []
    for url in (f"/threads/{seen}", f"/threads/{seen}/messages", f"/runs/{run['id']}/steps", "/agents"):
        assert (await http.get(url, headers=token)).status_code == 200, url
    assert (await http.patch(f"/threads/{seen}", headers=token, json={"title": "x"})).status_code == 200
    asked = await http.post("/agent/query", headers=token, json={"thread_id": seen, "query": "again"})
    assert asked.json()["response"] == "You said: again"

    for noun, known, verbs in (("threads", hidden, ("", "/messages")), ("runs", hidden_run["id"], ("", "/stream"))):
        for verb in verbs:
            one = problem_of(await http.get(f"/{noun}/{known}{verb}", headers=token), 404)
            none = problem_of(await http.get(f"/{noun}/{uuid4()}{verb}", headers=token), 404)
            assert one["detail"] == none["detail"]
    problem_of(await http.get(f"/runs/{stateless['id']}", headers=token), 404)
    problem_of(await http.post(f"/runs/{stateless['id']}/cancel", headers=token), 404)
    problem_of(await http.delete(f"/threads/{hidden}", headers=token), 404)
    for path in ("/runs", "/agent/query", "/agent/stream"):
        problem_of(await http.post(path, headers=token, json={"thread_id": hidden, "query": "?"}), 404)
        stateless_query = {"agent_type": "echo", "query": "?"}
        problem_of(await http.post(path, headers=token, json=stateless_query), 403, "token_restricted")
    for method, url, body in (
        ("POST", "/threads", {"agent_type": "echo"}),
        ("POST", f"/threads/{seen}/fork", {}),
        ("POST", "/schedules", {"thread_id": seen, "query": "?", "cron": "@daily"}),
        ("GET", "/schedules", None),
        ("GET", "/batches", None),
        ("GET", "/webhooks/deliveries", None),
    ):
        problem_of(await http.request(method, url, headers=token, json=body), 403, "token_restricted")


async def test_a_token_of_some_threads_attaches_no_stored_file_since_it_may_be_of_another_thread(
    backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    seen = await ann.thread("echo")
    uploaded = await ann.http.post("/files", content="a secret", headers={"Content-Type": "text/plain"})
    stored, data = {"file_id": uploaded.json()["id"]}, {"data": "aGVsbG8=", "media_type": "text/plain"}
    token = await made(backend, ann.user_id, threads=[seen])
    of_all_threads = await made(backend, ann.user_id)
    run = await ann.run("hello", thread_id=seen)

    for path in ("/runs", "/agent/query", "/agent/stream", f"/runs/{run['id']}/messages"):
        target = {} if path.endswith("/messages") else {"thread_id": seen}
        for each in (stored, {"file_id": str(uuid4())}):
            asked = {"query": "What does it say?", "attachments": [data, each], **target}
            problem_of(await http.post(path, headers=token, json=asked), 403, "token_restricted")
    for headers, attached in ((token, data), (of_all_threads, stored)):
        asked = {"thread_id": seen, "query": "What does it say?", "attachments": [attached]}
        assert (await http.post("/agent/query", headers=headers, json=asked)).status_code == 200


async def test_a_token_is_restricted_to_threads_of_its_user(backend: httpx.AsyncClient, ann: Client) -> None:
    async with Client(str(ann.http.base_url).removesuffix("/api/v1/")) as bob:
        of_another = await bob.thread("echo")
    for thread_id in (of_another, str(uuid4())):
        wanted = {"user_id": ann.user_id, "ttl_s": 60, "threads": [await ann.thread("echo"), thread_id]}
        problem_of(await backend.post("/user-tokens", json=wanted), 404, "not_found")


async def test_a_token_asks_no_agents_but_its_own(
    backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    thread_id = await ann.thread("form")
    token = await made(backend, ann.user_id, agent_types=["echo"])

    assert [agent["agent_type"] for agent in (await http.get("/agents", headers=token)).json()] == ["echo"]
    allowed = await http.post("/agent/query", headers=token, json={"agent_type": "echo", "query": "hello"})
    assert allowed.status_code == 200
    for target in ({"agent_type": "form"}, {"thread_id": thread_id}):
        refused = await http.post("/runs", headers=token, json={**target, "query": "hello"})
        assert errors_of(refused) == {("/agent_type", "unknown_agent")}


async def test_a_token_never_allows_more_than_its_key(
    deployment: Deployment, backend: httpx.AsyncClient, http: httpx.AsyncClient
) -> None:
    async with httpx.AsyncClient(
        base_url=f"{deployment.apis[0].url}/api/v1/operator", headers={"X-API-Key": OPERATOR_KEY}, verify=False
    ) as operator:
        narrow = (await operator.post("/keys", json={"tenant": "acme", "scopes": ["ask"], "agents": ["echo"]})).json()
        key = {"X-API-Key": narrow["key"]}

        async def is_known() -> bool:
            known = [await each.get("/agents", headers={**key, "X-User-ID": ANN}) for each in (backend, http)]
            return all(response.status_code == 200 for response in known)

        await soon(is_known)
        wanted = {"user_id": ANN, "ttl_s": 60}
        refused = await http.post("/user-tokens", headers=key, json={**wanted, "agent_types": ["echo", "form"]})
        assert errors_of(refused) == {("/agent_types", "unknown_agent")}
        token = {
            "Authorization": "Bearer " + (await http.post("/user-tokens", headers=key, json=wanted)).json()["token"]
        }
        asked = {"query": "hello", "agent_type": "form"}
        assert errors_of(await http.post("/runs", headers=token, json=asked)) == {("/agent_type", "unknown_agent")}
        problem_of(await http.get("/batches", headers=token), 403, "scope_missing")
        assert (await http.get("/runs", headers=token)).status_code == 200

        await operator.delete(f"/keys/{narrow['id']}")

        async def is_void() -> bool:
            return (await http.get("/runs", headers=token)).status_code == 401

        await soon(is_void)


# How it ends.


async def test_revoked_tokens_are_void_everywhere_and_their_streams_end(
    deployment: Deployment, backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    token, of_bob = await made(backend, ann.user_id), await made(backend, "bob")
    body = {"agent_type": "patient", "query": "/nowhere"}
    run_id = (await http.post("/runs", headers=token, json=body)).json()["id"]
    ticket = (await http.post(f"/runs/{run_id}/stream-ticket", headers=token)).json()["url"].partition("/api/v1")[2]
    of_key = (await ann.http.post(f"/runs/{run_id}/stream-ticket")).json()["url"].partition("/api/v1")[2]
    async with (
        http.stream("GET", f"/runs/{run_id}/stream", headers=token) as stream,
        http.stream("GET", ticket) as by_ticket,
        ann.following(run_id) as by_key,
    ):
        told = [read_events(stream), read_events(by_ticket)]
        for events in (*told, by_key):
            assert (await anext(events))["event"] == "message_created"
        assert (await backend.delete("/user-tokens", params={"user_id": ann.user_id})).status_code == 204

        for events in told:
            assert "done" not in names([event async for event in events])
        problem_of(await http.get("/runs", headers=token), 401, "unauthorized")
        problem_of(await http.get(ticket), 401, "unauthorized")

        again = await made(backend, ann.user_id)
        for api in deployment.apis:
            async with httpx.AsyncClient(base_url=f"{api.url}/api/v1", verify=False) as each:

                async def is_void(each: httpx.AsyncClient = each) -> bool:
                    return (await each.get("/runs", headers=token)).status_code == 401

                await soon(is_void)
                assert (await each.get("/runs", headers=again)).status_code == 200
                assert (await each.get("/runs", headers=of_bob)).status_code == 200
        assert (await ann.http.post(f"/runs/{run_id}/cancel?wait=30")).status_code == 200
        assert (await anext(event async for event in by_key if event["event"] == "done"))["status"] == "cancelled"
    assert (await http.get(of_key)).status_code == 200
    late = deployment.service.api()
    async with httpx.AsyncClient(base_url=f"{late.url}/api/v1", verify=False) as each:
        assert (await each.get("/runs", headers=token)).status_code == 401
    late.terminate()


async def test_an_expired_token_is_void_and_its_streams_end(
    backend: httpx.AsyncClient, http: httpx.AsyncClient, ann: Client
) -> None:
    run = await ann.run("/nowhere", agent_type="patient")
    token = await made(backend, ann.user_id, ttl_s=3)
    ticket = (await http.post(f"/runs/{run['id']}/stream-ticket", headers=token)).json()
    async with http.stream("GET", f"/runs/{run['id']}/stream", headers=token) as stream:
        assert "done" not in names([event async for event in read_events(stream)])

    async def is_void() -> bool:
        return (await http.get("/runs", headers=token)).status_code == 401

    await soon(is_void)
    problem_of(await http.get(ticket["url"].partition("/api/v1")[2]), 401)


# What is forged.


def secret_of_tokens() -> bytes:
    return hmac.digest(SECRET.encode(), b"user token\0", "sha256")


def claims_of(made_with: str = KEYS["acme"], **changed: Any) -> dict[str, Any]:
    """What a token of ours says, changed."""
    reference = sha256(sha256(made_with.encode()).hexdigest().encode()).digest()[:16]
    claims = {
        "aud": "agent-relay user token",
        "sub": str(uuid4()),
        "key": base64.urlsafe_b64encode(reference).decode(),
        "iat": time.time(),
        "exp": time.time() + 600,
    } | changed
    return {name: value for name, value in claims.items() if value is not None}


TYPE = {"typ": "agent-relay-user+jwt"}


def signed(secret: bytes = secret_of_tokens(), algorithm: str = "HS256", typ: str = TYPE["typ"], **changed: Any) -> str:
    return jwt.encode(claims_of(**changed), secret, algorithm, {"typ": typ})


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def unsigned(algorithm: str) -> str:
    return f"{segment({'alg': algorithm, **TYPE})}.{segment(claims_of())}."


FORGED: dict[str, Callable[[], str]] = {
    "no algorithm": lambda: unsigned("none"),
    "no algorithm in capitals": lambda: unsigned("NONE"),
    "no signature": lambda: unsigned("HS256"),
    "another secret": lambda: signed(b"x" * 32),
    "the secret of tickets": lambda: signed(SECRET.encode()),
    "another algorithm": lambda: signed(algorithm="HS512", secret=secret_of_tokens() * 2),
    "another audience": lambda: signed(aud="another"),
    "several audiences": lambda: signed(aud=["agent-relay user token", "another"]),
    "no audience": lambda: signed(aud=None),
    "another type": lambda: signed(typ="JWT"),
    "expired": lambda: signed(exp=time.time() - 1),
    "endless": lambda: signed(exp=None),
    "without its time": lambda: signed(iat=None),
    "not a user": lambda: signed(sub=CANARY),
    "no user": lambda: signed(sub=None),
    "no key": lambda: signed(key=None),
    "of an unknown key": lambda: signed(made_with="a key that is not there"),
    "not yet valid": lambda: signed(nbf=time.time() + 3600),
    "100 kB": lambda: signed(padding="x" * 40_000),
    "nested deep": lambda: f"{base64.urlsafe_b64encode(b'[' * 6000).decode()}.{'W' * 4000}.AAAA",
    "three dots": lambda: signed() + ".x",
    "dots": lambda: "..",
    "its payload changed": lambda: ".".join([signed().split(".")[0], segment(claims_of()), signed().split(".")[2]]),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_a_forged_token_is_as_wrong_as_any_key(http: httpx.AsyncClient, forge: Callable[[], str]) -> None:
    response = await http.get("/runs", headers={"Authorization": f"Bearer {forge()}"})

    problem = problem_of(response, 401, "unauthorized")
    assert problem["detail"] == "A valid key or token is needed, in X-API-Key or as Authorization: Bearer."
    assert response.headers["www-authenticate"] == "ApiKey, Bearer"


async def test_a_token_as_the_service_would_sign_it_is_taken(http: httpx.AsyncClient) -> None:
    """Otherwise the forged ones would be refused for another reason."""
    assert (await http.get("/runs", headers={"Authorization": f"Bearer {signed()}"})).status_code == 200


async def test_a_token_belongs_to_the_tenant_of_its_key(http: httpx.AsyncClient, ann: Client) -> None:
    thread_id = await ann.thread("echo")
    user_id = (await ann.http.get(f"/threads/{thread_id}")).json()["user_id"]
    for key, status in ((KEYS["acme"], 200), (KEYS["other"], 404)):
        token = signed(made_with=key, sub=user_id)
        response = await http.get(f"/threads/{thread_id}", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == status


async def test_old_revocations_are_forgotten(deployment: Deployment, backend: httpx.AsyncClient) -> None:
    engine = database.connect(Settings(database_url=deployment.service.database_url, redis_url="redis://nowhere"))
    ages = text("SELECT count(*) FROM user_token_revocations WHERE revoked_before < now() - interval '1 day'")
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO user_token_revocations SELECT 'acme', gen_random_uuid(), now() - interval '26 hours'")
        )
    assert (await backend.delete("/user-tokens", params={"user_id": "carl"})).status_code == 204
    async with engine.connect() as connection:
        assert await connection.scalar(ages) == 0
    await engine.dispose()


def test_without_revocations_no_token_is_believed() -> None:
    settings = Settings(
        database_url="postgresql://no/where",
        redis_url="redis://nowhere",
        api_keys={hash_key(b"a key"): "acme"},
        ticket_secret=SecretStr("s" * 32),
    )
    keys = KeyCache(settings, database.connect(settings), lambda _: None, lambda _: None)
    key = keys.find(b"a key")
    assert key is not None
    tokens = UserTokens(keys)
    token = tokens.sign(key, UUID(int=1), now(), 60, threads=None, agents=None, read_only=False)

    with pytest.raises(KeysUnknown):
        tokens.read(token)
