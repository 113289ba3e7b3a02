"""Whatever an agent, a model or a tool puts into a message: its run ends once and spoils no other."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequestPart, ModelResponsePart, ToolReturnPart

from tests.support import odd_agents
from tests.support.client import Client, names, texts
from tests.support.eventually import eventually
from tests.support.odd_agents import HALF, OBJECTS, PARTS
from tests.support.service import KEYS, Service, serving

AGENTS = [
    "metadata_object",
    "metadata_exits",
    "metadata_graph",
    "odd_file_name",
    "huge_number",
    "contains_itself",
    "raises_nul",
    "raises_wordless",
    "panics",
    "exits_as_text",
    "unwinds_badly",
    "split_emoji",
    "half_emoji",
    "odd_tool_name",
    "odd_model_name",
    "odd_form",
    "custom_object",
    "odd",
    "raises_rejection",
    "raises_outage",
    "raises_filter",
    "raises_group",
    "factory_rejects",
    *odd_agents.REJECTING,
    "large",
    "large_output",
    "bystander",
]
ODD_TEXTS = [HALF, odd_agents.OTHER_HALF + HALF, HALF + odd_agents.OTHER_HALF, "a\0b", "caf\udce9.txt", "plain", ""]
BEFORE_A_REQUEST = {"factory_rejects"} | odd_agents.REJECTING.keys()
"""Agents that may raise before their model is asked."""
SECONDS = 60
"""Far more than any of these runs needs, and far less than the deadline up to which one would be repeated."""


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One worker process that serves all of them."""
    folder = tmp_path_factory.mktemp("odd")
    with serving(new_database(), new_redis(), folder) as service:
        service.worker(AGENTS=",".join(f"{name}=tests.support.odd_agents:{name}" for name in AGENTS))
        service.api()
        yield service


@pytest.fixture
def url(service: Service) -> str:
    """Where its API is."""
    return service.processes[-1].url


def transcripts(service: Service, run_id: str) -> list[str]:
    """Read what is stored of a run's messages."""
    with psycopg.connect(service.database_url) as connection:
        rows = connection.execute("SELECT messages FROM transcripts WHERE run_id = %s", [run_id]).fetchall()
    return [messages for (messages,) in rows]


async def asked_twice(client: Client, service: Service, agent_type: str, query: str = "hello") -> dict[str, Any]:
    """Ask an agent twice in one thread; returns the first run. Both end at their first attempt, and can be read."""
    thread_id = await client.thread(agent_type)
    async with asyncio.timeout(SECONDS):
        first, second = [await client.ended((await client.run(query, thread_id=thread_id))["id"]) for _ in range(2)]
    assert first["attempt"] == second["attempt"] == 1
    assert first["usage"]["requests"] > 0 or agent_type in BEFORE_A_REQUEST
    assert second["status"] == first["status"]
    for run in (first, second):
        for messages in transcripts(service, run["id"]):
            ModelMessagesTypeAdapter.validate_json(messages)
        assert run["status"] == "failed" or len(transcripts(service, run["id"])) == 1
        assert names(await client.events(run["id"]))[-1] == "done"
    return first


@pytest.mark.parametrize(
    ("agent_type", "output"),
    [
        ("metadata_object", "Done."),
        ("metadata_exits", "Done."),
        ("metadata_graph", "Done."),
        ("odd_file_name", "Done."),
        ("huge_number", "Done."),
        ("odd_tool_name", "Done."),
        ("odd_model_name", "Yes."),
        ("split_emoji", "So: 😀!"),
        ("half_emoji", "So: \ufffd!"),
        ("odd_form", {"title": "caf\ufffd😀\ufffd", "pages": 1, "tags": []}),
        ("custom_object", {"text": "x", "box": "<object>"}),
    ],
)
async def test_what_json_cannot_say_fails_no_run_that_pydantic_ai_finishes(
    service: Service, url: str, agent_type: str, output: Any
) -> None:
    async with Client(url) as client:
        run = await asked_twice(client, service, agent_type)
        told = texts(await client.events(run["id"]))[-1]

    assert run["status"] == "succeeded"
    assert run["output"] == output
    assert told == output or json.loads(told) == output


