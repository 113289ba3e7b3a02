"""API keys in the database: made, limited, rotated and revoked while the service runs."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from agent_relay.api import app as api_app
from agent_relay.api.requests.key_cache import KeyCache, KeysUnknown
from agent_relay.shared.clock import now
from agent_relay.shared.settings import Settings
from tests.support.client import Client, read_events
from tests.support.eventually import eventually, soon
from tests.support.problems import errors_of, problem_of
from tests.support.service import OPERATOR_KEY, ROOT, Running, Service, serving

USER = {"X-User-ID": "00000000-0000-4000-8000-000000000001"}


@pytest.fixture(scope="module")
def service_without_keys(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Running, Running]]:
    """Two API processes and a worker; `API_KEYS` is not set."""
    environment = {"API_KEYS": ""}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), environment) as service:
        apis = service.api(), service.api()
        service.worker()
        yield service, *apis


@pytest.fixture
async def operator(service_without_keys: tuple[Service, Running, Running]) -> AsyncGenerator[httpx.AsyncClient]:
    """An operator, who calls the first API process."""
    url = f"{service_without_keys[1].url}/api/v1/operator"
    async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": OPERATOR_KEY}, verify=False) as http:
        yield http


@pytest.fixture
async def http(service_without_keys: tuple[Service, Running, Running]) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the second API process, without a key."""
    url = f"{service_without_keys[2].url}/api/v1"
    async with httpx.AsyncClient(base_url=url, headers=USER, verify=False, timeout=60) as http:
        yield http


async def made(operator: httpx.AsyncClient, **wanted: Any) -> dict[str, Any]:
    response = await operator.post("/keys", json={"tenant": "acme", **wanted})
    assert response.status_code == 201, response.text
    assert response.headers["Cache-Control"] == "no-store"
    return response.json()


async def status_with(http: httpx.AsyncClient, key: str, method: str = "GET", path: str = "/runs", **body: Any) -> int:
    headers = {"X-API-Key": key}
    response = await http.request(method, path, headers=headers, json=body if method == "POST" else None)
    return response.status_code


async def usable(http: httpx.AsyncClient, key: str) -> None:
    async def is_usable() -> bool:
        return await status_with(http, key) == 200

    await soon(is_usable)


async def test_a_key_is_valid_in_every_process_and_shown_once(
    operator: httpx.AsyncClient, http: httpx.AsyncClient
) -> None:
    created = await made(operator, label="web")
    await usable(http, created["key"])
    listed = (await operator.get("/keys")).json()["items"]
    [shown] = [each for each in listed if each["id"] == created["id"]]
    assert shown["prefix"] == created["key"][:11]
    assert "key" not in shown
    assert created["key"] not in str(listed)


async def test_a_revoked_key_opens_nothing_and_its_streams_end(
    operator: httpx.AsyncClient, http: httpx.AsyncClient
) -> None:
    created = await made(operator)
    headers = {"X-API-Key": created["key"]}
    await usable(http, created["key"])
    body = {"agent_type": "patient", "query": "/nowhere"}
    async with http.stream("POST", "/agent/stream", json=body, headers=headers) as stream:
        events = read_events(stream)
        run_id = (await anext(events))["run_id"]
        ticket = (
            (await http.post(f"/runs/{run_id}/stream-ticket", headers=headers)).json()["url"].partition("/api/v1")[2]
        )
        async with http.stream("GET", ticket) as by_ticket:
            assert by_ticket.status_code == 200
            assert (await operator.delete(f"/keys/{created['id']}")).json()["revoked_at"]
            rest = [event["event"] async for event in events]
            rest += [event["event"] async for event in read_events(by_ticket)]
            assert "done" not in rest
    problem_of(await http.get("/runs", headers=headers), 401, "unauthorized")
    problem_of(await http.get(ticket), 401, "unauthorized")
    assert (await operator.delete(f"/keys/{created['id']}")).status_code == 200


