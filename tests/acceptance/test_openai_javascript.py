"""OpenAI's client in JavaScript against this service: its helpers put together what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.node import Call, Program, program
from tests.support.service import KEYS, Running, Service, serving

AGENTS = {
    "echo": "tests.support.agents:echo",
    "recalls": "tests.support.agents:recalls",
    "patient": "tests.support.agents:patient",
    "form": "tests.support.agents:form",
    "unicode": "tests.support.agents:unicode",
    "second_thoughts": "tests.support.agents:second_thoughts",
    "breaks": "tests.support.agents:breaks",
    "asks": "tests.support.waiting_agents:asks",
}

pytestmark = pytest.mark.timeout(300)  # The first test installs the client.


@pytest.fixture(scope="module")
def clients() -> Iterator[Program]:
    with program("openai.mjs") as clients:
        yield clients


@pytest.fixture(scope="module")
def house(new_database: Any, new_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    agents = ",".join(f"{name}={path}" for name, path in AGENTS.items())
    environment = {"AGENTS": agents, "LEASE_SECONDS": "3", "BEAT_SECONDS": "1", "DRAIN_SECONDS": "0"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("openai"), environment) as house:
        house.worker()
        yield house


@pytest.fixture(scope="module")
def api(house: Service) -> Running:
    return house.api()


class Caller:
    """A user with OpenAI's client, at one process of the service."""

    def __init__(self, clients: Program, api: Running, user_id: str) -> None:
        self.name = str(uuid4())
        self._clients, self._api, self._user = clients, api, {"X-User-ID": user_id}
        options = {"baseURL": f"{api.url}/v1", "apiKey": KEYS["acme"], "defaultHeaders": self._user}
        clients.do("open", name=self.name, **options)

    def begin(self, verb: str, **given: Any) -> Call:
        """Call, and do not wait."""
        return self._clients.begin(verb, name=self.name, **given)

    def do(self, verb: str, **given: Any) -> Any:
        """Call; returns what the client has made of the answer."""
        return self.begin(verb, **given).ended()

    def run_of(self, made: str) -> dict[str, Any]:
        """Read a run as this service shows it."""
        run_id = UUID(made.partition("-" if made.startswith("chatcmpl") else "_")[2])
        headers = {"X-API-Key": KEYS["acme"], **self._user}
        return httpx.get(f"{self._api.url}/api/v1/runs/{run_id}", headers=headers).json()


@pytest.fixture
def caller(clients: Program, api: Running) -> Caller:
    return Caller(clients, api, str(uuid4()))


def text_of(events: list[Any]) -> str:
    """Put the text of the last item together from its deltas."""
    texts: dict[int, str] = {}
    for event in events:
        if event["type"] == "response.output_text.delta":
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
    return texts[max(texts)]


def numbers_of(events: list[Any]) -> list[int]:
    """List the numbers of the events, which grow."""
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    return numbers


def is_said(call: Call) -> bool:
    """Tell whether some text has come."""
    return any(event["type"] == "response.output_text.delta" for event in call.seen)


@pytest.mark.parametrize("model", ["echo", "unicode", "second_thoughts"])
def test_a_streamed_response_is_what_is_stored(caller: Caller, model: str) -> None:
    call = caller.begin("respond in a stream", body={"model": model, "input": "hello there"})
    final = call.ended()
    stored = caller.do("retrieve", id=final["id"])
    run = caller.run_of(final["id"])

    numbers_of(call.seen)
    assert final["output_text"] == text_of(call.seen) == stored["output_text"]
    assert final["output_text"] == run["output"] or json.loads(final["output_text"]) == run["output"]
    assert (final["status"], final["usage"]) == ("completed", stored["usage"])


def test_a_response_in_the_background_is_read_on_at_another_api_process(
    clients: Program, house: Service, api: Running, tmp_path: Path
) -> None:
    word, user_id, dying = tmp_path / "word", str(uuid4()), house.api()
    body = {"model": "patient", "input": str(word), "background": True}
    broken = Caller(clients, dying, user_id).begin("respond and read", body=body)
    eventually(lambda: broken.is_over or is_said(broken))
    dying.kill()
    broken.failure()

    caller = Caller(clients, api, user_id)
    response_id = broken.seen[0]["response"]["id"]
    assert caller.do("retrieve", id=response_id)["status"] == "in_progress"
    after = {"starting_after": broken.seen[-1]["sequence_number"]}
    call = caller.begin("read on", id=response_id, query=after)
    whole = caller.begin("replay", id=response_id)
    eventually(lambda: whole.is_over or is_said(whole))
    word.touch()
    call.ended()

    numbers_of([*broken.seen, *call.seen])
    assert text_of([*broken.seen, *call.seen]) == "Well, at last."
    assert call.seen[-1]["type"] == "response.completed"
    assert whole.ended()["output_text"] == "Well, at last."
    assert caller.do("replay", id=response_id, query=after)["output_text"] == "Well, at last."