@pytest.mark.parametrize(
    ("agent_type", "code", "message"),
    [
        ("raises_nul", "output_invalid", "a\ufffdb"),
        ("raises_wordless", "agent_error", "Wordless"),
        ("panics", "agent_error", "Panic"),
        ("exits_as_text", "agent_error", "ExitsAsText"),
        ("contains_itself", "agent_error", "PydanticSerializationError"),
        ("raises_rejection", "agent_error", "ModelHTTPError"),
        ("raises_outage", "agent_error", "ModelHTTPError"),
        ("raises_filter", "agent_error", "ContentFilterError"),
        ("raises_group", "agent_error", "FallbackExceptionGroup"),
        ("factory_rejects", "agent_error", "ModelHTTPError"),
        *((name, "agent_error", "ModelHTTPError") for name in odd_agents.REJECTING),
    ],
)
async def test_whatever_an_agent_raises_ends_the_run_at_the_first_time(
    service: Service, url: str, agent_type: str, code: str, message: str
) -> None:
    async with Client(url) as client:
        run = await asked_twice(client, service, agent_type)

    assert run["status"] == "failed"
    assert run["error"]["code"] == code
    assert message in run["error"]["message"]


@pytest.mark.parametrize(("stopped_by", "status"), [("cancel", "cancelled"), ("deadline", "failed")])
async def test_what_an_agent_raises_as_it_is_stopped_hides_not_why(url: str, stopped_by: str, status: str) -> None:
    async with Client(url) as client:
        run = await client.run("hello", agent_type="unwinds_badly", deadline_s=2 if stopped_by == "deadline" else 60)
        async with client.following(run["id"]) as events:
            async for event in events:
                if event["event"] == "tool_call" and stopped_by == "cancel":
                    await client.http.post(f"/runs/{run['id']}/cancel")
        run = await client.read(run["id"])

    assert (run["status"], run["attempt"]) == (status, 1)
    assert stopped_by == "cancel" or run["error"]["code"] == "deadline_exceeded"


async def test_a_tool_name_that_is_no_text_is_told_mended(service: Service, url: str) -> None:
    async with Client(url) as client:
        run = await asked_twice(client, service, "odd_tool_name")
        events = await client.events(run["id"])

    assert [event["tool_name"] for event in events if event["event"].startswith("tool_")] == ["lo\ufffdok"] * 2


def recipe(part: str, text: str, thing: str, where: str) -> str:
    """Say what the agent `odd` is to say."""
    return json.dumps({"part": part, "text": text, "object": thing, "where": where})


class Bystander:
    """Somebody whose run streams on the same worker all the while."""

    def __init__(self, url: str, word: Path) -> None:
        self.events = 0
        self.last = ""
        self.texts = list[str]()
        self._url, self._word = url, word
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._word.touch()
        self._thread.join()

    @property
    def longest_gap_ms(self) -> int:
        """Return the CPU time that the worker used, at most, before its loop came back to the bystander's model."""
        gaps = [said.split("/")[0] for said in "".join(self.texts).split()[:-1]]  # The last may not be whole.
        return max(int(gap) for gap in gaps)

    def goes_on(self) -> None:
        """Wait until a few more events have come."""
        seen = self.events
        eventually(lambda: self.events > seen + 2)

    def _listen(self) -> None:
        headers = {"X-API-Key": KEYS["acme"], "X-User-ID": "00000000-0000-4000-8000-000000000001"}
        body = {"agent_type": "bystander", "query": str(self._word)}
        with httpx.Client(base_url=f"{self._url}/api/v1", headers=headers, timeout=SECONDS) as client:
            run = client.post("/runs", json=body).json()
            with client.stream("GET", f"/runs/{run['id']}/stream", params={"deltas": "true"}) as response:
                for line in response.iter_lines():
                    if line:
                        self.events += 1
                        event = json.loads(line)
                        self.last = event["event"]
                        self.texts.append(event.get("append") or "")