async def test_an_expired_key_is_not_valid(operator: httpx.AsyncClient, http: httpx.AsyncClient) -> None:
    created = await made(operator, expires_at=(now() + timedelta(seconds=3)).isoformat())
    await usable(http, created["key"])

    async def is_refused() -> bool:
        return await status_with(http, created["key"]) == 401

    await soon(is_refused)
    assert (await made(operator, expires_at="2020-01-01T00:00:00Z"))["expires_at"]


async def test_a_rotated_key_has_a_successor_that_may_do_the_same(
    operator: httpx.AsyncClient, http: httpx.AsyncClient
) -> None:
    former = await made(operator, scopes=["read"], agents=["echo"], label="web")
    response = await operator.post(f"/keys/{former['id']}/rotate", json={"overlap_hours": 0})
    successor = response.json()
    assert (successor["scopes"], successor["agents"], successor["label"]) == (["read"], ["echo"], "web")
    await usable(http, successor["key"])

    async def is_refused() -> bool:
        return await status_with(http, former["key"]) == 401

    await soon(is_refused)
    assert (await operator.post(f"/keys/{former['id']}/rotate", json={})).status_code == 404


async def test_the_successor_of_a_key_is_the_same_user_where_none_is_named(
    operator: httpx.AsyncClient, http: httpx.AsyncClient
) -> None:
    key, users = await made(operator), set[str]()
    other = await made(operator)
    for _ in range(3):
        await usable(http, key["key"])
        async with httpx.AsyncClient(base_url=http.base_url, verify=False) as nameless:
            bearer = {"Authorization": f"Bearer {key['key']}"}
            thread = await nameless.post("/threads", headers=bearer, json={"agent_type": "echo"})
        users.add(thread.json()["user_id"])
        key = (await operator.post(f"/keys/{key['id']}/rotate", json={})).json()
    assert len(users) == 1
    async with httpx.AsyncClient(base_url=http.base_url, verify=False) as nameless:
        await usable(http, other["key"])
        bearer = {"Authorization": f"Bearer {other['key']}"}
        thread = await nameless.post("/threads", headers=bearer, json={"agent_type": "echo"})
    assert thread.json()["user_id"] not in users


SCOPES = {
    "ask": {"threads", "runs", "cancel", "query", "list", "ticket"},
    "batches": {"batches", "list batches"},
    "webhooks": {"secret"},
    "read": {"list", "list batches", "secret", "ticket", "export"},
}
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "threads": ("POST", "/threads", {"agent_type": "echo"}),
    "runs": ("POST", "/runs", {"agent_type": "echo", "query": "?"}),
    "query": ("POST", "/agent/query", {"agent_type": "echo", "query": "?"}),
    "cancel": ("POST", f"/runs/{uuid4()}/cancel", {}),
    "ticket": ("POST", f"/runs/{uuid4()}/stream-ticket", {}),
    "list": ("GET", "/runs", {}),
    "batches": ("POST", "/batches", {"agent_type": "echo", "items": [{"custom_id": "1", "query": "?"}]}),
    "list batches": ("GET", "/batches", {}),
    "secret": ("GET", "/webhooks/secret", {}),
    "export": ("GET", "/users/me/export", {}),
}


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_scope_allows_its_calls_and_no_others(
    operator: httpx.AsyncClient, http: httpx.AsyncClient, scope: str
) -> None:
    key = (await made(operator, scopes=[scope]))["key"]

    async def is_known() -> bool:
        return await status_with(http, key, path="/agents") == 200

    await soon(is_known)
    allowed = {
        name
        for name, (method, path, body) in CALLS.items()
        if await status_with(http, key, method, path, **body) != 403
    }
    assert allowed == SCOPES[scope]


