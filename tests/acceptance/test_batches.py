"""Batches: accepted whole or not at all, answered one by one, watched and read while they are."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.client import Client
from tests.support.problems import errors_of, problem_of
from tests.support.service import Running

Json = dict[str, Any]


def items_of(count: int, query: str = "hello") -> list[Json]:
    """Make items whose ids say which they are."""
    return [{"custom_id": f"row-{number}", "query": f"{query} {number}"} for number in range(count)]


async def submit(client: Client, items: list[Json], agent_type: str = "echo", **rest: Any) -> Json:
    """Submit a batch as JSON; returns it as accepted."""
    response = await client.http.post("/batches", json={"agent_type": agent_type, "items": items, **rest})
    assert response.status_code == httpx.codes.ACCEPTED, response.text
    return response.json()


async def read(client: Client, batch_id: str) -> Json:
    """Read a batch."""
    response = await client.http.get(f"/batches/{batch_id}")
    assert response.status_code == httpx.codes.OK, response.text
    return response.json()


async def results(client: Client, batch_id: str, **parameters: Any) -> list[Json]:
    """Read results, or follow them to the end; every line."""
    async with client.http.stream("GET", f"/batches/{batch_id}/results", params=parameters) as response:
        assert response.status_code == httpx.codes.OK, (await response.aread()).decode()
        return [json.loads(line) async for line in response.aiter_lines() if line]


async def outcome(client: Client, batch_id: str) -> dict[str, Json]:
    """Follow a batch to its end; returns its results by the ids of the items, of which each must have come once."""
    *lines, last = await results(client, batch_id, follow="true")
    found = [line for line in lines if "cursor" in line]
    by_id = {line["custom_id"]: line for line in found}
    assert [line["cursor"] for line in found] == list(range(1, len(by_id) + 1))
    counts = Counter(line["status"] for line in found)
    assert last["counts"] == {
        "total": len(found),
        "queued": 0,
        "running": 0,
        "waiting": 0,
        **{status: counts[status] for status in ("succeeded", "failed", "cancelled")},
    }
    return by_id


async def test_a_batch_is_accepted_answered_and_its_results_followed(client: Client) -> None:
    batch = await submit(client, items_of(30), metadata={"name": "first"})

    assert batch["status"] == "in_progress"
    assert batch["counts"] == {
        "total": 30,
        "queued": 30,
        "running": 0,
        "waiting": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
    }
    assert batch["metadata"] == {"name": "first"}

    found = await outcome(client, batch["id"])

    assert {custom_id: line["output"] for custom_id, line in found.items()} == {
        f"row-{number}": f"You said: hello {number}" for number in range(30)
    }
    ended = await read(client, batch["id"])
    assert ended["status"] == "completed"
    assert ended["finished_at"] > ended["created_at"]
    assert [line for line in await results(client, batch["id"]) if line["cursor"] > 20] == await results(
        client, batch["id"], after=20
    )


async def test_lines_are_a_batch_too(client: Client) -> None:
    lines = "\n".join(json.dumps(item) for item in items_of(3)) + "\n\n"
    response = await client.http.post(
        "/batches",
        params={"agent_type": "echo", "metadata": '{"form": "lines"}', "max_running": 2, "deadline_s": 60},
        content=lines,
        headers={"Content-Type": "application/x-ndjson; charset=utf-8"},
    )

    assert response.status_code == httpx.codes.ACCEPTED, response.text
    assert response.headers["location"] == f"/api/v1/batches/{response.json()['id']}"
    assert response.json()["metadata"] == {"form": "lines"}
    assert (await outcome(client, response.json()["id"])).keys() == {"row-0", "row-1", "row-2"}


async def test_an_item_keeps_every_character(client: Client) -> None:
    query = "a\tb\nc\rd\\e\\nf \\. \x7f\u2028 'quoted' \"twice\" 😀 \\N"
    batch = await submit(client, [{"custom_id": "tab\t\\", "query": query, "metadata": {"\t": ["\\\n"]}}])
    line = (await outcome(client, batch["id"]))["tab\t\\"]
    run = await client.read(line["run_id"])

    assert run["custom_id"] == "tab\t\\"
    assert run["query"] == query
    assert run["metadata"] == {"\t": ["\\\n"]}
    assert run["batch_id"] == batch["id"]


GOOD = {"custom_id": "good", "query": "hello"}

BAD_ITEMS: list[tuple[str, set[tuple[str, str]]]] = [
    ("{}", {("/custom_id", "missing"), ("/query", "missing")}),
    ('{"custom_id": "", "query": ""}', {("/custom_id", "string_too_short"), ("/query", "string_too_short")}),
    ('{"custom_id": "%s", "query": "x"}' % ("x" * 129), {("/custom_id", "string_too_long")}),
    ('{"custom_id": 1, "query": ["x"]}', {("/custom_id", "string_type"), ("/query", "string_type")}),
    ('{"custom_id": "a", "query": "x", "model": "y"}', {("/model", "extra_forbidden")}),
    ('{"custom_id": "a", "query": "x", "metadata": []}', {("/metadata", "dict_type")}),
    ('{"custom_id": "a\\u0000", "query": "\\ud800"}', {("/custom_id", "nul_character"), ("/query", "lone_surrogate")}),
    ('{"custom_id": "a", "query": "x\\u0000"}', {("/query", "nul_character")}),
    ('{"custom_id": "a", "query": "x", "metadata": {"n": 1e999}}', {("/metadata/n", "number_out_of_range")}),
    ('{"custom_id": "good", "query": "again"}', {("/custom_id", "repeated")}),
    ('"text"', {("", "model_type")}),
    ("null", {("", "model_type")}),
]

NOT_JSON = ["{", "{]", "nope", "[1,]", '{"custom_id": "a", "custom_id": "a", "query": "x"}', "NaN", '"\\x"', "[" * 80]


async def nothing_stored(client: Client) -> bool:
    """Whether the user has no batch and no run."""
    batches, runs = await client.http.get("/batches"), await client.http.get("/runs")
    return not batches.json()["items"] and not runs.json()["items"]


async def post(client: Client, items: list[str], *, lines: bool) -> httpx.Response:
    """Submit items as they are written."""
    if lines:
        return await client.http.post(
            "/batches",
            params={"agent_type": "echo"},
            content="\n".join(items),
            headers={"Content-Type": "application/x-ndjson"},
        )
    body = f'{{"agent_type": "echo", "items": [{", ".join(items)}]}}'
    return await client.http.post("/batches", content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("item", "errors"), BAD_ITEMS)
@pytest.mark.parametrize("lines", [False, True])
async def test_a_bad_item_is_named_and_nothing_is_stored(
    client: Client, item: str, errors: set[tuple[str, str]], lines: bool
) -> None:
    response = await post(client, [json.dumps(GOOD), item, json.dumps({**GOOD, "custom_id": "z"})], lines=lines)

    assert errors_of(response) == {(f"/items/1{pointer}", code) for pointer, code in errors}
    assert await nothing_stored(client)


@pytest.mark.parametrize("item", NOT_JSON)
async def test_a_line_that_is_not_json_is_a_bad_item_and_a_body_that_is_not_is_malformed(
    client: Client, item: str
) -> None:
    items = [json.dumps(GOOD), item]

    assert errors_of(await post(client, items, lines=True)) == {("/items/1", "malformed_json")}
    problem_of(await post(client, items, lines=False), 400, "malformed_json")
    assert await nothing_stored(client)


async def test_bytes_that_are_not_utf8_are_malformed(client: Client) -> None:
    bad = json.dumps({**GOOD, "query": "BAD"}).encode().replace(b"BAD", b"\xff")
    headers = {"Content-Type": "application/json"}
    body = b'{"agent_type": "echo", "items": [%s]}' % bad
    problem_of(await client.http.post("/batches", content=body, headers=headers), 400, "malformed_json")
    headers = {"Content-Type": "application/x-ndjson"}
    response = await client.http.post("/batches", params={"agent_type": "echo"}, content=bad, headers=headers)

    assert errors_of(response) == {("/items/0", "malformed_json")}


async def test_of_many_bad_items_the_first_hundred_are_named(client: Client) -> None:
    items = [json.dumps(item if number % 2 else {}) for number, item in enumerate(items_of(1000))]
    errors = problem_of(await post(client, items, lines=True), 422)["errors"]

    assert len(errors) == 100
    assert {error["pointer"] for error in errors} == {
        f"/items/{number}/{name}" for number in range(0, 100, 2) for name in ("custom_id", "query")
    }
    assert await nothing_stored(client)


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        ({"items": None}, ("/items", "missing")),
        ({"items": []}, ("/items", "too_short")),
        ({"items": {"custom_id": "a"}}, ("/items", "list_type")),
        ({"agent_type": None}, ("/agent_type", "string_type")),
        ({"agent_type": "nobody"}, ("/agent_type", "unknown_agent")),
        ({"agent_type": "x" * 64}, ("/agent_type", "string_too_long")),
        ({"agent_type": "\0"}, ("/agent_type", "nul_character")),
        ({"metadata": {"a": "\0"}}, ("/metadata/a", "nul_character")),
        ({"metadata": "x"}, ("/metadata", "dict_type")),
        ({"max_running": 0}, ("/max_running", "greater_than_equal")),
        ({"max_running": "1"}, ("/max_running", "int_type")),
        ({"deadline_s": 0}, ("/deadline_s", "greater_than")),
        ({"deadline_s": 1e9}, ("/deadline_s", "less_than_equal")),
        ({"priority": 1}, ("/priority", "extra_forbidden")),
    ],
)
async def test_what_is_said_of_all_items_is_checked(client: Client, rest: Json, error: tuple[str, str]) -> None:
    response = await client.http.post("/batches", json={"agent_type": "echo", "items": [GOOD], **rest})

    assert errors_of(response) == {error}
    assert await nothing_stored(client)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({}, ("?agent_type", "missing")),
        ({"agent_type": "nobody"}, ("?agent_type", "unknown_agent")),
        ({"agent_type": "\0"}, ("?agent_type", "nul_character")),
        ({"agent_type": "echo", "max_running": "x"}, ("?max_running", "int_parsing")),
        ({"agent_type": "echo", "deadline_s": "nan"}, ("?deadline_s", "float_parsing")),
        ({"agent_type": "echo", "deadline_s": "1e9"}, ("?deadline_s", "less_than_equal")),
        ({"agent_type": "echo", "deadline_s": "1000000000"}, ("?deadline_s", "less_than_equal")),
        ({"agent_type": "echo", "metadata": "[]"}, ("?metadata", "dict_type")),
        ({"agent_type": "echo", "metadata": '{"a": "\\u0000"}'}, ("?metadata/a", "nul_character")),
        ({"agent_type": "echo", "priority": "1"}, ("?priority", "extra_forbidden")),
    ],
)
async def test_parameters_of_lines_are_checked(
    client: Client, parameters: dict[str, str], error: tuple[str, str]
) -> None:
    response = await client.http.post(
        "/batches", params=parameters, content=json.dumps(GOOD), headers={"Content-Type": "application/x-ndjson"}
    )

    assert errors_of(response) == {error}
    assert await nothing_stored(client)


async def test_a_body_of_another_kind_is_refused(client: Client) -> None:
    body = json.dumps({"agent_type": "echo", "items": [GOOD]})
    for headers in (
        {},
        {"Content-Type": "text/csv"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        problem_of(await client.http.post("/batches", content=body, headers=headers), 415)
    both = await client.http.post("/batches", params={"agent_type": "echo"}, json=json.loads(body))
    assert errors_of(both) == {("?agent_type", "extra_forbidden")}
    metadata = {"agent_type": "echo", "metadata": "{"}
    headers = {"Content-Type": "application/x-ndjson"}
    problem_of(await client.http.post("/batches", params=metadata, content=body, headers=headers), 400)
    assert await nothing_stored(client)


async def test_a_batch_of_somebody_else_does_not_exist(client: Client, shared_api: Running) -> None:
    batch = await submit(client, [GOOD])
    async with Client(shared_api.url) as stranger, Client(shared_api.url, "other", client.user_id) as foreigner:
        for other in (stranger, foreigner):
            assert (await other.http.get("/batches")).json()["items"] == []
            assert (await other.http.get("/runs", params={"batch_id": batch["id"]})).json()["items"] == []
            for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("POST", "/retry")):
                response = await other.http.request(method, f"/batches/{batch['id']}{path}")
                problem_of(response, 404, "not_found")
                unknown = await other.http.request(method, f"/batches/{uuid4()}{path}")
                assert unknown.json()["detail"] == response.json()["detail"]
    problem_of(await client.http.get("/batches/not-a-uuid"), 404)


@pytest.mark.parametrize(
    ("after", "code"),
    [*((after, "malformed_cursor") for after in ("", "x", "-1", "01", "1.0")), ("9", "impossible_cursor")],
)
async def test_a_cursor_that_no_result_had_is_refused(client: Client, after: str, code: str) -> None:
    batch = await submit(client, [GOOD])

    problem_of(await client.http.get(f"/batches/{batch['id']}/results", params={"after": after}), 400, code)


async def test_batches_and_their_runs_are_pages(client: Client) -> None:
    first, second = await submit(client, items_of(2)), await submit(client, items_of(25))
    page = (await client.http.get("/batches", params={"limit": 1})).json()
    rest = (await client.http.get("/batches", params={"cursor": page["next_cursor"]})).json()

    assert [batch["id"] for batch in page["items"] + rest["items"]] == [second["id"], first["id"]]

    page = (await client.http.get("/runs", params={"batch_id": second["id"]})).json()
    rest = (await client.http.get("/runs", params={"batch_id": second["id"], "cursor": page["next_cursor"]})).json()
    assert [run["custom_id"] for run in page["items"] + rest["items"]] == [f"row-{n}" for n in range(24, -1, -1)]


async def test_a_key_submits_once(client: Client) -> None:
    body, headers = {"agent_type": "echo", "items": items_of(3)}, {"Idempotency-Key": "the only one"}
    first = await client.http.post("/batches", json=body, headers=headers)
    again = await client.http.post("/batches", json=body, headers=headers)
    other = await client.http.post("/batches", json={**body, "items": items_of(4)}, headers=headers)

    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    problem_of(other, 422, "idempotency_key_reused")
    assert len((await client.http.get("/batches")).json()["items"]) == 1


async def test_one_bad_line_among_fifty_thousand_is_named_and_nothing_is_stored(client: Client) -> None:
    lines = [json.dumps(item) for item in items_of(50_000)]
    lines[31_337] = '{"custom_id": "row-31337", "query": 1}'

    assert errors_of(await post(client, lines, lines=True)) == {("/items/31337/query", "string_type")}
    assert await nothing_stored(client)


async def test_lines_under_a_key_are_other_lines_with_other_parameters(client: Client) -> None:
    async def lines(**parameters: str) -> httpx.Response:
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "lines"}
        return await client.http.post("/batches", params=parameters, content=json.dumps(GOOD), headers=headers)

    first = await lines(agent_type="echo")
    again, other = await lines(agent_type="echo"), await lines(agent_type="slow")

    assert first.json()["id"] == again.json()["id"]
    assert other.status_code == 422


async def test_a_cancelled_batch_ends_soon_with_what_it_has(client: Client) -> None:
    batch_id = (await submit(client, items_of(1200, "60 seconds"), "slow"))["id"]
    while (await read(client, batch_id))["counts"]["running"] < 4:
        pass
    following = asyncio.create_task(results(client, batch_id, follow="true"))
    answer = await client.http.post(f"/batches/{batch_id}/cancel")
    told = await following
    again = await client.http.post(f"/batches/{batch_id}/cancel")

    assert answer.status_code in {200, 202}
    assert answer.json()["status"] in {"cancelling", "cancelled"}
    assert told[-1]["status"] == "cancelled"
    assert told[-1]["counts"]["cancelled"] == 1200
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")


async def test_what_failed_can_be_retried(client: Client) -> None:
    batch = await submit(client, items_of(3), "breaks", metadata={"name": "first"})
    unfinished = await submit(client, items_of(1, "60 seconds"), "slow")
    refused = await client.http.post(f"/batches/{unfinished['id']}/retry")
    failed = await outcome(client, batch["id"])
    key = {"Idempotency-Key": "again"}
    retried = await client.http.post(f"/batches/{batch['id']}/retry", headers=key)
    replayed = await client.http.post(f"/batches/{batch['id']}/retry", headers=key)
    again = await outcome(client, retried.json()["id"])
    fine = await submit(client, items_of(1))
    await outcome(client, fine["id"])
    nothing = await client.http.post(f"/batches/{fine['id']}/retry")
    await client.http.post(f"/batches/{unfinished['id']}/cancel")

    error = {"code": "agent_error", "message": "The agent raised RuntimeError.", "retryable": False}
    assert [line["error"] for line in failed.values()] == [error] * 3
    problem_of(refused, 409, "batch_unfinished")
    assert retried.status_code == 202
    assert (retried.json()["retry_of"], retried.json()["metadata"]) == (batch["id"], {"name": "first"})
    assert retried.headers["location"] == f"/api/v1/batches/{retried.json()['id']}"
    assert replayed.json()["id"] == retried.json()["id"]
    assert replayed.headers["idempotency-replayed"] == "true"
    runs = [await client.read(line["run_id"]) for line in again.values()]
    assert {run["retry_of"] for run in runs} == {line["run_id"] for line in failed.values()}
    problem_of(nothing, 409, "nothing_failed")