async def ask_all(service: Service, url: str, recipes: list[str]) -> list[dict[str, Any]]:
    """Ask the agent `odd` all of these at once."""
    async with Client(url) as client:
        return await asyncio.gather(*(asked_twice(client, service, "odd", each) for each in recipes))


def test_every_kind_of_part_is_known_here() -> None:
    """A kind that is new in pydantic-ai goes into `PARTS`, and so into the tests below."""
    assert {kind.__name__ for union in (ModelRequestPart, ModelResponsePart) for kind in _kinds(union)} == set(PARTS)


def _kinds(union: Any) -> Iterator[type]:
    for arm in get_args(union):
        if isinstance(arm, type):
            yield arm
        elif isinstance(get_origin(arm), type) and get_args(arm) and get_origin(arm).__name__.endswith("Part"):
            yield get_origin(arm)
        else:
            yield from _kinds(arm)


def test_every_kind_of_part_may_be_odd_all_over(service: Service, url: str, tmp_path: Path) -> None:
    with Bystander(url, tmp_path / "word") as bystander:
        runs = asyncio.run(ask_all(service, url, [recipe(part, HALF, "object", "metadata") for part in PARTS]))
        bystander.goes_on()

    assert [run["status"] for run in runs] == ["succeeded"] * len(PARTS)
    assert bystander.last == "done"
    assert bystander.longest_gap_ms < GAP_MS


GAP_MS = 1000
"""Milliseconds of CPU time that the worker may use between two turns of a bystander's model on its event loop.

The clock counts what the process computes, in all its threads, and so whatever keeps the loop or the interpreter's
lock. It stands still while the process waits for a core or for a server: other processes that load the machine do not
make the number larger. A quiet worker uses about ten; what is tried here used to take thousands, or had no end."""

TOO_MANY_VALUES = "has more values than 4194304 bytes"
TOO_LONG = "limit is 4194304"
ENDS = {
    "text_of_14_mb": TOO_LONG,
    "text_of_4_mib": None,
    "wide_text": None,
    "floats": None,
    "integers": None,
    "too_many_integers": TOO_MANY_VALUES,
    "lists": None,
    "objects": None,
    "nested": None,
    "rows": None,
    "too_many_rows": TOO_LONG,
    "return_value": TOO_LONG,
    "small_return_value": None,
    "object_with_rows": None,
    "slots_with_rows": None,
    "model_with_rows": None,
    "models": None,
    "typed_dict": None,
    "tuple": None,
    "generator_of_rows": None,
    "shared": TOO_MANY_VALUES,
    "shared_dicts": TOO_MANY_VALUES,
    "shared_tuples": TOO_MANY_VALUES,
    "shared_objects": TOO_MANY_VALUES,
    "shared_and_contains_itself": TOO_MANY_VALUES,
    "endless": TOO_MANY_VALUES,
    "endless_inside": TOO_MANY_VALUES,
    "endless_in_an_object": TOO_MANY_VALUES,
    "endless_in_slots": TOO_MANY_VALUES,
    "endless_in_a_model": TOO_MANY_VALUES,
    "endless_behind_a_field": TOO_MANY_VALUES,
    "generator": None,
    "map_inside": None,
    "generator_in_an_object": None,
    "generator_in_a_model": None,
    "generator_behind_a_field": None,
    "generator_in_a_set": None,
    "waits": None,
}
"""What tools and output functions return, and what is said of it where its run fails."""
ENDS_OF_TOOLS = ENDS | {
    "metadata": None,
    "object_as_metadata": None,
    "model_as_metadata": None,
    "large_metadata": None,
    "shared_metadata": None,
    "texts_as_content": "texts and files, and the limit is 20000",
    "dicts_as_content": "The agent raised ValueError",
    "rows_and_a_file": None,
    "files": "texts and files, and the limit is 20000",
    "table": None,
}
OUTPUTS_OF_TOOLS = {
    "generator": "[0, 1, 2]",
    "map_inside": "['a', ['0', '1', '2']]",
    "generator_in_an_object": "Boxed(inside=[Slotted(inside=[0, 1, 2])])",
    "generator_in_a_model": "inside={'numbers': [0, 1, 2]}",
    "generator_behind_a_field": "inside=[0, 1, 2] hidden=count(0)",
    "generator_in_a_set": "[[1, 2]]",
    "waits": "[False]",
    "table": "[(1,), (2,)]",
}
"""What a model is given of them, where it is a list or an object."""
OUTPUTS = {
    "generator": [0, 1, 2],
    "map_inside": ["a", ["0", "1", "2"]],
    "generator_in_an_object": {"inside": [{"inside": [0, 1, 2]}]},
    "generator_in_a_model": {"inside": {"numbers": [0, 1, 2]}},
    "generator_behind_a_field": {"inside": [0, 1, 2]},
    "generator_in_a_set": [[1, 2]],
    "waits": [False],
}