async def test_a_missing_scope_is_said(operator: httpx.AsyncClient, http: httpx.AsyncClient) -> None:
    key = (await made(operator, scopes=["batches"]))["key"]
    await soon(lambda: _is_known(http, key))
    assert "`ask`" in problem_of(await http.get("/runs", headers={"X-API-Key": key}), 403, "scope_missing")["detail"]


async def _is_known(http: httpx.AsyncClient, key: str) -> bool:
    return await status_with(http, key, path="/agents") == 200


async def test_a_key_asks_its_agents_only(operator: httpx.AsyncClient, http: httpx.AsyncClient) -> None:
    everything = {"X-API-Key": (await made(operator))["key"]}
    limited = {"X-API-Key": (await made(operator, agents=["echo"]))["key"]}
    await usable(http, limited["X-API-Key"])
    await usable(http, everything["X-API-Key"])
    assert [agent["agent_type"] for agent in (await http.get("/agents", headers=limited)).json()] == ["echo"]
    assert len((await http.get("/agents", headers=everything)).json()) > 1
    other = (await http.post("/threads", json={"agent_type": "slow"}, headers=everything)).json()["id"]
    item = {"custom_id": "1", "query": "?"}
    for path, body in (
        ("/threads", {"agent_type": "slow"}),
        ("/runs", {"agent_type": "slow", "query": "?"}),
        ("/runs", {"thread_id": other, "query": "?"}),
        ("/batches", {"agent_type": "slow", "items": [item]}),
    ):
        response = await http.post(path, json=body, headers=limited)
        assert errors_of(response) == {("/agent_type", "unknown_agent")}, path
        assert "slow" not in response.text
    assert (await http.post("/runs", json={"agent_type": "echo", "query": "?"}, headers=limited)).status_code == 202


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({"tenant": "Acme"}, "/tenant"),
        ({"tenant": "a b"}, "/tenant"),
        ({"scopes": ["all"]}, "/scopes/0"),
        ({"scopes": []}, "/scopes"),
        ({"expires_at": "2030-01-01T00:00:00"}, "/expires_at"),
        ({"expires_at": 0}, "/expires_at"),
        ({"expires_at": 4102444800}, "/expires_at"),
        ({"expires_at": "4102444800"}, "/expires_at"),
        ({"expires_at": True}, "/expires_at"),
        ({"expires_at": "2030-01-01 00:00Z"}, "/expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, "/expires_at"),
        ({"expires_at": "0001-01-01T00:00:00+23:59"}, "/expires_at"),
        ({"agents": [""]}, "/agents/0"),
        ({"agents": ["a b"]}, "/agents/0"),
        ({"label": "a\0b"}, "/label"),
        ({"key": "mine"}, "/key"),
    ],
)
async def test_an_odd_key_is_refused(operator: httpx.AsyncClient, wanted: dict[str, Any], pointer: str) -> None:
    response = await operator.post("/keys", json={"tenant": "acme", **wanted})
    assert {where for where, _ in errors_of(response)} == {pointer}


@pytest.mark.parametrize("hours", [False, "24", -1, 8761, None, [1]])
async def test_a_key_is_replaced_after_hours_that_are_a_number(operator: httpx.AsyncClient, hours: Any) -> None:
    key_id = (await made(operator))["id"]

    response = await operator.post(f"/keys/{key_id}/rotate", json={"overlap_hours": hours})

    assert {where for where, _ in errors_of(response)} == {"/overlap_hours"}


async def test_tenants_cannot_make_keys(operator: httpx.AsyncClient, http: httpx.AsyncClient) -> None:
    key = (await made(operator))["key"]
    await usable(http, key)
    problem_of(await operator.post("/keys", json={"tenant": "acme"}, headers={"X-API-Key": key}), 401, "unauthorized")


