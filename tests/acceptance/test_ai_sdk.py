"""The AI SDK's own client talks to the service, and has the right messages in the end, whatever dies in between."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.ai_sdk import Clients, Page, chatting, text_in, visible
from tests.support.attachment_agents import PNG as PAINTED
from tests.support.attachment_agents import shown
from tests.support.eventually import eventually
from tests.support.service import KEYS, Running, Service, serving
from tests.support.thinking_agents import Thinking

AGENTS = {
    "patient": "tests.support.agents:patient",
    "echo": "tests.support.agents:echo",
    "second_thoughts": "tests.support.agents:second_thoughts",
    "breaks": "tests.support.agents:breaks",
    "bank_support": "agent_relay.worker.agents.bank_support:served",
    "asks": "tests.support.waiting_agents:asks",
    "thinks": "tests.support.thinking_agents:thinks",
    "sees": "tests.support.attachment_agents:sees",
    "images_only": "tests.support.attachment_agents:images_only",
    "passes": "tests.support.attachment_agents:passes",
    "draws": "tests.support.attachment_agents:draws",
}


pytestmark = pytest.mark.timeout(300)  # The first test installs the client.


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with chatting() as clients:
        yield clients


@pytest.fixture(scope="module")
def house(new_database: Any, new_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    agents = ",".join(f"{name}={path}" for name, path in AGENTS.items())
    environment = {"AGENTS": agents, "LEASE_SECONDS": "3", "BEAT_SECONDS": "1", "DRAIN_SECONDS": "0"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("house"), environment) as house:
        house.worker()
        yield house


@pytest.fixture(scope="module")
def api(house: Service) -> Running:
    return house.api()


@pytest.fixture
def user_id() -> str:
    return str(uuid4())


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """The file that the agent `patient` waits for."""
    return tmp_path / "word"


class Caller:
    """The same user without the SDK."""

    def __init__(self, url: str, user_id: str, tenant: str = "acme") -> None:
        headers = {"X-API-Key": KEYS[tenant], "X-User-ID": user_id}
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60, verify=False)

    def post(self, chat: str, text: str, message_id: str = "m1", **body: Any) -> httpx.Response:
        """Send a message, and read its whole stream."""
        message = {"id": message_id, "role": "user", "parts": [{"type": "text", "text": text}]}
        body = {"id": chat, "messages": [message], "trigger": "submit-message", **body}
        return self.http.post("/ai-sdk/chat", json=body)

    def messages(self, chat: str) -> list[dict[str, Any]]:
        """Read what a page begins with."""
        return self.http.get(f"/ai-sdk/chat/{chat}/messages").json()

    def run_of(self, page: Page) -> dict[str, Any]:
        """Read the run of the last answer."""
        return self.http.get(f"/runs/{page.now['messages'][-1]['metadata']['run_id']}").json()


@pytest.fixture
def caller(api: Running, user_id: str) -> Iterator[Caller]:
    caller = Caller(api.url, user_id)
    with caller.http:
        yield caller


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """Read the chunks of a whole stream."""
    assert response.status_code == 200, response.text
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.text.endswith("data: [DONE]\n\n")
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in data[:-1]]


def says(page: Page, text: str) -> None:
    """Wait until the answer of a page is this."""
    eventually(lambda: page.states and page.text() == text)


def begun(page: Page) -> None:
    """Wait until the agent `patient` has begun to answer."""
    says(page, "Well")


def was_taken_back(page: Page, before: int) -> bool:
    """Tell whether the text has been taken back since the page had so many states."""
    return any(text_in(state) == "" for state in page.states[before:])


def test_a_text_grows_and_the_chat_is_a_thread(clients: Clients, api: Running, caller: Caller, user_id: str) -> None:
    page = clients.open(api.url, "first-chat", user_id=user_id, body={"agent_type": "echo"})
    page.send("one two three")
    page.send("four")

    grown = [text_in(state) for state in page.states if state["status"] == "streaming"]
    assert all("You said: one two three".startswith(text) or "You said: four".startswith(text) for text in grown)
    assert "You said: one two three" in grown
    assert [part["text"] for part in page.parts] == ["You said: four"]
    assert page.finished == [{"isAbort": False, "isDisconnect": False, "isError": False, "finishReason": "stop"}] * 2
    run = caller.run_of(page)
    assert page.now["messages"][-1]["metadata"]["usage"]["output_tokens"] == run["usage"]["output_tokens"] > 0
    thread = caller.http.get(f"/threads/{run['thread_id']}").json()
    assert [message["content"] for message in thread["messages"]] == [
        "one two three",
        "You said: one two three",
        "four",
        "You said: four",
    ]
    live, painted = page.now["messages"], caller.messages("first-chat")
    assert [message["parts"] for message in painted] == [message["parts"] for message in live]
    assert [message["id"] for message in painted][1::2] == [message["id"] for message in live][1::2]


def test_an_object_grows_and_is_valid_at_each_moment(
    clients: Clients, api: Running, caller: Caller, user_id: str
) -> None:
    page = clients.open(f"{api.url}", "bank", user_id=user_id, body={"agent_type": "bank_support"})
    page.send("my balance with pending transactions")

    outputs = [part["data"] for state in page.states for part in visible(state) if part["type"] == "data-output"]
    fields = {"support_advice", "block_card", "risk_level", "follow_up_actions"}
    assert all(isinstance(output, dict) and output.keys() <= fields for output in outputs)
    grown = [output.get("support_advice", "") for output in outputs]
    assert grown == sorted(grown, key=len)
    assert len(set(grown)) > 3
    tool, output = page.parts
    assert (tool["type"], tool["state"], tool["output"]) == (
        "tool-customer_balance",
        "output-available",
        "$1123.45",
    )
    assert output["data"] == caller.run_of(page)["output"]
    assert [visible({"messages": [message]}) for message in caller.messages("bank")][-1] == page.parts


def test_thoughts_are_parts_of_their_own(
    clients: Clients, api: Running, caller: Caller, user_id: str, tmp_path: Path
) -> None:
    thinking = Thinking(tmp_path, calls=1, thoughts=3, pause=0)
    page = clients.open(api.url, "thoughts", user_id=user_id, body={"agent_type": "thinks"})
    page.send(thinking.query)

    assert [part["type"] for part in page.parts] == ["reasoning", "tool-look", "reasoning", "text"]
    assert [part["text"] for part in page.parts if part["type"] == "reasoning"] == list(thinking.parts.values())
    assert {part["state"] for part in page.parts} == {"done", "output-available"}
    assert [visible({"messages": [message]}) for message in caller.messages("thoughts")][-1] == page.parts


def test_a_draft_that_is_refused_does_not_stay(clients: Clients, api: Running, caller: Caller, user_id: str) -> None:
    page = clients.open(api.url, "drafts", user_id=user_id, body={"agent_type": "second_thoughts"})
    page.send("hello")

    assert [part["data"] for part in page.parts] == [caller.run_of(page)["output"]]


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_an_answer_whose_api_process_ends_is_resumed_at_another(
    clients: Clients, house: Service, api: Running, user_id: str, word: Path, how: str
) -> None:
    dying = house.api()
    page = clients.open(dying.url, f"api-{how}", user_id=user_id, body={"agent_type": "patient"})
    page.do("send", message={"text": str(word)})
    begun(page)
    getattr(dying, how)()
    page.responded()

    assert page.finished[-1]["isError"], "a stream that was cut is not taken for a whole one"
    assert page.now["status"] == "error"
    page.do("move", url=api.url)
    page.do("resume")
    eventually(lambda: page.now["status"] == "streaming" and page.text() == "Well")
    word.touch()
    page.responded(2)
    assert [(message["role"], len(message["parts"])) for message in page.now["messages"]] == [
        ("user", 1),
        ("assistant", 2),
    ]
    assert page.text() == "Well, at last."


def test_what_a_lost_attempt_wrote_is_taken_back(
    clients: Clients, house: Service, api: Running, user_id: str, word: Path
) -> None:
    page = clients.open(api.url, "lost", user_id=user_id, body={"agent_type": "patient"})
    page.do("send", message={"text": str(word)})
    begun(page)
    reader = clients.read(api.url, "lost-too", str(word), user_id=user_id, agent_type="patient")
    begun(reader)
    for running in house.processes:
        if running.name == "worker" and running.process.poll() is None:
            running.kill()
    seen = [len(each.states) for each in (page, reader)]
    house.worker()
    eventually(lambda: all(was_taken_back(each, before) for each, before in zip((page, reader), seen, strict=True)))
    begun(page)
    begun(reader)
    word.touch()
    page.responded()
    reader.responded()

    for each in (page, reader):
        assert [part["text"] for part in each.parts] == ["Well, at last."]
        assert {text_in(state) for state in each.states} == {"", "Well", "Well, at last."}


def test_a_page_that_is_loaded_again_goes_on(
    clients: Clients, api: Running, caller: Caller, user_id: str, word: Path
) -> None:
    page = clients.open(api.url, "reload", user_id=user_id, body={"agent_type": "patient"})
    page.do("resume")
    page.responded()
    assert page.now["status"] == "ready", "a chat that has not begun has nothing to resume"
    assert page.now["messages"] == []
    page.do("send", message={"text": str(word)})
    begun(page)
    loaded = clients.open(api.url, "reload", user_id=user_id, messages=caller.messages("reload"))
    loaded.do("resume")
    begun(loaded)
    word.touch()
    page.responded()
    loaded.responded()

    assert page.text() == loaded.text() == "Well, at last."
    assert page.now["messages"][-1] == loaded.now["messages"][-1]
    idle = clients.open(api.url, "reload", user_id=user_id, messages=caller.messages("reload"))
    idle.do("resume")
    idle.responded()
    assert idle.now["status"] == "ready"
    assert [message["parts"] for message in idle.now["messages"]] == [m["parts"] for m in page.now["messages"]]


def test_stop_leaves_the_run_or_cancels_it(
    clients: Clients, api: Running, caller: Caller, user_id: str, word: Path
) -> None:
    page = clients.open(api.url, "stopped", user_id=user_id, body={"agent_type": "patient"})
    page.do("send", message={"text": str(word)})
    begun(page)
    page.do("stop")
    page.responded(2)
    assert page.finished[-1]["isAbort"]
    assert caller.run_of(page)["status"] == "running"
    page.do("resume")
    eventually(lambda: page.now["status"] == "streaming")
    word.touch()
    page.responded()
    assert page.text() == "Well, at last."

    body = {"agent_type": "patient", "on_disconnect": "cancel"}
    page = clients.open(api.url, "cancelled", user_id=user_id, body=body)
    page.do("send", message={"text": str(word.with_name("never"))})
    begun(page)
    page.do("stop")
    page.responded(2)
    eventually(lambda: caller.run_of(page)["status"] == "cancelled")


def test_a_run_that_is_cancelled_or_fails_says_so(
    clients: Clients, api: Running, caller: Caller, user_id: str, word: Path
) -> None:
    page = clients.open(api.url, "cancel", user_id=user_id, body={"agent_type": "patient"})
    page.do("send", message={"text": str(word)})
    begun(page)
    caller.http.post(f"/runs/{caller.run_of(page)['id']}/cancel")
    page.responded()
    assert (page.now["status"], page.text()) == ("ready", "Well")
    assert page.now["messages"][-1]["metadata"]["status"] == "interrupted"

    page = clients.open(api.url, "fails", user_id=user_id, body={"agent_type": "breaks"})
    page.send("hello")
    assert (page.now["status"], page.now["error"]) == ("error", caller.run_of(page)["error"]["message"])


def test_a_call_is_approved_denied_or_answered(clients: Clients, api: Running, caller: Caller, user_id: str) -> None:
    rounds: list[Any] = [
        [["look", {}], ["pay", {"amount": 3}], ["refund", {"amount": 2}], ["ask", {"question": "Who?"}]],
        [["measure", {}]],
    ]
    options: dict[str, Any] = {"answers": True, "lastOnly": True}
    page = clients.open(api.url, "asks", user_id=user_id, body={"agent_type": "asks"}, **options)
    page.send(json.dumps(rounds))

    tools = {part["type"]: part for part in page.parts}
    assert {kind: part.get("state") for kind, part in tools.items()} == {
        "tool-look": "output-available",
        "tool-pay": "approval-requested",
        "tool-refund": "approval-requested",
        "tool-ask": "input-available",
        "data-request": None,
    }
    assert tools["tool-refund"]["approval"]["requestReason"] == "Refund 2?"
    assert tools["data-request"]["data"]["prompt"] == "Who?"
    page.do("approve", id=tools["tool-pay"]["approval"]["id"], approved=True)
    page.responded()
    page = reloaded(clients, api, caller, page, "asks", user_id)
    tools = {part["type"]: part for part in page.parts}
    assert tools["tool-pay"]["state"] == "approval-requested", "the page before kept its answer to itself"
    page.do("approve", id=tools["tool-pay"]["approval"]["id"], approved=True)
    page.do("approve", id=tools["tool-refund"]["approval"]["id"], approved=False, reason="Too late.")
    page.do("output", tool="ask", toolCallId=tools["tool-ask"]["toolCallId"], output="Ann")
    eventually(lambda: any(part["type"] == "tool-measure" for part in page.parts) and page.now["status"] == "ready")

    tools = {part["type"]: part for part in page.parts}
    assert {kind: part.get("state") for kind, part in tools.items()} == {
        "tool-look": "output-available",
        "tool-pay": "output-available",
        "tool-refund": "output-denied",
        "tool-ask": "output-available",
        "data-request": None,
        "tool-measure": "input-available",
    }
    assert (tools["tool-pay"]["output"], tools["tool-ask"]["output"]) == ("paid 3", "Ann")
    measure = tools["tool-measure"]["toolCallId"]
    page.do("output", tool="measure", toolCallId=measure, state="output-error", errorText="It is gone.")
    eventually(lambda: page.text() and page.now["status"] == "ready")

    said = json.loads(page.text())
    assert "pay: paid 3" in said
    assert "refund: Too late." in said
    assert any("It is gone." in each for each in said)
    [message] = [message for message in page.now["messages"] if message["role"] == "assistant"]
    assert [part["type"] for part in message["parts"]].count("tool-pay") == 1
    states = {part["type"]: part["state"] for part in caller.messages("asks")[-1]["parts"] if "state" in part}
    assert states == {part["type"]: part["state"] for part in page.parts if "state" in part}


def reloaded(clients: Clients, api: Running, caller: Caller, page: Page, chat: str, user_id: str) -> Page:
    """Load a page anew."""
    options: dict[str, Any] = {"answers": True, "lastOnly": True}
    again = clients.open(api.url, chat, user_id=user_id, messages=caller.messages(chat), **options)
    again.do("resume")
    again.responded()
    assert [message["role"] for message in again.now["messages"]] == ["user", "assistant"]
    assert again.now["messages"][-1]["id"] == page.now["messages"][-1]["id"]
    return again


def test_what_is_asked_again_or_edited_takes_the_place_of_what_was(
    clients: Clients, api: Running, caller: Caller, user_id: str
) -> None:
    page = clients.open(api.url, "again", user_id=user_id, body={"agent_type": "echo"})
    page.send("one")
    page.send("two")
    before = page.now["messages"]
    page.do("regenerate", options={})
    page.responded()

    assert page.now["messages"][-1]["id"] != before[-1]["id"]
    assert page.text() == "You said: two"
    page.send("three", messageId=before[0]["id"])
    page.do("regenerate", options={"messageId": before[0]["id"]})
    page.responded()
    assert [visible({"messages": [message]})[0]["text"] for message in page.now["messages"]] == [
        "three",
        "You said: three",
    ]
    assert [message["parts"] for message in caller.messages("again")] == [
        message["parts"] for message in page.now["messages"]
    ]
    loaded = clients.open(api.url, "again", user_id=user_id, messages=caller.messages("again"))
    loaded.send("four", messageId=caller.messages("again")[0]["id"])
    assert [visible({"messages": [message]})[0]["text"] for message in loaded.now["messages"]] == [
        "four",
        "You said: four",
    ]


def test_a_message_that_never_arrived_is_asked_when_it_is_tried_again(
    clients: Clients, api: Running, caller: Caller, user_id: str
) -> None:
    page = clients.open(api.url, "retried", user_id=user_id, body={"agent_type": "echo"})
    page.send("one")
    page.do("move", url="http://127.0.0.1:9")
    page.send("two")
    assert page.now["status"] == "error"
    page.do("move", url=api.url)
    page.do("regenerate", options={})
    page.responded(2)

    assert [part["text"] for m in caller.messages("retried") for part in m["parts"] if "text" in part] == [
        "one",
        "You said: one",
        "two",
        "You said: two",
    ]


def test_the_same_message_is_asked_once(caller: Caller) -> None:
    first = chunks(caller.post("once", "hello", agent_type="echo"))
    again = caller.post("once", "hello", agent_type="echo")
    other = caller.post("once", "another")

    assert chunks(again)[0] == first[0]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (other.status_code, other.json()["errors"][0]["code"]) == (422, "message_id_reused")
    assert len(caller.messages("once")) == 2


@pytest.mark.parametrize("trigger", ["submit-message", "regenerate-message"])
def test_copies_that_come_at_once_are_one_message(caller: Caller, trigger: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(caller.post, "copies", "hello", agent_type="echo", trigger=trigger) for _ in range(8)]
        runs = {chunks(post.result())[0]["messageMetadata"]["run_id"] for post in posts}

    assert len(runs) == 1 or trigger == "regenerate-message"
    assert [message["role"] for message in caller.messages("copies")] == ["user", "assistant"]


def test_a_long_conversation_may_be_sent_whole(caller: Caller) -> None:
    said = [{**USER, "id": str(number), "role": "assistant", "metadata": {"n": [1, 2]}} for number in range(1000)]
    body = {"id": "long", "messages": [*said, USER], "trigger": "submit-message", "agent_type": "echo"}

    assert chunks(caller.http.post("/ai-sdk/chat", json=body))[-1]["type"] == "finish"
    assert [message["role"] for message in caller.messages("long")] == ["user", "assistant"]


def test_the_chats_of_others_are_not_there(api: Running, caller: Caller) -> None:
    run_id = chunks(caller.post("mine", "hello", agent_type="echo"))[0]["messageMetadata"]["run_id"]
    thread_id = caller.http.get(f"/runs/{run_id}").json()["thread_id"]
    assert caller.messages(thread_id) == caller.messages("mine")
    own = caller.http.get("/runs", params={"thread_id": thread_id}).json()["items"]

    for stranger in (Caller(api.url, str(uuid4())), Caller(api.url, caller.http.headers["X-User-ID"], "other")):
        with stranger.http:
            for chat in ("mine", thread_id):
                assert stranger.messages(chat) == []
                assert stranger.http.get(f"/ai-sdk/chat/{chat}/stream").status_code == 204
                assert stranger.post(chat, "hello").json()["errors"][0]["pointer"] == "/agent_type"
                chunks(stranger.post(chat, "from elsewhere", agent_type="echo"))
                assert len(stranger.messages(chat)) == 2
    assert caller.http.get("/runs", params={"thread_id": thread_id}).json()["items"] == own
    assert len(caller.messages("mine")) == 2


def test_a_token_reaches_the_chats_of_its_threads(api: Running, caller: Caller) -> None:
    run_id = chunks(caller.post("mine", "hello", agent_type="echo"))[0]["messageMetadata"]["run_id"]
    chunks(caller.post("another", "hello", agent_type="echo"))
    thread_id = caller.http.get(f"/runs/{run_id}").json()["thread_id"]
    asked = {"user_id": caller.http.headers["X-User-ID"], "ttl_s": 600, "threads": [thread_id]}
    token = caller.http.post("/user-tokens", json=asked).json()["token"]

    holder = Caller(api.url, caller.http.headers["X-User-ID"])
    holder.http.headers = httpx.Headers({"Authorization": f"Bearer {token}"})
    with holder.http:
        assert holder.messages("mine") == caller.messages("mine")
        chunks(holder.post("mine", "again", "m2"))
        assert holder.http.get("/ai-sdk/chat/another/messages").status_code == 404
        assert holder.http.get("/ai-sdk/chat/another/stream").status_code == 404
        assert holder.post("another", "again", "m2").status_code == 404


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
SEEN = shown(PNG, "image/png")


def picture(content: bytes = PNG, **more: Any) -> dict[str, Any]:
    """Write a picture as a page sends it."""
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"type": "file", "mediaType": "image/png", "filename": "a.png", "url": url, **more}


def files_of(caller: Caller) -> list[str]:
    """List the files of a user."""
    return [file["id"] for file in caller.http.get("/files").json()["items"]]


def test_files_are_given_to_the_agent_and_painted_with_a_path_that_leads_to_them(
    clients: Clients, api: Running, caller: Caller, user_id: str
) -> None:
    page = clients.open(api.url, "pictures", user_id=user_id, body={"agent_type": "sees"})
    page.send("What is it?", files=[picture()])
    user, _ = painted = caller.messages("pictures")
    [file_id] = files_of(caller)
    path = f"/api/v1/files/{file_id}/content"
    content = caller.http.get(f"{api.url}{path}")
    again = clients.open(api.url, "pictures", user_id=user_id, body={"agent_type": "sees"}, messages=painted)
    again.do("regenerate", options={})
    again.responded()
    regenerated, kept = json.loads(again.text()), files_of(caller)
    page.send("And now?", files=[picture(url=path)])
    live = clients.open(api.url, "live", user_id=user_id, body={"agent_type": "sees"})
    live.send("Live?", files=[picture()])
    live.do("regenerate", options={})
    live.responded()

    assert user["parts"] == [picture(url=path), {"type": "text", "text": "What is it?"}]
    assert (content.content, content.headers["Content-Type"]) == (PNG, "image/png")
    assert regenerated == ["What is it?", SEEN]
    assert kept == [file_id]
    assert json.loads(page.text()) == ["What is it?", SEEN, "And now?", SEEN]
    assert [each["parts"][0]["url"] for each in caller.messages("pictures")[::2]] == [path, path]
    assert json.loads(live.text()) == ["Live?", SEEN]
    assert len(files_of(caller)) == 2, "what is regenerated is not stored again"


def test_a_message_with_files_is_asked_once_and_edited_with_its_id(caller: Caller) -> None:
    def post(*files: dict[str, Any], **body: Any) -> httpx.Response:
        parts = [*files, {"type": "text", "text": "See?"}]
        message = {"id": "m1", "role": "user", "parts": parts}
        asked = {"id": "seen", "messages": [message], "trigger": "submit-message", "agent_type": "sees", **body}
        return caller.http.post("/ai-sdk/chat", json=asked)

    first = chunks(post(picture()))
    assert chunks(post(picture()))[0] == first[0]
    for other in ((), (picture(PNG + b"."),), (picture(filename="b.png"),), (picture(), picture())):
        assert post(*other).json()["errors"][0]["code"] == "message_id_reused"
    for files in ((picture(PNG + b"."),), ()):
        edited = chunks(post(*files, messageId="m1"))
        [seen] = [json.loads("".join(each["delta"] for each in edited if each["type"] == "text-delta"))]
        assert seen == ["See?", *(shown(PNG + b".", "image/png") for _ in files)]
    assert len(caller.messages("seen")) == 2


def test_what_an_agent_makes_is_a_part_of_its_message(
    clients: Clients, api: Running, caller: Caller, user_id: str
) -> None:
    for agent, text, content in (("sees", "call: paint", PAINTED), ("draws", "blue, please", PAINTED + b"blue")):
        page = clients.open(api.url, agent, user_id=user_id, body={"agent_type": agent})
        page.send(text)

        [file] = [part for part in page.parts if part["type"] == "file"]
        assert file["mediaType"] == "image/png"
        assert caller.http.get(f"{api.url}{file['url']}").content == content
        painted = [part for part in visible({"messages": caller.messages(agent)}) if part["type"] == "file"]
        assert painted == [file]


def test_files_of_others_are_not_there(api: Running, caller: Caller) -> None:
    stranger = Caller(api.url, str(uuid4()))
    with stranger.http:
        uploaded = stranger.http.post("/files", content=PNG, headers={"Content-Type": "image/png"})
    answers: list[Any] = []
    for file_id in (uploaded.json()["id"], str(uuid4())):
        parts = [picture(url=f"/api/v1/files/{file_id}/content"), {"type": "text", "text": "See?"}]
        body = {"id": "not mine", "messages": [{**USER, "parts": parts}], "trigger": "submit-message"}
        answers.append(caller.http.post("/ai-sdk/chat", json={**body, "agent_type": "sees"}).json()["errors"])

    assert answers[0] == answers[1]
    assert [(error["pointer"], error["code"]) for error in answers[0]] == [("/messages/0/parts/0/url", "unknown_file")]


USER: dict[str, Any] = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}


def with_file(file: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write a message with a file."""
    return {"messages": [{**USER, "parts": [{"type": "text", "text": "See?"}, file]}], **more}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a file that is none": (with_file(picture(b"GIF89a")), "/messages/0/parts/1/url"),
    "a file of a page": (with_file(picture(url="blob:http://127.0.0.1/1")), "/messages/0/parts/1/url"),
    "a file that is near by": (with_file(picture(url="https://127.0.0.1/a.png")), "/messages/0/parts/1/url"),
    "a file that is no base64": (with_file(picture(url="data:image/png,AAAA")), "/messages/0/parts/1/url"),
    "a file of a wrong type": (with_file(picture(mediaType=1)), "/messages/0/parts/1"),
    "a type that is not taken": (
        with_file(picture(url="data:text/html;base64,PGI+YQ==")),
        "/messages/0/parts/1/url",
    ),
    "a type that the agent does not take": (
        with_file(picture(url="data:text/plain;base64,aGVsbG8="), agent_type="images_only"),
        "/messages/0/parts/1/url",
    ),
    "a file with more": (
        with_file(picture(providerReference={"openai": "file-1"})),
        "/messages/0/parts/1/providerReference",
    ),
    "too many files": ({"messages": [{**USER, "parts": [*USER["parts"], *[picture()] * 21]}]}, "/messages/0/parts"),
    "a file without a text": ({"messages": [{**USER, "parts": [picture()]}]}, "/messages/0/parts"),
    "an unknown part": ({"messages": [{**USER, "parts": [{"type": "data-x", "data": 1}]}]}, "/messages/0/parts/0"),
    "no text": ({"messages": [{**USER, "parts": []}]}, "/messages/0/parts"),
    "a system message": ({"messages": [{**USER, "role": "system"}]}, "/messages/0/role"),
    "an answer that is not there": ({"messages": [{**USER, "role": "assistant"}]}, "/messages/0/id"),
    "an unknown field": ({"model": "gpt"}, "/model"),
    "an unknown trigger": ({"trigger": "resume-stream"}, "/trigger"),
    "an unknown agent": ({"agent_type": "nobody"}, "/agent_type"),
    "no agent": ({"agent_type": None}, "/agent_type"),
    "an edit of another message": ({"messageId": "m0"}, "/messageId"),
    "a chat with a slash": ({"id": "a/b"}, "/id"),
    "options where there are none": ({"options": {"a": 1}}, "/options"),
    "no messages": ({"messages": []}, "/messages"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(caller: Caller, name: str) -> None:
    change, pointer = REFUSED[name]
    body = {"id": "refused", "messages": [USER], "trigger": "submit-message", "agent_type": "echo", **change}
    response = caller.http.post("/ai-sdk/chat", json=body)

    assert response.status_code == 422, response.text
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert caller.http.get("/threads").json()["items"] == [], "nothing was begun"