@pytest.mark.parametrize("agent_type", ["large", "large_output"])
def test_what_is_large_or_endless_ends_its_own_run_and_keeps_no_loop(
    service: Service, url: str, tmp_path: Path, agent_type: str
) -> None:
    ends = ENDS_OF_TOOLS if agent_type == "large" else ENDS
    code = "agent_error" if agent_type == "large" else "output_too_large"

    async def all_of_them() -> dict[str, dict[str, Any]]:
        async with Client(url) as client:
            return {name: await client.ended((await client.run(name, agent_type=agent_type))["id"]) for name in ends}

    assert service
    with Bystander(url, tmp_path / "word") as bystander:
        runs = asyncio.run(all_of_them())
        bystander.goes_on()

    assert bystander.last == "done"
    for name, run in runs.items():
        wrong = ends[name]
        assert run["attempt"] == 1, name
        error: dict[str, Any] = run["error"] or {}
        assert (run["status"], error.get("code")) == (("failed", code) if wrong else ("succeeded", None)), (name, error)
        assert agent_type != "large" or wrong is None or wrong in error["message"], run
    assert bystander.longest_gap_ms < GAP_MS
    outputs = OUTPUTS_OF_TOOLS if agent_type == "large" else OUTPUTS
    assert {name: runs[name]["output"] for name in outputs} == outputs


def test_metadata_that_is_large_is_kept_as_text(service: Service, url: str) -> None:
    async def ended() -> str:
        async with Client(url) as client:
            thread_id = await client.thread("large")
            return (await client.ended((await client.run("object_as_metadata", thread_id=thread_id))["id"]))["id"]

    (transcript,) = transcripts(service, asyncio.run(ended()))
    (part,) = ModelMessagesTypeAdapter.validate_json(transcript)[2].parts

    assert isinstance(part, ToolReturnPart)
    assert json.loads(part.metadata)["inside"]["inside"][-1] == {"a": 499_999}


RECIPES = st.builds(
    recipe,
    st.sampled_from([*PARTS, "error"]),
    st.sampled_from(ODD_TEXTS) | st.text(max_size=5),
    st.sampled_from([*OBJECTS]),
    st.sampled_from(["content", "metadata"]),
)


def fuzz(service: Service, url: str, word: Path, *, examples: int) -> None:
    """Ask for random oddities, a few at once."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        report_multiple_bugs=False,
    )
    @given(st.lists(RECIPES, min_size=1, max_size=6))
    def ask(recipes: list[str]) -> None:
        runs = asyncio.run(ask_all(service, url, recipes))
        for each, run in zip(recipes, runs, strict=True):
            said = json.loads(each)
            if said["where"] == "metadata" and said["part"] != "error":
                assert run["status"] == "succeeded", run
        bystander.goes_on()

    with Bystander(url, word) as bystander:
        ask()
    assert bystander.last == "done"
    assert bystander.longest_gap_ms < GAP_MS


def test_random_oddities_end_their_own_runs_and_nobody_elses(service: Service, url: str, tmp_path: Path) -> None:
    fuzz(service, url, tmp_path / "word", examples=8)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_random_oddities_for_minutes(service: Service, url: str, tmp_path: Path) -> None:
    fuzz(service, url, tmp_path / "word", examples=300)