async def test_a_ticket_is_one_string_and_no_other(client: Client, shared_api: Running) -> None:
    run = await client.run("hello", agent_type="echo")
    url = (await client.http.post(f"/runs/{run['id']}/stream-ticket")).json()["url"]
    ticket = url.rpartition("=")[2]
    data = base64.urlsafe_b64decode(ticket + "=")
    assert client.user_id.encode() not in data
    assert b"acme" not in data
    other = await client.run("hello", agent_type="echo")
    forged = [
        ticket + "=",
        ticket + "A",
        ticket[:-1],
        "",
        "A" * 71,
        ticket.replace(ticket[20], "Z" if ticket[20] != "Z" else "Y", 1),
        "ä" * 71,
        base64.urlsafe_b64encode(data[:16] + b"\xff" * 5 + data[21:]).decode().rstrip("="),
    ]
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        assert (await http.get(url)).status_code == 200
        for wrong in forged:
            response = await http.get(f"/api/v1/runs/{run['id']}/stream", params={"ticket": wrong})
            assert problem_of(response, 401, "unauthorized"), wrong
        for path in (
            f"/api/v1/runs/{other['id']}/stream",
            "/api/v1/runs/nonsense/stream",
            f"/api/v1/runs/{uuid4()}/stream",
        ):
            assert (await http.get(path, params={"ticket": ticket})).status_code == 401, path


async def test_the_secret_of_tickets_is_no_part_of_the_settings(service: Service) -> None:
    first, second = service.api(), service.api()
    service.worker()
    async with Client(first.url) as client, httpx.AsyncClient(base_url=second.url, verify=False) as http:
        run = await client.run("hello", agent_type="echo")
        url = (await client.http.post(f"/runs/{run['id']}/stream-ticket")).json()["url"]
        assert (await http.get(url)).status_code == 200


def test_the_command_line_makes_lists_rotates_and_revokes(
    service_without_keys: tuple[Service, Running, Running],
) -> None:
    service, api, _ = service_without_keys

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent_relay.api.keys", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=service.surroundings(), capture_output=True, text=True, check=False
        )

    created = run("create", "beta", "--scope", "read", "--agent", "echo", "--days", "1", "--label", "cron")
    assert created.returncode == 0, created.stderr
    key = next(word for word in created.stdout.split() if word.startswith("ar_"))
    key_id = created.stdout.splitlines()[1].split()[0]

    def status() -> int:
        return httpx.get(f"{api.url}/api/v1/runs", headers=USER | {"X-API-Key": key}).status_code

    eventually(lambda: status() == 200)
    assert f"{key_id} {key[:11]}… valid tenant=beta scopes=read agents=echo" in run("list", "beta").stdout
    assert run("rotate", key_id, "--overlap-hours", "1").stdout.count("ar_") == 2
    assert " revoked " in run("revoke", key_id).stdout
    eventually(lambda: status() == 401)
    assert run("revoke", str(uuid4())).stderr.startswith("There is no such key.")
    assert run("create", "No Tenant").returncode == 2
    for days in ("nan", "inf", "-1", "1e10", "soon"):
        refused = run("create", "beta", f"--days={days}")
        assert refused.returncode == 2
        assert " must be " in refused.stderr.splitlines()[-1]
    assert "from 0 to 8760" in run("rotate", key_id, "--overlap-hours", "1e300").stderr


async def test_a_process_listens_when_it_knows_its_keys(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = KeyCache.read

    async def read_late(cache: KeyCache) -> None:
        await asyncio.sleep(0.2)
        await read(cache)

    monkeypatch.setattr(KeyCache, "read", read_late)
    app = api_app.create_app(Settings(database_url=database_url, redis_url=redis_url), 100)

    async with app.router.lifespan_context(app):
        assert app.state.keys.find(b"no key") is None


async def test_a_process_listens_although_its_keys_cannot_be_read(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_app, "FIRST_KEYS_SECONDS", 0.1)
    app = api_app.create_app(Settings(database_url="postgresql://u@127.0.0.1:1/d", redis_url=redis_url), 100)

    async with app.router.lifespan_context(app):
        with pytest.raises(KeysUnknown):
            app.state.keys.find(b"no key")
