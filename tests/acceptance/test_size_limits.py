"""What a body, a page and an output may hold: bounded before it is in memory."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from agent_relay.api.problems import Refused
from agent_relay.api.requests.validation import MOST_VALUES, read_json
from tests.support.client import Client
from tests.support.problems import errors_of, problem_of

MIB = 1 << 20


def refused(body: bytes) -> str:
    with pytest.raises(Refused) as refusal:
        read_json(body)
    return refusal.value.errors[0].code if refusal.value.errors else refusal.value.code


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"1," * 500_000 + b"1]",
        b"[" + b"[]," * 300_000 + b"[]]",
        b"{" + b",".join(b'"%d":{}' % n for n in range(5000)) + b"}",
        b"[" + b'"",' * 300_000 + b'""]',
        b"[" + b'"\\"",' * 200_000 + b'""]',
        b"[" + b",".join([b"1e308"] * 100_000) + b"]",
    ],
    ids=["numbers", "arrays", "members", "texts", "escapes", "large numbers"],
)
def test_a_body_of_too_many_values_is_refused_before_they_are_made(body: bytes) -> None:
    assert refused(body) == "too_many_values"


@pytest.mark.parametrize(
    "value",
    [
        ["x"] * (MOST_VALUES - 1),
        {"query": '"Well, [he said], {and} left": ' * 20_000},
        {"query": "\\" * 100_000 + ',"[{' * 10_000},
        {"a": [{"b": n} for n in range(MOST_VALUES // 4)]},
    ],
    ids=["just as many", "prose", "backslashes", "nested"],
)
def test_text_is_one_value_whatever_it_looks_like(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value


def test_a_body_that_is_not_json_is_read_in_no_time() -> None:
    began = time.thread_time()
    many = b"," * MOST_VALUES
    for body in (
        b'"",' + b'"" ' * (MIB // 3) + many,
        many + b'"\\' * (MIB // 2),
        many + b'"' * MIB,
        many + b'\\"' * (MIB // 2),
    ):
        with pytest.raises(Refused):
            read_json(body)
    for body in (b'"' * MIB, b'\\"' * (MIB // 2), b'"\\' * (MIB // 2), b'"' + b"\\" * MIB, b"[" + b'"' * MIB):
        with pytest.raises(Refused):
            read_json(body)
    assert time.thread_time() - began < 5, "time grows with the square of the length"


async def test_numbers_come_back_as_they_went_in(client: Client) -> None:
    metadata = {
        "large": 1e308,
        "small": 5e-324,
        "whole": 1.0,
        "negative": -1.7976931348623157e308,
        "zero": -0.0,
        "n": 2**60,
    }
    thread = (await client.http.post("/threads", json={"agent_type": "echo", "metadata": metadata})).json()
    run = await client.run("hello", agent_type="echo", metadata=metadata)
    body = {
        "agent_type": "echo",
        "metadata": metadata,
        "items": [{"custom_id": "1", "query": "?", "metadata": metadata}],
    }
    batch = (await client.http.post("/batches", json=body)).json()
    of_batch = (await client.http.get(f"/runs?batch_id={batch['id']}")).json()["items"][0]
    for shown in (thread, run, await client.read(run["id"]), batch, of_batch):
        assert json.dumps(shown["metadata"], sort_keys=True) == json.dumps(metadata, sort_keys=True)


async def test_a_page_of_large_runs_ends_early_and_goes_on(client: Client) -> None:
    large = [1e308] * 1900
    ids = [(await client.run("q" * 300_000, agent_type="echo", metadata={"n": large}))["id"] for _ in range(12)]
    seen, cursor, pages = list[str](), "", 0
    while True:
        response = await client.http.get(f"/runs?limit=100{cursor}")
        assert len(response.content) < 6 * MIB
        page = response.json()
        seen += [run["id"] for run in page["items"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == ids[::-1]
    assert pages > 1


async def test_pages_of_large_messages_end_early_and_go_on(client: Client) -> None:
    thread_id = await client.thread("echo")
    for number in range(6):
        await client.ended((await client.run(f"{number}" * 500_000, thread_id=thread_id))["id"])
    whole = (await client.http.get(f"/threads/{thread_id}")).json()["messages"]
    assert whole, "the newest messages are shown"
    assert whole[-1]["role"] == "assistant"
    seen, cursor = list[str](), ""
    while True:
        page = (await client.http.get(f"/threads/{thread_id}/messages?limit=100{cursor}")).json()
        seen += [message["id"] for message in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(seen) == len(set(seen)) == 12
    assert seen[-len(whole) :] == [message["id"] for message in whole]


async def test_lists_of_threads_and_batches_with_large_metadata_end_early(client: Client) -> None:
    metadata = {"x": "y" * 350_000}
    for _ in range(5):
        await client.http.post("/threads", json={"agent_type": "echo", "metadata": metadata})
        body = {"agent_type": "echo", "metadata": metadata, "items": [{"custom_id": "1", "query": "?"}]}
        assert (await client.http.post("/batches", json=body)).status_code == 202
    for path in ("/threads", "/batches"):
        page = (await client.http.get(f"{path}?limit=100")).json()
        assert len(page["items"]) < 5
        rest = (await client.http.get(f"{path}?limit=100&cursor={page['next_cursor']}")).json()
        assert len(page["items"]) + len(rest["items"]) == 5


async def test_too_many_values_are_a_problem_document(client: Client) -> None:
    response = await client.http.post("/runs", json={"agent_type": "echo", "query": "?", "metadata": {"n": [1] * 5000}})
    problem_of(response, 422)
    assert ("", "too_many_values") in errors_of(response)
