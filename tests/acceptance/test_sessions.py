"""Sessions of the pages: a key or a code is exchanged for a cookie, which other sites cannot use and which ends."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import Request, Response
from redis.asyncio import Redis

from agent_relay.api.requests import sessions
from agent_relay.api.requests.key_cache import KeyCache
from agent_relay.shared.api_keys import ApiKey
from agent_relay.shared.key_format import hash_key
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import KEYS, OPERATOR_KEY, Running, Service

SESSION = "/console/session"


def from_page(url: str, **more: str) -> dict[str, str]:
    """The headers of a call that a page makes."""
    return {sessions.PAGE_HEADER: "1", "Origin": url, **more}


@pytest.fixture
async def browser(shared_api: Running) -> AsyncGenerator[httpx.AsyncClient]:
    """Something that keeps cookies, as browsers do."""
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        yield http


async def sign_in(http: httpx.AsyncClient, **given: str) -> httpx.Response:
    """Sign in as the page does."""
    return await http.post(SESSION, json=given, headers=from_page(str(http.base_url).rstrip("/")))


async def test_a_key_becomes_a_session_that_acts_as_its_tenant_and_user(browser: httpx.AsyncClient) -> None:
    user_id = str(uuid4())

    signed_in = await sign_in(browser, key=KEYS["acme"], user_id=user_id)

    assert signed_in.status_code == 204
    cookie = signed_in.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert KEYS["acme"] not in cookie
    who = (await browser.get(SESSION)).json()
    assert (who["tenant"], who["user_id"]) == ("acme", user_id)
    made = await browser.post(
        "/api/v1/threads", json={"agent_type": "echo"}, headers=from_page(str(browser.base_url).rstrip("/"))
    )
    assert made.json()["user_id"] == user_id
    threads = await browser.get("/api/v1/threads", headers={"X-API-Key": KEYS["acme"], "X-User-ID": user_id})
    assert [thread["id"] for thread in threads.json()["items"]] == [made.json()["id"]]


async def test_without_a_user_a_tenant_has_one_of_its_own(browser: httpx.AsyncClient) -> None:
    users: list[str] = []
    for tenant in ("acme", "other", "acme"):
        await sign_in(browser, key=KEYS[tenant])
        users.append((await browser.get(SESSION)).json()["user_id"])

    assert users[0] == users[2] != users[1]


async def test_over_tls_the_cookie_is_secure(browser: httpx.AsyncClient) -> None:
    headers = {sessions.PAGE_HEADER: "1", "Origin": "https://relay.example", "Host": "relay.example"}

    response = await browser.post(SESSION, json={"key": KEYS["acme"]}, headers=headers)

    assert "Secure" in response.headers["set-cookie"].split("; ")


@pytest.mark.parametrize("key", ["wrong", KEYS["acme"] + "x", OPERATOR_KEY, "\udcff", "ключ"])
async def test_a_wrong_key_signs_nobody_in(browser: httpx.AsyncClient, key: str) -> None:
    response = await browser.post(
        SESSION,
        content=b'{"key": "%s"}' % key.encode("unicode_escape"),
        headers=from_page(str(browser.base_url).rstrip("/"), **{"Content-Type": "application/json"}),
    )

    assert response.status_code in {401, 400, 422}
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "body", [{}, {"key": ""}, {"key": "a", "code": "b"}, {"code": "b", "user_id": str(uuid4())}, {"key": "a", "x": 1}]
)
async def test_a_sign_in_is_one_way_or_the_other(browser: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await browser.post(SESSION, json=body, headers=from_page(str(browser.base_url).rstrip("/")))

    problem_of(response, 422)


# Other sites.

OTHER_SITES: dict[str, dict[str, str]] = {
    "without any header": {},
    "without the header of pages": {"Origin": "SELF"},
    "from another origin": {sessions.PAGE_HEADER: "1", "Origin": "https://evil.example"},
    "from no origin": {sessions.PAGE_HEADER: "1"},
    "from an opaque origin": {sessions.PAGE_HEADER: "1", "Origin": "null"},
    "from a sibling of the site": {sessions.PAGE_HEADER: "1", "Origin": "SELF", "Sec-Fetch-Site": "same-site"},
    "from an address with the name in it": {sessions.PAGE_HEADER: "1", "Origin": "SELF.evil.example"},
    "by hand": {sessions.PAGE_HEADER: "1", "Origin": "SELF", "Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize("headers", OTHER_SITES.values(), ids=OTHER_SITES)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/threads"),
        ("POST", SESSION),
        ("DELETE", SESSION),
        ("POST", "/console/codes"),
        ("POST", "/api/v1/runs"),
    ],
)
async def test_another_site_can_do_nothing_with_a_session(
    browser: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
) -> None:
    await sign_in(browser, key=KEYS["acme"])
    own = str(browser.base_url).rstrip("/")
    sent = {name: value.replace("SELF", own) for name, value in headers.items()}

    response = await browser.request(method, path, json={"agent_type": "echo", "query": "x"}, headers=sent)

    assert problem_of(response, 403, "not_from_page")
    assert (await browser.get(SESSION)).status_code == 200


async def test_the_browsers_word_on_its_origin_is_enough(browser: httpx.AsyncClient) -> None:
    headers = {sessions.PAGE_HEADER: "1", "Sec-Fetch-Site": "same-origin"}

    assert (await browser.post(SESSION, json={"key": KEYS["acme"]}, headers=headers)).status_code == 204


# Its end.


async def test_who_signs_out_is_nobody(browser: httpx.AsyncClient) -> None:
    await sign_in(browser, key=KEYS["acme"])

    await browser.delete(SESSION, headers=from_page(str(browser.base_url).rstrip("/")))

    problem_of(await browser.get(SESSION), 401)


FORGED: dict[str, Callable[[str], str]] = {
    "empty": lambda cookie: cookie[:0],
    "cut": lambda cookie: cookie[:-1],
    "longer": lambda cookie: cookie + "A",
    "another user": lambda cookie: cookie[:30] + ("A" if cookie[30] != "A" else "B") + cookie[31:],
    "a later end": lambda cookie: cookie[:48] + ("A" if cookie[48] != "A" else "B") + cookie[49:],
    "another signature": lambda cookie: cookie[:-4] + ("AAAA" if cookie[-4:] != "AAAA" else "BBBB"),
    "not of its alphabet": lambda cookie: "~" * len(cookie),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_a_forged_cookie_is_none(browser: httpx.AsyncClient, forge: Callable[[str], str]) -> None:
    await sign_in(browser, key=KEYS["acme"])
    cookie = browser.cookies[sessions.COOKIE]
    browser.cookies.clear()

    response = await browser.get(SESSION, headers={"Cookie": f"{sessions.COOKIE}={forge(cookie)}"})

    problem_of(response, 401)


async def test_headers_win_over_a_session(browser: httpx.AsyncClient) -> None:
    await sign_in(browser, key=KEYS["acme"])

    headers = {"X-API-Key": KEYS["other"], "X-User-ID": str(uuid4())}
    assert (await browser.get(SESSION, headers=headers)).json()["tenant"] == "other"
    problem_of(await browser.get(SESSION, headers={"X-API-Key": "wrong"}), 401)
    problem_of(await browser.get(SESSION, headers={"X-User-ID": str(uuid4())}), 401)


async def test_a_session_ends_with_its_key(service: Service) -> None:
    api = service.api()
    operator = {"X-API-Key": OPERATOR_KEY}
    async with httpx.AsyncClient(base_url=api.url, verify=False) as http:
        made = (await http.post("/api/v1/operator/keys", json={"tenant": "acme"}, headers=operator)).json()

        async def signed_in() -> bool:
            return (await sign_in(http, key=made["key"])).status_code == 204

        await soon(signed_in)
        assert (await http.get(SESSION)).status_code == 200
        await http.delete(f"/api/v1/operator/keys/{made['id']}", headers=operator)

        async def signed_out() -> bool:
            return (await http.get(SESSION)).status_code == 401

        await soon(signed_out)


async def test_a_session_has_the_scopes_of_its_key(service: Service) -> None:
    api = service.api()
    async with httpx.AsyncClient(base_url=api.url, verify=False) as http:
        body = {"tenant": "acme", "scopes": ["batches"], "agents": ["echo"]}
        made = (await http.post("/api/v1/operator/keys", json=body, headers={"X-API-Key": OPERATOR_KEY})).json()

        async def signed_in() -> bool:
            return (await sign_in(http, key=made["key"])).status_code == 204

        await soon(signed_in)
        assert (await http.get(SESSION)).json()["scopes"] == ["batches"]
        problem_of(await http.get("/api/v1/threads"), 403, "scope_missing")


def test_a_session_is_no_longer_than_a_week() -> None:
    assert timedelta(days=7) == sessions.LIFE


# Codes.


async def code_of(http: httpx.AsyncClient, user_id: str) -> str:
    """Make a link; returns its code."""
    headers = {"X-API-Key": KEYS["acme"], "X-User-ID": user_id}
    response = await http.post("/console/codes", headers=headers)
    assert response.status_code == 201
    url = urlsplit(str(response.json()["url"]))
    assert url.path == "/sign-in"
    return url.fragment.removeprefix("code=")


async def test_a_code_signs_in_once(browser: httpx.AsyncClient) -> None:
    user_id = str(uuid4())
    code = await code_of(browser, user_id)

    await browser.get("/sign-in")  # A look at the page takes nothing away.
    assert (await sign_in(browser, code=code)).status_code == 204
    assert (await browser.get(SESSION)).json()["user_id"] == user_id
    problem_of(await sign_in(browser, code=code), 401, "code_not_valid")


@pytest.mark.parametrize("code", ["x", "x" * 512, "é", "../../etc"])
async def test_a_code_that_was_never_made_signs_nobody_in(browser: httpx.AsyncClient, code: str) -> None:
    problem_of(await sign_in(browser, code=code), 401, "code_not_valid")


async def test_a_code_is_kept_as_a_hash_and_not_for_long(service: Service) -> None:
    api = service.api()
    async with httpx.AsyncClient(base_url=api.url, verify=False) as http:
        code = await code_of(http, str(UUID(int=1)))
        async with Redis.from_url(service.redis_url) as redis:
            (name,) = await redis.keys("*sign-in*")
            assert code.encode() not in name
            assert 0 < await redis.ttl(name) <= 600
            await redis.flushdb()
        problem_of(await sign_in(http, code=code), 401, "code_not_valid")
    assert code not in api.log.read_text()


async def test_a_browser_without_redis_signs_in_with_a_key(service: Service) -> None:
    api = service.api(REDIS_URL="redis://127.0.0.1:1/0")
    async with httpx.AsyncClient(base_url=api.url, verify=False) as http:
        problem_of(await sign_in(http, code="x"), 503)
        assert (await sign_in(http, key=KEYS["acme"])).status_code == 204


# Operators.

OPERATOR_SESSION = "/console/operator-session"


async def operate(http: httpx.AsyncClient, key: str = OPERATOR_KEY) -> httpx.Response:
    """Sign in as the page of operations does."""
    return await http.post(OPERATOR_SESSION, json={"key": key}, headers=from_page(str(http.base_url).rstrip("/")))


async def test_an_operators_key_becomes_a_session_that_acts_as_the_operator(browser: httpx.AsyncClient) -> None:
    signed_in = await operate(browser)

    assert signed_in.status_code == 204
    cookie = signed_in.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert re.search(r"Max-Age=4[23]\d{3};", cookie)
    assert hash_key(OPERATOR_KEY.encode()) not in base64.urlsafe_b64decode(cookie.split("=", 1)[1][:92]).hex()
    assert (await browser.get(OPERATOR_SESSION)).json()["operator"] == "oscar"
    assert (await browser.get("/api/v1/operator/dead-letters")).status_code == 200
    problem_of(await browser.get(SESSION), 401)
    problem_of(await browser.get("/api/v1/threads"), 401)
    own = from_page(str(browser.base_url).rstrip("/"))
    requeue = {"run_ids": [str(uuid4())]}
    accepted = await browser.post("/api/v1/operator/dead-letters/requeue", json=requeue, headers=own)
    assert accepted.json()["items"][0]["outcome"] == "not_found"
    problem_of(await browser.post("/api/v1/operator/dead-letters/requeue", json=requeue), 403, "not_from_page")
    await browser.delete(OPERATOR_SESSION, headers=own)
    problem_of(await browser.get(OPERATOR_SESSION), 401)


@pytest.mark.parametrize("key", [KEYS["acme"], "wrong", "ключ", OPERATOR_KEY + " "])
async def test_another_key_is_no_operators(browser: httpx.AsyncClient, key: str) -> None:
    assert problem_of(await operate(browser, key), 401, "key_not_valid")


async def test_a_session_of_a_tenant_is_none_of_an_operator_nor_the_other_way(browser: httpx.AsyncClient) -> None:
    await sign_in(browser, key=KEYS["acme"])
    await operate(browser)
    tenants, operators = browser.cookies[sessions.COOKIE], browser.cookies[sessions.OPERATOR_COOKIE]
    browser.cookies.clear()

    for path, name, value in (
        (OPERATOR_SESSION, sessions.OPERATOR_COOKIE, tenants),
        (SESSION, sessions.COOKIE, operators),
        ("/console/operations", sessions.OPERATOR_COOKIE, tenants),
        (f"/console/operations/runs/{uuid4()}", sessions.COOKIE, tenants),
    ):
        problem_of(await browser.get(path, headers={"Cookie": f"{name}={value}"}), 401)


def test_the_two_kinds_of_sessions_are_signed_apart() -> None:
    """Else a tenant whose key and user happen to be an operator's 32 bytes would be one."""
    keys = cast("KeyCache", SimpleNamespace(ticket_secret=b"a secret", find_by_reference=str))
    operator_key = hash_key(b"key of an operator")
    signing = sessions.Sessions(keys, {operator_key: "oscar"})
    app = SimpleNamespace(state=SimpleNamespace(settings=SimpleNamespace(root_path="")))
    request = Request({"type": "http", "method": "GET", "headers": [], "app": app})
    whose = sha256(operator_key.encode()).digest()
    key = cast("ApiKey", SimpleNamespace(reference=whose[:16], expires_at=None))
    response = Response()

    signing.begin(response, request, key, UUID(bytes=whose[16:]))
    value = response.headers["set-cookie"].split(";")[0].split("=", 1)[1]

    header = (b"cookie", f"{sessions.OPERATOR_COOKIE}={value}".encode())
    assert signing.read_operator(Request({"type": "http", "method": "GET", "headers": [header]})) is None


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_a_forged_cookie_makes_no_operator(browser: httpx.AsyncClient, forge: Callable[[str], str]) -> None:
    await operate(browser)
    cookie = browser.cookies[sessions.OPERATOR_COOKIE]
    browser.cookies.clear()

    response = await browser.get(OPERATOR_SESSION, headers={"Cookie": f"{sessions.OPERATOR_COOKIE}={forge(cookie)}"})

    problem_of(response, 401)


# Where there are no pages.


async def test_without_pages_there_is_no_session(service: Service) -> None:
    secret = "a secret that both processes share"
    with_pages, without = service.api(TICKET_SECRET=secret), service.api(TICKET_SECRET=secret, PAGES="off")
    async with httpx.AsyncClient(base_url=with_pages.url, verify=False) as http:
        await sign_in(http, key=KEYS["acme"])
        await operate(http)
        operators = {"Cookie": f"{sessions.OPERATOR_COOKIE}={http.cookies[sessions.OPERATOR_COOKIE]}"}
        assert (await http.get("/api/v1/operator/dead-letters", headers=operators)).status_code == 200
        cookie = {"Cookie": f"{sessions.COOKIE}={http.cookies[sessions.COOKIE]}"}
        assert (await http.get("/api/v1/threads", headers=cookie)).status_code == 200
    async with httpx.AsyncClient(base_url=without.url, verify=False) as http:
        for path in ("/", "/batches", "/ops", "/sign-in", SESSION, OPERATOR_SESSION, "/console/operations"):
            problem_of(await http.get(path), 404)
        problem_of(await http.get("/api/v1/threads", headers=cookie), 401)
        problem_of(await http.get("/api/v1/operator/dead-letters", headers=operators), 401)
