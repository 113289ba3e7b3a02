"""Clients of AG-UI against this service: streams are in order, and leave the right messages whatever happens."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.ag_ui import AgUiClient
from tests.support.attachment_agents import shown
from tests.support.client import Client
from tests.support.service import Running, Service, serving
from tests.support.step_agents import Planned

AGENTS = {
    "echo": "tests.support.agents:echo",
    "recalls": "tests.support.agents:recalls",
    "patient": "tests.support.agents:patient",
    "breaks": "tests.support.agents:breaks",
    "bank_support": "agent_relay.worker.agents.bank_support:served",
    "asks": "tests.support.waiting_agents:asks",
    "sees": "tests.support.attachment_agents:sees",
    "images_only": "tests.support.attachment_agents:images_only",
    "passes": "tests.support.attachment_agents:passes",
    "steps": "tests.support.step_agents:steps",
    "dies": "tests.support.step_agents:forgetful",
}
PAY = json.dumps([[["pay", {"amount": 3}]]])
ELSEWHERE = json.dumps([[["elsewhere", {"what": "box"}]]])


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


@pytest.fixture
async def client(api: Running) -> AsyncGenerator[Client]:
    async with Client(api.url) as client:
        yield client


def body_of(page: AgUiClient, run_id: str, **more: Any) -> dict[str, Any]:
    """Write what a client sends."""
    asked: dict[str, Any] = {
        "threadId": page.thread_id,
        "runId": run_id,
        "messages": page.messages,
        "state": page.state,
    }
    nothing: dict[str, Any] = {"tools": [], "context": [], "forwardedProps": {}}
    return asked | nothing | more


async def call(client: Client, page: AgUiClient, agent: str, run_id: str = "run-1", **more: Any) -> httpx.Response:
    """Send what a page has."""
    return await client.http.post(f"/ag-ui/{agent}", json=body_of(page, run_id, **more))


async def run(client: Client, page: AgUiClient, agent: str, run_id: str = "run-1", **more: Any) -> dict[str, Any]:
    """Run the agent as a page would; returns the last event."""
    page.begin()
    response = await call(client, page, agent, run_id, **more)
    assert response.status_code == httpx.codes.OK, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    page.take(response.text)
    assert page.last["type"] in {"RUN_FINISHED", "RUN_ERROR"}
    return page.last


async def refusal(client: Client, page: AgUiClient, agent: str, run_id: str = "run-1", **more: Any) -> tuple[Any, ...]:
    """Be refused; returns the status, and what is named, or else the code."""
    response = await call(client, page, agent, run_id, **more)
    problem: dict[str, Any] = response.json()
    errors: list[str] = [error["pointer"] for error in problem.get("errors") or ()]
    return response.status_code, *(errors or [problem.get("code")])


def page_that_says(text: str) -> AgUiClient:
    """Open a page, and write something."""
    page = AgUiClient(f"thread {uuid4()}")
    page.say(text)
    return page


async def run_behind(client: Client, page: AgUiClient) -> dict[str, Any]:
    """Read the run that a page has followed."""
    return await client.read(page.events[0]["metadata"]["run_id"])


async def test_a_text_grows_and_the_clients_thread_is_a_thread(client: Client) -> None:
    page = page_that_says("one two")
    finished = await run(client, page, "echo")
    page.say("three")
    await run(client, page, "echo", "run-2")

    assert [event["type"] for event in page.events][:2] == ["RUN_STARTED", "TEXT_MESSAGE_START"]
    assert page.said() == ["You said: one two", "You said: three"]
    assert finished["usage"][0]["outputTokens"] > 0
    thread_id = (await run_behind(client, page))["thread_id"]
    stored = await client.messages(thread_id)
    assert [message["content"] for message in stored] == [each["content"] for each in page.messages]
    same = AgUiClient(thread_id, page.messages)
    same.say("four")
    await run(client, same, "echo", "run-3")
    assert len(await client.messages(thread_id)) == len(stored) + 2


async def test_a_structured_output_is_the_state_and_comes_back_with_the_next_run(client: Client) -> None:
    page = page_that_says("my balance with pending transactions")
    finished = await run(client, page, "bank_support")
    outputs = page.states
    assert len(outputs) > 2
    assert outputs[-1] == finished["result"] == page.state
    assert (await run_behind(client, page))["output"] == page.state
    assert page.results()
    page.say("again")
    assert (await run(client, page, "bank_support", "run-2"))["type"] == "RUN_FINISHED"


async def test_the_same_run_is_followed_again_and_asks_nothing_again(client: Client, api: Running) -> None:
    page = page_that_says("hello")
    await run(client, page, "echo")
    first = page.events[0]["metadata"]["run_id"]
    before = [dict(message) for message in page.messages]
    await run(client, page, "echo")
    assert page.events[0]["metadata"]["run_id"] == first
    assert [each["content"] for each in page.messages] == [each["content"] for each in before]
    assert await refusal(client, page, "echo", "run-2") == (422, "/messages/1/role")

    changed = AgUiClient(page.thread_id)
    changed.say("something else")
    assert await refusal(client, changed, "echo") == (422, "/runId")
    async with Client(api.url) as other:
        theirs = AgUiClient(page.thread_id, [page.messages[0]])
        await run(other, theirs, "echo")
        assert theirs.events[0]["metadata"]["run_id"] != first


async def test_a_stream_that_broke_off_is_resumed_by_the_same_call(client: Client, tmp_path: Path) -> None:
    word = tmp_path / "word"
    page = page_that_says(str(word))
    request = client.http.build_request("POST", "/ag-ui/patient", json=body_of(page, "run-1"))
    response = await client.http.send(request, stream=True)
    async for line in response.aiter_lines():
        page.take(f"{line}\n\n")
        if page.last_type == "TEXT_MESSAGE_CONTENT":
            break
    await response.aclose()
    assert page.said() == ["Well"]
    word.touch()
    await run(client, page, "patient")
    assert page.said() == [(await run_behind(client, page))["output"]]


async def test_a_worker_that_dies_leaves_the_right_messages(client: Client, tmp_path: Path, house: Service) -> None:
    for agent in ("steps", "dies"):
        planned = Planned(tmp_path, [["work"], ["kill"]])
        planned.ledger.path.unlink(missing_ok=True)
        planned.dying.touch()
        page = page_that_says(planned.query)
        page.begin()
        request = client.http.build_request("POST", f"/ag-ui/{agent}", json=body_of(page, agent))
        response = await client.http.send(request, stream=True)
        async for line in response.aiter_lines():
            page.take(f"{line}\n\n")
            if page.last_type == "TOOL_CALL_END" and page.last["toolCallId"] == "1-0" and planned.dying.exists():
                planned.dying.unlink()
                house.worker()
        assert page.said() == ["2 results. "]
        assert page.results() == {"0-0": "done", "1-0": "survived"}


async def test_a_failed_run_is_an_error_and_a_cancelled_one_says_so(client: Client, tmp_path: Path) -> None:
    page = page_that_says("?")
    failed = await run(client, page, "breaks")
    assert (failed["type"], failed["code"]) == ("RUN_ERROR", "agent_error")

    page = page_that_says(str(tmp_path / "never"))
    page.begin()
    request = client.http.build_request("POST", "/ag-ui/patient", json=body_of(page, "run-1"))
    response = await client.http.send(request, stream=True)
    async for line in response.aiter_lines():
        page.take(f"{line}\n\n")
        if page.last_type == "TEXT_MESSAGE_CONTENT":
            await client.http.post(f"/runs/{page.events[0]['metadata']['run_id']}/cancel")
    assert page.last["outcome"] == {"type": "cancelled"}


async def test_an_approval_is_an_interrupt_and_the_answer_goes_on(client: Client) -> None:
    page = page_that_says(PAY)
    waiting = await run(client, page, "asks")
    [interrupt] = waiting["outcome"]["interrupts"]
    assert interrupt["toolCallId"] == interrupt["id"]
    assert page.call(interrupt["id"])["function"]["name"] == "pay"

    later = AgUiClient(page.thread_id, [*page.messages])
    later.say(PAY)
    assert await refusal(client, later, "asks", "run-9") == (409, "run_waits")
    unknown = [{"interruptId": "nothing", "status": "resolved", "payload": {"approved": True}}]
    assert await refusal(client, page, "asks", "run-2", resume=unknown) == (422, "/resume/0/interruptId")
    unclear = [{"interruptId": interrupt["id"], "status": "resolved", "payload": {"approved": "yes"}}]
    assert await refusal(client, page, "asks", "run-2", resume=unclear) == (422, "/resume/0/payload/approved")
    edited = {"approved": True, "editedArgs": {"amount": "much"}}
    wrong = [{"interruptId": interrupt["id"], "status": "resolved", "payload": edited}]
    assert await refusal(client, page, "asks", "run-2", resume=wrong) == (422, "/resume/0/payload/editedArgs/amount")

    edited = {"approved": True, "editedArgs": {"amount": 2}}
    answers = [{"interruptId": interrupt["id"], "status": "resolved", "payload": edited}]
    finished = await run(client, page, "asks", "run-2", resume=answers)
    assert finished["outcome"] == {"type": "success"}
    assert page.results() == {interrupt["id"]: "paid 2"}
    assert page.said() == ['["pay: paid 2"]']

    await run(client, page, "asks", "run-2", resume=answers)
    assert page.said() == ['["pay: paid 2"]']
    refused = [{"interruptId": interrupt["id"], "status": "cancelled"}]
    assert await refusal(client, page, "asks", "run-3", resume=refused) == (409, "already_answered")


async def test_a_question_that_is_left_is_an_error_to_the_agent_and_all_is_answered_together(client: Client) -> None:
    page = page_that_says(json.dumps([[["ask", {"question": "Who?"}], ["pay", {"amount": 3}]]]))
    waiting = await run(client, page, "asks")
    ids = {each["metadata"]["kind"]: each["id"] for each in waiting["outcome"]["interrupts"]}
    left = [{"interruptId": ids["question"], "status": "cancelled"}]
    assert await refusal(client, page, "asks", "run-2", resume=left) == (422, "/resume")
    denied = {"approved": False, "reason": "Too much."}
    answers = [*left, {"interruptId": ids["approval"], "status": "resolved", "payload": denied}]
    await run(client, page, "asks", "run-2", resume=answers)
    assert page.said()[-1].count("Too much.") == 1
    assert "left this unanswered" in page.said()[-1]


async def test_a_tool_of_the_clients_is_a_pending_call_and_its_result_goes_on(client: Client) -> None:
    page = page_that_says(ELSEWHERE)
    waiting = await run(client, page, "asks")
    [call_id] = waiting["outcome"]["pendingToolCallIds"]
    result = {"id": "mine", "role": "tool", "toolCallId": call_id, "content": '{"weight": "much"}'}
    page.messages.append(result)
    place = len(page.messages) - 1
    assert await refusal(client, page, "asks", "run-2") == (422, f"/messages/{place}/content/weight")
    result["content"] = '{"weight": 2}'
    await run(client, page, "asks", "run-2")
    assert page.results() == {call_id: '{"weight": 2}'}
    assert page.said() == ['["elsewhere: {\\"weight\\":2}"]']
    await run(client, page, "asks", "run-2")
    assert page.said() == ['["elsewhere: {\\"weight\\":2}"]']


async def test_the_agent_is_told_the_context_for_this_run_and_keeps_forwarded_props(client: Client) -> None:
    page = page_that_says("first")
    page.messages.insert(0, {"id": "s", "role": "system", "content": "Be brief."})
    context = [{"description": "The page", "value": "basket"}]
    await run(client, page, "recalls", context=context, forwardedProps={"shop": 7})
    told = page.said()[-1]
    assert "Be brief." in told
    assert "The page: basket" in told
    assert (await run_behind(client, page))["metadata"] == {"shop": 7}
    del page.messages[0]
    page.say("second")
    await run(client, page, "recalls", "run-2")
    assert "basket" not in page.said()[-1]
    assert "first" in page.said()[-1]


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
SEEN = shown(PNG, "image/png")
AWAY = "https://example.org/a.png"


def part(kind: str, source: str, value: str | bytes, **more: Any) -> dict[str, Any]:
    """Write a part of a message that is a file."""
    written = value if isinstance(value, str) else base64.b64encode(value).decode()
    return {"type": kind, "source": {"type": source, "value": written, **more}}


def asks(page: AgUiClient, *parts: dict[str, Any]) -> None:
    """Write a message with files."""
    content = [{"type": "text", "text": "What is it?"}, *parts]
    page.messages.append({"id": f"user-{len(page.messages)}", "role": "user", "content": content})


async def test_files_of_the_last_message_are_given_to_the_agent(client: Client) -> None:
    uploaded = await client.http.post("/files", content=PNG, headers={"Content-Type": "image/png"})
    file_id = uploaded.json()["id"]
    page = AgUiClient(f"thread {uuid4()}")
    asks(
        page,
        part("image", "data", PNG, mimeType="image/png"),
        part("document", "data", b"a,b", mimeType="text/csv"),
        part("image", "url", f"data:image/png;base64,{base64.b64encode(PNG).decode()}"),
        part("image", "file", file_id, provider="agent-relay"),
        part("document", "file", file_id),
    )
    await run(client, page, "sees")
    given = ["What is it?", SEEN, shown(b"a,b", "text/csv"), SEEN, SEEN, SEEN]
    assert json.loads(page.said()[-1]) == given
    again = (await run_behind(client, page))["id"]
    page.messages = page.messages[:1]
    await run(client, page, "sees")
    assert (await run_behind(client, page))["id"] == again
    page.messages[0]["content"].pop()
    assert await refusal(client, page, "sees") == (422, "/runId")
    later = AgUiClient(page.thread_id)
    later.say("And now?")
    await run(client, later, "sees", "run-2")
    assert json.loads(later.said()[-1])[:2] == given[:2]
    thread = await client.http.get(f"/threads/{(await run_behind(client, later))['thread_id']}")
    assert len(thread.json()["messages"][0]["attachments"]) == 5

    handed_on = AgUiClient(f"thread {uuid4()}")
    asks(handed_on, part("image", "url", AWAY, mimeType="image/png"), part("audio", "url", AWAY))
    await run(client, handed_on, "passes")
    assert json.loads(handed_on.said()[-1]) == ["What is it?", {"url": AWAY}, {"url": AWAY}]


async def test_a_file_that_cannot_be_attached_is_refused_where_it_stands(client: Client, api: Running) -> None:
    async with Client(api.url) as other:
        uploaded = await other.http.post("/files", content=PNG, headers={"Content-Type": "image/png"})
    value = "/messages/0/content/1/source/value"
    text = part("document", "data", b"hello", mimeType="text/plain")
    for agent, wrong, pointer in (
        ("sees", part("image", "file", uploaded.json()["id"]), value),
        ("sees", part("image", "file", str(uuid4())), value),
        ("sees", part("image", "file", "file-1"), value),
        ("sees", part("image", "file", "file-1", provider="openai"), "/messages/0/content/1/source/provider"),
        ("sees", part("image", "data", "%%%%", mimeType="image/png"), value),
        ("sees", part("image", "data", b"GIF89a", mimeType="image/png"), value),
        ("sees", part("image", "data", PNG, mimeType="image/svg+xml"), value),
        ("sees", part("image", "url", "http://example.org/a.png"), value),
        ("sees", part("image", "url", "https://127.0.0.1/a.png"), value),
        ("sees", part("image", "url", "data:image/png,AAAA"), value),
        ("images_only", text, value),
    ):
        page = AgUiClient(f"thread {uuid4()}")
        asks(page, wrong)
        assert await refusal(client, page, agent) == (422, pointer), wrong
    crowded = AgUiClient(f"thread {uuid4()}")
    asks(crowded, *[text] * 21)
    assert await refusal(client, crowded, "sees") == (422, "/messages/0/content")
    assert (await client.http.get("/threads")).json()["items"] == [], "nothing was begun"


async def test_what_cannot_be_carried_is_refused_by_its_name(client: Client) -> None:
    page = page_that_says("?")
    tool = {"name": "look", "description": "Looks."}
    assert await refusal(client, page, "echo", tools=[tool]) == (422, "/tools")
    assert await refusal(client, page, "echo", state={"a": 1}) == (422, "/state")
    assert await refusal(client, page, "echo", forwardedProps=[1]) == (422, "/forwardedProps")
    assert await refusal(client, page, "echo", mode="fast") == (422, "/mode")
    assert await refusal(client, page, "echo", threadId="x" * 256) == (422, "/threadId")
    assert await refusal(client, page, "echo", threadId="a\0b") == (422, "/threadId")
    assert await refusal(client, page, "echo", messages=[]) == (422, "/messages/0/role")
    assert (await refusal(client, page, "nobody"))[0] == 422
    assert (await refusal(client, page, "echo", resume=[{"interruptId": "1", "status": "resolved"}]))[0] == 422
    image = {"type": "image", "source": {"type": "url", "value": "https://example.org/a.png"}}
    without_text = [{"id": "1", "role": "user", "content": [image]}]
    assert await refusal(client, page, "echo", messages=without_text) == (422, "/messages/0/content")
    answer = [*page.messages, {"id": "2", "role": "assistant", "content": "!"}]
    assert await refusal(client, page, "echo", messages=answer) == (422, "/messages/1/role")
    await run(client, page, "echo")
    assert await refusal(client, page, "recalls", "run-2") == (409, "other_agent")
