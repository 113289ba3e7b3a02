"""AG-UI's own client runs the agents: its verifier and its schemas take each event, and it ends with what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.node import Call, Program, program
from tests.support.service import KEYS, Running, Service, serving

AGENTS = {
    "echo": "tests.support.agents:echo",
    "patient": "tests.support.agents:patient",
    "patient_form": "tests.support.agents:patient_form",
    "breaks": "tests.support.agents:breaks",
    "bank_support": "agent_relay.worker.agents.bank_support:served",
    "asks": "tests.support.waiting_agents:asks",
}

pytestmark = pytest.mark.timeout(300)  # The first test installs the client.


@pytest.fixture(scope="module")
def clients() -> Iterator[Program]:
    with program("ag_ui.mjs") as clients:
        yield clients


@pytest.fixture(scope="module")
def house(new_database: Any, new_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    agents = ",".join(f"{name}={path}" for name, path in AGENTS.items())
    environment = {"AGENTS": agents, "LEASE_SECONDS": "3", "BEAT_SECONDS": "1", "DRAIN_SECONDS": "0"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("ag-ui"), environment) as house:
        house.worker()
        yield house


@pytest.fixture(scope="module")
def api(house: Service) -> Running:
    return house.api()


class Page:
    """An agent as a page has it."""

    def __init__(self, clients: Program, api: Running, agent: str) -> None:
        self.name = str(uuid4())
        self.headers = {"X-API-Key": KEYS["acme"], "X-User-ID": str(uuid4())}
        self._clients, self._agent = clients, agent
        self.move(api, "open", threadId="thread", headers=self.headers)

    def move(self, api: Running, verb: str = "move", **more: Any) -> None:
        """Ask another process from now on."""
        self._api = api
        self._clients.do(verb, name=self.name, url=f"{api.url}/api/v1/ag-ui/{self._agent}", **more)

    def say(self, text: str) -> None:
        """Add a message of the user's."""
        self._clients.do("add", name=self.name, message={"id": str(uuid4()), "role": "user", "content": text})

    def begin(self, run_id: str = "run-1", **more: Any) -> Call:
        """Run the agent, and do not wait."""
        return self._clients.begin("run", name=self.name, runId=run_id, **more)

    def ask(self, text: str, run_id: str = "run-1") -> dict[str, Any]:
        """Say something, and run the agent to its end."""
        self.say(text)
        return self.begin(run_id).ended()

    def abort(self) -> None:
        """Leave the run."""
        self._clients.do("abort", name=self.name)

    def run_of(self, call: Call) -> dict[str, Any]:
        """Read the run of this service that a call was told of."""
        run_id = events(call)[0]["metadata"]["run_id"]
        response = httpx.get(f"{self._api.url}/api/v1/runs/{run_id}", headers=self.headers)
        assert response.status_code == httpx.codes.OK, response.text
        return response.json()


def events(call: Call, kind: str = "") -> list[dict[str, Any]]:
    """List the events that have come, or those of a type."""
    found = [each["event"] for each in call.seen if "event" in each]
    return [event for event in found if not kind or event["type"] == kind]


def states(call: Call) -> list[Any]:
    """List the states that the client has had."""
    return [each["state"] for each in call.seen if "state" in each]


