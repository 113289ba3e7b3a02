"""What a run may produce has a budget: its output, the results of its tools, its history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent_relay.shared.failure_codes import DEAD, RETRYABLE, FailureCode, failure
from agent_relay.shared.runs.claim import earlier_exchanges
from agent_relay.worker.execution.size_limits import Budget, OverBudget
from tests.support.client import Client
from tests.support.problems import problem_of
from tests.support.service import Service, serving
from tests.support.stage import Stage

AGENTS = ["goes_on", "says", "essay", "never_valid", "calls"]
JSON_AROUND = len('{"text":""}')
OUTPUT, RESULT, HISTORY = 100_000, 50_000, 120_000


@pytest.fixture(scope="module")
def service(new_database: Any, new_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker with small budgets."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("large")) as service:
        service.worker(
            AGENTS=",".join(f"{name}=tests.support.large_agents:{name}" for name in AGENTS),
            MAX_OUTPUT_BYTES=str(OUTPUT),
            MAX_TOOL_RESULT_BYTES=str(RESULT),
            MAX_HISTORY_BYTES=str(HISTORY),
        )
        service.api()
        yield service


@pytest.fixture
def url(service: Service) -> str:
    """Where its API is."""
    return service.processes[-1].url


async def ended(client: Client, agent_type: str, query: str) -> dict[str, Any]:
    return await client.ended((await client.run(query, agent_type=agent_type))["id"])


async def test_an_output_without_end_ends_the_run_at_once(url: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    async with Client(url) as client:
        response = await client.http.post("/agent/query", json={"agent_type": "goes_on", "query": str(said)})
        problem = problem_of(response, 502)
        assert problem["code"] == "output_too_large"
        assert str(OUTPUT) in problem["detail"]
        run = await client.read(problem["run_id"])
    assert (run["status"], run["attempt"], run["error"]["retryable"]) == ("failed", 1, False)
    assert set(run["partial_output"]) == {"x"}, "what was published before stays"
    assert len(run["partial_output"]) <= OUTPUT
    size = said.stat().st_size
    async with Client(url) as client:
        assert (await ended(client, "says", "y 10"))["output"] == "y" * 10
    assert said.stat().st_size == size, "the model's stream is stopped"


@pytest.mark.parametrize(
    ("agent_type", "query", "fits"),
    [
        ("says", f"a {OUTPUT}", True),
        ("says", f"a {OUTPUT + 1}", False),
        ("says", f"ü {OUTPUT // 2}", True),
        ("says", f"ü {OUTPUT // 2 + 1}", False),
        ("says", f"😀 {OUTPUT // 4 + 1}", False),
        ("essay", f"a {OUTPUT - JSON_AROUND}", True),
        ("essay", f"a {OUTPUT}", False),
        ("essay", f"\\ {OUTPUT // 2}", False),
    ],
)
async def test_the_bytes_of_an_output_count_as_they_are_stored(
    url: str, agent_type: str, query: str, *, fits: bool
) -> None:
    async with Client(url) as client:
        run = await ended(client, agent_type, query)
    assert (run["status"] == "succeeded") is fits
    assert fits or run["error"]["code"] == "output_too_large"


async def test_a_response_that_is_never_valid_ends_too(url: str) -> None:
    async with Client(url) as client:
        run = await ended(client, "never_valid", "?")
    assert (run["error"]["code"], run["partial_output"]) == ("output_too_large", None)


@pytest.mark.parametrize(
    ("tool", "count", "size"),
    [
        ("text", RESULT + 1, RESULT + 1),
        ("umlauts", RESULT // 2 + 1, RESULT + 2),
        ("rows", RESULT // 10, None),
        ("file", RESULT + 1, RESULT + 1),
        ("beside", RESULT + 1, RESULT + 1),
        ("complains", RESULT + 1, None),
    ],
)
async def test_a_tool_result_that_is_too_large_ends_the_run_with_a_sentence(
    url: str, tool: str, count: int, size: int | None
) -> None:
    async with Client(url) as client:
        run = await ended(client, "calls", f"{tool} {count}")
        assert (run["error"]["code"], run["usage"]["requests"]) == ("agent_error", 1)
        message = run["error"]["message"]
        assert str(RESULT) in message
        assert tool in message or tool == "beside"
        assert size is None or str(size) in message
        if tool != "complains":
            assert (await ended(client, "calls", f"{tool} 100"))["status"] == "succeeded"


async def test_a_run_is_given_the_newest_exchanges_that_fit_and_whole(url: str, service: Service) -> None:
    async with Client(url) as client:
        thread_id = await client.thread("calls")
        for _ in range(4):
            run = await client.ended((await client.run("text 45000", thread_id=thread_id))["id"])
            assert run["status"] == "succeeded"
        last = await client.ended((await client.run("what was there?", thread_id=thread_id))["id"])
    told = json.loads(last["output"])
    assert told["results"] == ["t" * 80] * 2, "two exchanges of 45,000 bytes fit in 120,000"
    assert (told["requests"], told["responses"]) == (5, 4)
    log = service.processes[0].log.read_text()
    assert f"claim.history_cut run_id={last['id']} exchanges_left_out=2" in log


async def test_a_transcript_that_is_too_large_is_stored_without_its_largest_results(url: str, service: Service) -> None:
    async with Client(url) as client:
        thread_id = await client.thread("calls")
        query = "umlauts 24000 " + "q" * 80_000
        run = await client.ended((await client.run(query, thread_id=thread_id))["id"])
        assert run["status"] == "succeeded"
        last = await client.ended((await client.run("what was there?", thread_id=thread_id))["id"])
    (result,) = json.loads(last["output"])["results"]
    assert result.startswith("The result had 48")
    with psycopg.connect(service.database_url) as connection:
        row = connection.execute(
            "SELECT octet_length(messages) FROM transcripts WHERE run_id = %s", [run["id"]]
        ).fetchone()
    assert row is not None
    assert row[0] <= HISTORY


async def test_an_exchange_whose_transcript_does_not_fit_at_all_is_told_as_query_and_answer(url: str) -> None:
    async with Client(url) as client:
        thread_id = await client.thread("calls")
        query = 'text 10 "' + "\\" * 70_000  # Escaped, the transcript has 140,000 bytes.
        run = await client.ended((await client.run(query, thread_id=thread_id))["id"])
        assert run["status"] == "succeeded"
        last = await client.ended((await client.run("what was there?", thread_id=thread_id))["id"])
    assert json.loads(last["output"]) == {"requests": 2, "responses": 1, "results": []}


async def test_the_history_is_measured_before_it_is_read(stage: Stage) -> None:
    worker_id = await stage.worker()
    for number, (query, transcript) in enumerate([("old", "t" * 600), ("a" * 100, "t" * 5000), ("new", "t" * 300)]):
        run_id = await stage.query(query=query)
        await stage.claimed(run_id, worker_id)
        await stage.execute(
            "UPDATE runs SET status = 'succeeded', finished_at = now(), output = :output WHERE id = :id",
            id=run_id,
            output=f"answer {number}",
        )
        await stage.execute("INSERT INTO transcripts VALUES (:id, :messages)", id=run_id, messages=transcript)
    claimed = await stage.claimed(await stage.query(query="next"), worker_id)

    async def given(most_bytes: int) -> list[tuple[str, str | None]]:
        exchanges = await earlier_exchanges(stage.database, claimed, most_bytes)
        return [(each.query[:3], each.transcript and each.transcript[:1]) for each in exchanges]

    assert await given(10_000) == [("old", "t"), ("aaa", "t"), ("new", "t")]
    assert await given(1100) == [("old", "t"), ("aaa", None), ("new", "t")]
    assert await given(1000) == [("aaa", None), ("new", "t")]
    assert await given(300) == [("new", "t")]
    assert await given(299) == [("old", None), ("aaa", None), ("new", None)]
    assert await given(120) == [("aaa", None), ("new", None)]
    assert await given(10) == []


def test_a_length_alone_decides_nearly_always() -> None:
    budget = Budget(100, 100)
    for text in ("a" * 100, "ü" * 50, "€" * 33, "😀" * 25):
        budget.check_output(text)
    for text in ("a" * 101, "ü" * 51, "€" * 34, "😀" * 26):
        with pytest.raises(OverBudget):
            budget.check_output(text)


def test_a_failure_is_neither_retried_nor_a_dead_letter_and_its_message_has_an_end() -> None:
    assert FailureCode.OUTPUT_TOO_LARGE not in RETRYABLE | DEAD
    assert len(failure(FailureCode.AGENT_ERROR, "m" * 1_000_000)["message"]) < 5000
