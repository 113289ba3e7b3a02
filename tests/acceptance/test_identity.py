"""Who calls: a tenant by its key, and one of its users. Everybody sees their own and nothing else.

A key comes in `X-API-Key` or as `Authorization: Bearer`; a user is a UUID, or a text that stands for one.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import httpx
import pytest

from agent_relay.api.requests.key_cache import KeyCache, KeysUnknown
from agent_relay.shared import database
from agent_relay.shared.key_format import hash_key, new_key
from agent_relay.shared.settings import Settings
from tests.support.client import Client
from tests.support.problems import CANARY, problem_of
from tests.support.service import KEYS, OPERATOR_KEY, Running, Service

KEY, USER, BEARER = "X-API-Key", "X-User-ID", "Authorization"

Headers = list[tuple[str | bytes, str | bytes]]


async def call(api: Running, *headers: tuple[str | bytes, str | bytes], url: str = "/api/v1/runs") -> httpx.Response:
    """Call with these headers and no others of ours."""
    async with httpx.AsyncClient(base_url=api.url, verify=False) as http:
        return await http.get(url, headers=[(_bytes(name), _bytes(value)) for name, value in headers])


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


WRONG_KEYS: dict[str, Headers] = {
    "absent": [],
    "empty": [(KEY, "")],
    "wrong": [(KEY, CANARY)],
    "one character short": [(KEY, KEYS["acme"][:-1])],
    "one character long": [(KEY, KEYS["acme"] + "x")],
    "in capitals": [(KEY, KEYS["acme"].upper())],
    "its own hash": [(KEY, hash_key(KEYS["acme"].encode()))],
    "bytes beyond ASCII": [(KEY, b"\xff\xfe" + CANARY.encode())],
    "UTF-8": [(KEY, "ключ".encode())],
    "very long": [(KEY, CANARY * 10_000)],
    "two in one": [(KEY, f"{KEYS['acme']}, {KEYS['acme']}")],
    "of another scheme": [(BEARER, f"Basic {KEYS['acme']}")],
    "a scheme alone": [(BEARER, "Bearer")],
    "a bearer without its scheme": [(BEARER, KEYS["acme"])],
    "a wrong bearer": [(BEARER, f"Bearer {CANARY}")],
    "a very long bearer": [(BEARER, "Bearer " + CANARY * 10_000)],
    "a bearer beyond ASCII": [(BEARER, b"Bearer \xff\xfe" + CANARY.encode())],
    "a bearer and more": [(BEARER, f"Bearer {KEYS['acme']} {CANARY}")],
    "the key of an operator": [(BEARER, f"Bearer {OPERATOR_KEY}")],
}


@pytest.mark.parametrize("headers", WRONG_KEYS.values(), ids=WRONG_KEYS)
async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(shared_api: Running, headers: Headers) -> None:
    response = await call(shared_api, *headers, (USER, str(uuid4())), ("X-Request-ID", "the-same"))

    assert problem_of(response, 401, "unauthorized") == {
        "type": "urn:agent-relay:problem:unauthorized",
        "title": "Unauthorized",
        "status": 401,
        "detail": "A valid key or token is needed, in X-API-Key or as Authorization: Bearer.",
        "instance": "/api/v1/runs",
        "code": "unauthorized",
        "request_id": "the-same",
    }
    assert response.headers["www-authenticate"] == "ApiKey, Bearer"


async def test_a_key_in_the_address_is_no_key(shared_api: Running) -> None:
    problem_of(await call(shared_api, (USER, str(uuid4())), url=f"/api/v1/runs?{KEY}={KEYS['acme']}"), 401)


UUID_OF_USER = "0198c5a4-7c9e-7000-8000-00000000000a"
WRONG_USERS: dict[str, Headers] = {
    "absent": [],
    "empty": [(USER, "")],
    "a tab": [(USER, f"{CANARY}\tx")],
    "longer than 128": [(USER, "x" * 129)],
    "bytes beyond ASCII": [(USER, b"\xff" * 36)],
    "very long": [(USER, CANARY * 10_000)],
}


@pytest.mark.parametrize("headers", WRONG_USERS.values(), ids=WRONG_USERS)
async def test_a_user_that_cannot_be_one_is_refused(shared_api: Running, headers: Headers) -> None:
    problem_of(await call(shared_api, (KEY, KEYS["acme"]), *headers), 400, "bad_request")


@pytest.mark.parametrize("spelled", [KEY, KEY.lower()])
async def test_two_keys_are_one_too_many(shared_api: Running, spelled: str) -> None:
    response = await call(shared_api, (KEY, KEYS["acme"]), (spelled, KEYS["acme"]), (USER, UUID_OF_USER))

    assert problem_of(response, 400, "bad_request")["detail"] == "X-API-Key is repeated."
    of_both = [(KEY, KEYS["acme"]), (BEARER, f"Bearer {KEYS['acme']}")]
    of_bearer = [(BEARER, f"Bearer {KEYS['acme']}")] * 2
    for headers in (of_both, of_bearer):
        problem_of(await call(shared_api, *headers, (USER, UUID_OF_USER)), 400, "bad_request")


async def test_two_users_are_one_too_many(shared_api: Running) -> None:
    response = await call(shared_api, (KEY, KEYS["acme"]), (USER, UUID_OF_USER), (USER, UUID_OF_USER))

    assert problem_of(response, 400, "bad_request")["detail"] == "X-User-ID is repeated."


async def test_a_user_is_the_same_in_capitals(shared_api: Running, client: Client) -> None:
    thread_id = await client.thread("echo")

    async with Client(shared_api.url, user_id=client.user_id.upper()) as shouting:
        assert await shouting.messages(thread_id) == []


NAMES = [
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "ann@example.com",
    "cn=Ann, ou=People",
    "{" + UUID_OF_USER + "}",
    "1",
    "x" * 128,
]


async def test_a_text_stands_for_one_user_of_its_tenant(shared_api: Running) -> None:
    seen = set[str]()
    for tenant in ("acme", "other"):
        for name in NAMES:
            async with Client(shared_api.url, tenant, name) as user:
                thread_id = await user.thread("echo")
                threads = (await user.http.get("/threads")).json()["items"]
                assert thread_id in [thread["id"] for thread in threads]
                user_id = threads[0]["user_id"]
            assert user_id not in seen
            seen.add(user_id)
            async with Client(shared_api.url, tenant, str(UUID(user_id))) as same:
                assert (await same.http.get(f"/threads/{thread_id}")).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_a_bearer_key_is_a_key(shared_api: Running, client: Client, scheme: str) -> None:
    thread_id = await client.thread("echo")
    url = f"/api/v1/threads/{thread_id}"
    bearer = (BEARER, f"{scheme} {KEYS['acme']}")

    assert (await call(shared_api, bearer, (USER, client.user_id), url=url)).status_code == 200
    problem_of(await call(shared_api, (BEARER, f"{scheme} {KEYS['other']}"), (USER, client.user_id), url=url), 404)
    problem_of(await call(shared_api, bearer, url=url), 404)
    url = "/api/v1/operator/keys"
    problem_of(await call(shared_api, bearer, url=url), 401)
    assert (await call(shared_api, (BEARER, f"{scheme} {OPERATOR_KEY}"), url=url)).status_code == 200


async def test_a_bearer_key_without_a_user_is_a_user_of_its_own(shared_api: Running) -> None:
    users = list[str]()
    async with httpx.AsyncClient(base_url=f"{shared_api.url}/api/v1", verify=False) as http:
        for tenant in ("acme", "acme", "other"):
            bearer = {BEARER: f"Bearer {KEYS[tenant]}"}
            made = await http.post("/threads", headers=bearer, json={"agent_type": "echo"})
            users.append(made.json()["user_id"])
        named = {BEARER: f"Bearer {KEYS['acme']}", USER: users[0]}
        own = (await http.get("/threads", headers=named)).json()["items"]

    assert users[0] == users[1] != users[2]
    assert {thread["user_id"] for thread in own} == {users[0]}


async def test_another_scheme_beside_a_key_is_the_business_of_a_proxy(shared_api: Running) -> None:
    headers: Headers = [(KEY, KEYS["acme"]), (USER, UUID_OF_USER), (BEARER, "Basic YWJjOmRlZg==")]
    assert (await call(shared_api, *headers)).status_code == 200


async def test_users_and_tenants_see_their_own_only(shared_api: Running, client: Client) -> None:
    await client.run("hello", thread_id=await client.thread("echo"))
    async with Client(shared_api.url) as user, Client(shared_api.url, "other", client.user_id) as tenant:
        for somebody, seen in [(client, 1), (user, 0), (tenant, 0)]:
            for noun in ("runs", "threads"):
                assert len((await somebody.http.get(f"/{noun}")).json()["items"]) == seen


async def test_nothing_is_looked_at_before_the_key(shared_api: Running) -> None:
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        document = (await http.get("/openapi.json")).json()
        calls = [(method, path) for path, methods in document["paths"].items() for method in methods]
        guarded = [(method, path) for method, path in calls if path.startswith("/api/")]
        assert len(guarded) > 10
        for method, path in guarded:
            problem_of(await http.request(method, f"{path}?unknown=1", content=b'{"not": JSON'), 401, "unauthorized")
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 200


async def test_every_answer_names_its_request(shared_api: Running) -> None:
    own = await call(shared_api, ("X-Request-ID", "of-mine_1"), url="/health/live")
    made = [await call(shared_api, *odd, url="/health/live") for odd in ODD_REQUEST_IDS]

    assert own.headers["x-request-id"] == "of-mine_1"
    assert all(UUID(response.headers["x-request-id"]).version == 7 for response in made)


ODD_REQUEST_IDS: list[Headers] = [
    [],
    [("X-Request-ID", "")],
    [("X-Request-ID", "two words")],
    [("X-Request-ID", b"\xff")],
    [("X-Request-ID", "x" * 129)],
    [("X-Request-ID", "one"), ("X-Request-ID", "two")],
]


async def test_a_tenant_changes_its_key_without_a_gap(service: Service) -> None:
    keys = ["the old key", "the new key"]
    service.environment["API_KEYS"] = ",".join(f"acme:{hash_key(key.encode())}" for key in keys)
    api = service.api()

    for key in keys:
        assert (await call(api, (KEY, key), (USER, UUID_OF_USER))).status_code == 200
    problem_of(await call(api, (KEY, KEYS["acme"]), (USER, UUID_OF_USER)), 401)


def test_a_key_is_found_by_its_bytes() -> None:
    key = new_key()
    keys = {hash_key(b"another"): "other", hash_key(key.encode()): "acme"}
    settings = Settings(database_url="postgresql://no/where", redis_url="redis://nowhere", api_keys=keys)
    ring = KeyCache(settings, database.connect(settings), lambda _: None, lambda _: None)

    found = ring.find(key.encode())
    assert found is not None
    assert found.tenant == "acme"
    assert ring.find_by_reference(found.reference) is found
    for unknown in (b"\xff" + key.encode(), b""):
        with pytest.raises(KeysUnknown):  # It may stand in the database, which has not been read.
            ring.find(unknown)