def texts(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """List what was said by whom; nothing of calls."""
    return [(each["role"], each["content"]) for each in messages if each.get("content")]


def begun(call: Call) -> None:
    """Wait until the answer has begun: with a text, or with a state."""
    eventually(lambda: call.is_over or events(call, "TEXT_MESSAGE_CONTENT") or states(call))
    assert not call.is_over, call.failed


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """The file that patient agents wait for."""
    return tmp_path / "word"


def test_a_text_and_the_next_query_are_one_conversation(clients: Program, api: Running) -> None:
    page = Page(clients, api, "echo")
    page.say("one two three")
    first = page.begin()
    first.ended()
    ended = page.ask("four", "run-2")

    assert events(first)[-1]["outcome"] == {"type": "success"}
    assert texts(ended["messages"]) == [
        ("user", "one two three"),
        ("assistant", "You said: one two three"),
        ("user", "four"),
        ("assistant", "You said: four"),
    ]
    thread_id = page.run_of(first)["thread_id"]
    thread = httpx.get(f"{api.url}/api/v1/threads/{thread_id}", headers=page.headers).json()
    assert [each["content"] for each in thread["messages"]] == [text for _, text in texts(ended["messages"])]


def test_a_structured_output_is_the_state_beside_the_calls_of_tools(clients: Program, api: Running) -> None:
    page = Page(clients, api, "bank_support")
    page.say("my balance with pending transactions")
    call = page.begin()
    ended = call.ended()

    assert events(call, "STATE_SNAPSHOT")
    assert events(call, "STATE_DELTA")
    advice = [state.get("support_advice", "") for state in states(call)]
    assert advice == sorted(advice, key=len)
    assert len(set(advice)) > 3
    assert ended["state"] == states(call)[-1] == ended["result"] == page.run_of(call)["output"]
    [tool] = [each for each in ended["messages"] if each["role"] == "tool"]
    assert tool["content"] == "$1123.45"
    assert page.ask("again", "run-2")["result"]


def test_what_a_lost_worker_wrote_is_taken_back(clients: Program, house: Service, api: Running, word: Path) -> None:
    said, filled = Page(clients, api, "patient"), Page(clients, api, "patient_form")
    calls: list[Call] = []
    for page in (said, filled):
        page.say(str(word))
        calls.append(page.begin())
        begun(calls[-1])
    for running in house.processes:
        if running.name == "worker" and running.process.poll() is None:
            running.kill()
    house.worker()
    text, form = calls
    eventually(lambda: len(events(text, "TEXT_MESSAGE_START")) == 2 and len(events(form, "STATE_SNAPSHOT")) == 2)
    assert events(text, "MESSAGES_SNAPSHOT"), "what the lost attempt wrote is taken back"
    word.touch()

    assert texts(text.ended()["messages"]) == [("user", str(word)), ("assistant", "Well, at last.")]
    waiting = {"title": "A form that waits", "pages": 12, "tags": ["one"]}
    assert states(form)[:2] == [waiting, waiting]
    assert form.ended()["state"] == filled.run_of(form)["output"] == {**waiting, "tags": ["one", "two", "three"]}


@pytest.mark.parametrize("agent", ["patient", "patient_form"])
def test_a_stream_whose_api_process_dies_is_resumed_by_the_same_run(
    clients: Program, house: Service, api: Running, word: Path, agent: str
) -> None:
    dying = house.api()
    page = Page(clients, dying, agent)
    page.say(str(word))
    broken = page.begin()
    begun(broken)
    dying.kill()
    broken.failure()

    page.move(api)
    call = page.begin()
    begun(call)
    page.abort()  # As a page does that is left, and comes back.
    eventually(lambda: call.is_over)
    call = page.begin()
    begun(call)
    word.touch()
    ended = call.ended()
    run = page.run_of(call)
    assert run["id"] == events(broken)[0]["metadata"]["run_id"]
    if agent == "patient":
        assert texts(ended["messages"]) == [("user", str(word)), ("assistant", run["output"])]
    else:
        assert ended["state"] == run["output"]
        assert texts(ended["messages"]) == [("user", str(word))]


def test_a_call_that_is_approved_is_made_and_one_that_is_denied_is_not(clients: Program, api: Running) -> None:
    page = Page(clients, api, "asks")
    asked = page.ask(json.dumps([[["pay", {"amount": 3}], ["refund", {"amount": 2}], ["look", {}]]]))
    interrupts = {each["metadata"]["tool_name"]: each for each in asked["interrupts"]}
    assert interrupts.keys() == {"pay", "refund"}
    assert interrupts["refund"]["message"] == "Refund 2?"
    assert "pending interrupt" in page.begin("run-2").failure()["message"], "the client asks for all answers"

    answers = [
        {"interruptId": interrupts["pay"]["id"], "status": "resolved", "payload": {"approved": True}},
        {
            "interruptId": interrupts["refund"]["id"],
            "status": "resolved",
            "payload": {"approved": False, "reason": "Too late."},
        },
    ]
    answered = page.begin("run-2", resume=answers)
    ended = answered.ended()
    assert ended["interrupts"] == []
    results = {each["toolCallId"]: each["content"] for each in ended["messages"] if each["role"] == "tool"}
    assert (results[interrupts["pay"]["id"]], len(results)) == ("paid 3", 3)
    assert "Too late." in results[interrupts["refund"]["id"]]
    assert "pay: paid 3" in json.loads(ended["messages"][-1]["content"])
    assert page.run_of(answered)["status"] == "succeeded"


def test_a_call_of_the_clients_is_answered_with_a_message(clients: Program, api: Running) -> None:
    page = Page(clients, api, "asks")
    page.say(json.dumps([[["elsewhere", {"what": "box"}]]]))
    asked = page.begin()
    asked.ended()
    [call_id] = events(asked)[-1]["outcome"]["pendingToolCallIds"]
    result = {"id": "mine", "role": "tool", "toolCallId": call_id, "content": '{"weight": 2}'}
    clients.do("add", name=page.name, message=result)

    ended = page.begin("run-2").ended()
    assert texts(ended["messages"])[1:] == [
        ("tool", '{"weight": 2}'),
        ("assistant", '["elsewhere: {\\"weight\\":2}"]'),
    ]


def test_a_run_that_fails_or_is_refused_is_an_error_to_the_client(clients: Program, api: Running) -> None:
    page = Page(clients, api, "breaks")
    page.say("hello")
    failed = page.begin()
    eventually(lambda: failed.is_over)
    assert events(failed)[-1]["code"] == page.run_of(failed)["error"]["code"] == "agent_error"
    page.say("")
    assert "/messages/" in page.begin("run-2").failure()["message"]