def test_a_response_whose_worker_dies_is_put_together_right(caller: Caller, house: Service, tmp_path: Path) -> None:
    word = tmp_path / "word"
    call = caller.begin("respond in a stream", body={"model": "patient", "input": str(word)})
    completion = caller.begin(
        "complete in a stream", body={"model": "patient", "messages": [{"role": "user", "content": str(word)}]}
    )
    eventually(lambda: call.is_over or (is_said(call) and completion.seen))
    for running in house.processes:
        if running.name == "worker" and running.process.poll() is None:
            running.kill()
    house.worker()
    eventually(lambda: call.is_over or [each["type"] for each in call.seen].count("response.in_progress") == 2)
    word.touch()

    assert call.ended()["output_text"] == "Well, at last."
    assert completion.ended()["choices"][0]["message"]["content"] == "Well, at last."


def test_a_conversation_of_three_turns_is_a_thread(caller: Caller) -> None:
    conversation = caller.do("converse", body={"metadata": {"about": "cards"}})
    made = [
        caller.do("respond", body={"model": "recalls", "input": text, "conversation": conversation["id"]})
        for text in ("one", "two")
    ]
    body = {"model": "recalls", "input": "three", "previous_response_id": made[-1]["id"]}
    made.append(caller.do("respond in a stream", body=body))
    items = caller.begin("items", id=conversation["id"], query={"order": "asc", "limit": 4})
    items.ended()

    assert [each["output_text"] for each in made] == ["one;", "one;two;", "one;two;three;"]
    assert [item["content"][0]["text"] for item in items.seen] == [
        "one",
        "one;",
        "two",
        "one;two;",
        "three",
        "one;two;three;",
    ]
    assert made[-1]["conversation"]["id"] == conversation["id"]


@pytest.mark.parametrize("verb", ["respond", "respond in a stream"])
def test_a_call_of_the_clients_is_answered(caller: Caller, verb: str) -> None:
    plan = '[[["elsewhere", {"box": 1}]], [["elsewhere", {"box": 2}]]]'
    asked = caller.do(verb, body={"model": "asks", "input": plan})
    weights = []
    for weight in (2, 3):
        [call] = asked["output"]
        assert (call["type"], call["name"]) == ("function_call", "elsewhere")
        weights.append(json.loads(call["arguments"])["box"])
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": f'{{"weight":{weight}}}'}
        asked = caller.do(verb, body={"model": "asks", "input": [output], "previous_response_id": asked["id"]})

    assert weights == [1, 2]
    assert json.loads(asked["output_text"]) == ['elsewhere: {"weight":2}', 'elsewhere: {"weight":3}']


def test_a_response_is_cancelled_and_its_reader_is_told(caller: Caller, tmp_path: Path) -> None:
    body = {"model": "patient", "input": str(tmp_path / "never"), "background": True}
    call = caller.begin("respond in a stream", body=body)
    eventually(lambda: call.is_over or is_said(call))
    response_id = call.seen[0]["response"]["id"]
    cancelled = caller.do("cancel", id=response_id)

    assert (cancelled["status"], cancelled["output"][0]["content"][0]["text"]) == ("cancelled", "Well")
    assert call.ended()["status"] == "cancelled"
    assert caller.do("delete", id=response_id)["deleted"]
    assert caller.begin("retrieve", id=response_id).failure()["status"] == 404


@pytest.mark.parametrize("model", ["echo", "form", "unicode"])
def test_a_streamed_completion_is_what_is_stored(caller: Caller, model: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    body = {"model": model, "messages": messages, "stream_options": {"include_usage": True}}
    call = caller.begin("complete in a stream", body=body)
    final = call.ended()
    run = caller.run_of(final["id"])

    [choice] = final["choices"]
    content = choice["message"]["content"]
    assert content == run["output"] or json.loads(content) == run["output"]
    assert choice["finish_reason"] == "stop"
    assert final["usage"]["completion_tokens"] == run["usage"]["output_tokens"]
    whole = caller.do("complete", body={"model": model, "messages": messages})
    assert whole["choices"][0]["message"]["content"] == content


@pytest.mark.parametrize("verb", ["respond", "respond in a stream", "complete", "complete in a stream"])
def test_an_error_is_the_one_that_the_client_knows(caller: Caller, verb: str) -> None:
    of_chat = {"messages": [{"role": "user", "content": "?"}]}
    asked: dict[str, Any] = of_chat if verb.startswith("complete") else {"input": "?"}
    unknown = caller.begin(verb, body={"model": "gpt-7", **asked}).failure()
    refused = caller.begin(verb, body={"model": "echo", **asked, "temperature": 0.2}).failure()
    failed = caller.begin(verb, body={"model": "breaks", **asked})
    eventually(lambda: failed.is_over)

    assert (unknown["name"], unknown["code"]) == ("NotFoundError", "model_not_found")
    assert (refused["name"], refused["status"]) == ("BadRequestError", 400)
    error = failed.ended()["error"] if verb == "respond in a stream" else failed.failure()
    assert error["code"] == "agent_error"


def test_agents_are_models(caller: Caller) -> None:
    assert {model["id"] for model in caller.do("models")} == AGENTS.keys()
