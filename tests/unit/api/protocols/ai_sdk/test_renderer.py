"""A run as a UI message: what a client has in the end is what the run says, whatever was taken back on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent_relay.api.protocols.ai_sdk.renderer import ChunkRenderer, Known
from agent_relay.api.streaming.response import CannotRender
from agent_relay.api.streaming.run_feed import RunFeed
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, Entry, Id, end_entry, text_body
from agent_relay.shared.rows import RunRow
from agent_relay.shared.text_delta import Growth
from tests.support.rows import run_row

Part = dict[str, Any]
FIRST = {"event": "message_started", "reason": "first"}
LOST = {"event": "message_started", "reason": "worker_lost"}
ANSWERED = {"event": "message_started", "reason": "answered", "steps_kept": 1}
PAY: Part = {"request_id": "p", "kind": "approval", "tool_name": "pay", "args": {"amount": 3}, "prompt": "Pay 3?"}
ASK: Part = {"request_id": "q", "kind": "question", "tool_name": "ask", "args": {}, "prompt": "Who?", "schema": None}


def call(name: str, **more: Any) -> Part:
    return {"event": "tool_call", "tool_call_id": name, "tool_name": "look", "args": '{"at":1}', **more}


def result(name: str, content: str | None = "seen", **more: Any) -> Part:
    return {"event": "tool_result", "tool_call_id": name, "tool_name": "look", "content": content, **more}


def thought(part: int, text: str, grown: Growth | None = None) -> Part:
    return {"event": "reasoning_delta", "part": part, **text_body(text, grown)}


class Message:
    """A message as the client of the AI SDK builds it: `processUIMessageStream` of npm's `ai` 7."""

    def __init__(self, parts: list[Part] | None = None) -> None:
        self.parts: list[Part] = parts or []
        self.metadata: Part = {}
        self.transient: list[Part] = []
        self.ended: list[str] = []
        self._active: dict[str, Part] = {}

    def apply(self, chunk: Part) -> None:
        """Take in a chunk; one about a part that is not there is an error, as it is there."""
        kind: str = chunk["type"]
        noun, _, verb = kind.rpartition("-")
        if noun in {"text", "reasoning"}:
            self._grow(noun, verb, chunk)
        elif kind == "start-step":
            self.parts.append({"type": "step-start"})
        elif kind == "reset-step":
            self._active = {}
            while self.parts and self.parts[-1]["type"] != "step-start":
                self.parts.pop()
        elif kind.startswith("tool-"):
            self._tool(kind, chunk)
        elif kind == "file":
            self.parts.append(chunk)
        elif kind.startswith("data-"):
            self._data(chunk)
        elif kind in {"start", "finish", "message-metadata"}:
            self.metadata |= chunk.get("messageMetadata", {})
            self.ended += [kind] if kind == "finish" else []
        elif kind in {"error", "abort"}:
            self.ended.append(kind)
        else:
            assert kind == "finish-step", kind

    def _grow(self, noun: str, verb: str, chunk: Part) -> None:
        if verb == "start":
            part = {"type": noun, "text": "", "state": "streaming"}
            self._active[noun + chunk["id"]] = part
            self.parts.append(part)
        else:
            part = self._active[noun + chunk["id"]]
            if verb == "delta":
                part["text"] += chunk["delta"]
            else:
                del self._active[noun + chunk["id"]]
                part["state"] = "done"

    def _tool(self, kind: str, chunk: Part) -> None:
        named = [
            part for part in self.parts if part.get("toolCallId") == chunk.get("toolCallId", chunk.get("approvalId"))
        ]
        if kind == "tool-input-available":
            assert not named, "a second part of the same call"
            more = {key: chunk[key] for key in ("providerExecuted",) if key in chunk}
            tool = {"type": f"tool-{chunk['toolName']}", "toolCallId": chunk["toolCallId"], "input": chunk["input"]}
            self.parts.append({**tool, **more, "state": "input-available"})
            return
        [part] = named
        part |= {key: chunk[key] for key in ("output", "errorText") if key in chunk}
        part["state"] = {
            "tool-output-available": "output-available",
            "tool-output-error": "output-error",
            "tool-output-denied": "output-denied",
            "tool-approval-request": "approval-requested",
            "tool-approval-response": "approval-responded",
        }[kind]

    def _data(self, chunk: Part) -> None:
        if chunk.get("transient"):
            self.transient.append(chunk)
            return
        same = [part for part in self.parts if part["type"] == chunk["type"] and part.get("id") == chunk["id"]]
        if same:
            same[0]["data"] = chunk["data"]
        else:
            self.parts.append({key: chunk[key] for key in ("type", "id", "data")})


class Reader:
    """What a reader has been sent, and has made of it."""

    def __init__(self, run: RunRow | None = None, known: Known | None = None, message: Message | None = None) -> None:
        self.run = run or run_row(text_output=True)
        self.renderer = ChunkRenderer(self.run, lambda file_id: f"/files/{file_id}", known)
        self.message = message or Message()
        self.chunks: list[str] = []
        self.done = False
        self.texts: list[str] = []
        """The text at each moment at which there is another one."""
        self._feed = RunFeed(self.run)
        self._cursor = BEFORE_ALL
        self._apply(self.renderer.opening)

    def take(self, *bodies: Part | str, attempt: int = 1, read: bool = True) -> Reader:
        """Have the log grow by these, and the reader read after each; or not at all."""
        for body in bodies:
            n = self._feed.top.n + 1 if self._feed.top.attempt == attempt else 1
            assert self._feed.take_log([Entry(Id(attempt, n), text_body(body) if isinstance(body, str) else body)])
            if read:
                self.read()
        return self

    def lose(self, entries: int) -> Reader:
        """Have the log lose what comes next."""
        self._feed.top = Id(self._feed.top.attempt, self._feed.top.n + entries)
        return self

    def end(self, status: RunStatus, **fields: Any) -> Reader:
        """End the run."""
        top = self._feed.top
        run = replace(self.run, status=status, attempt=top.attempt, last_entry=top.n, **fields)
        assert self._feed.take_log([end_entry(run)])
        self.read()
        return self

    def settle(self, **fields: Any) -> Reader:
        """Have the end read from the run's row."""
        self._feed.settle(replace(self.run, **fields))
        self.read()
        return self

    def skip(self) -> Reader:
        """Have the reader begin behind all of this."""
        self._cursor = self._feed.top
        return self

    def read(self) -> None:
        """Read what is new."""
        for item in list(self._feed.after(self._cursor)):
            self._cursor = item.id
            self._apply(self.renderer.render(item))

    def _apply(self, frames: bytes) -> None:
        for frame in frames.decode().split("\n\n")[:-1]:
            data = frame.removeprefix("data: ")
            if data == "[DONE]":
                self.done = True
                continue
            chunk = json.loads(data)
            self.chunks.append(chunk["type"])
            self.message.apply(chunk)
            text = "".join(part["text"] for part in self.message.parts if part["type"] == "text")
            if [text] != self.texts[-1:]:
                self.texts.append(text)

    @property
    def kinds(self) -> list[str]:
        """The kinds of the message's parts."""
        return [part["type"] for part in self.message.parts]

    @property
    def text(self) -> str:
        """The text as it is now."""
        return self.texts[-1]


def part_of(reader: Reader, kind: str) -> Part:
    [part] = [part for part in reader.message.parts if part["type"] == kind]
    return part


async def test_a_text_grows_and_ends_with_what_was_used() -> None:
    reader = (
        Reader()
        .take(FIRST, "It ", "It is", "It is so.")
        .end(RunStatus.SUCCEEDED, output="It is so.", usage={"requests": 2})
    )

    assert reader.texts == ["", "It ", "It is", "It is so."]
    assert reader.chunks == [
        "start",
        "start-step",
        "text-start",
        *["text-delta"] * 3,
        "text-end",
        "finish-step",
        "finish",
    ]
    assert reader.done
    assert reader.message.metadata["run_id"] == str(reader.run.id)
    assert reader.message.metadata["usage"] == {"requests": 2}


def made(file_id: str) -> Part:
    return {"event": "file", "file_id": file_id, "media_type": "image/png", "bytes": 9}


def files_in(reader: Reader) -> list[str]:
    return [part["url"] for part in reader.message.parts if part["type"] == "file"]


async def test_a_file_is_a_part_and_stays_where_the_text_beside_it_is_written_again() -> None:
    reader = Reader().take(FIRST, "It is", made("f"), "It was", made("f"))

    assert part_of(reader, "file") == {"type": "file", "mediaType": "image/png", "url": "/files/f"}
    assert reader.kinds == ["step-start", "text", "file"]
    assert reader.text == "It was"


async def test_a_file_of_a_response_that_is_void_is_taken_back_and_made_again() -> None:
    reader = Reader().take(FIRST, call("1"), made("f"), result("1"), "I drew", made("g"))
    assert files_in(reader) == ["/files/f", "/files/g"]

    reader.take({**LOST, "steps_kept": 2}, attempt=2)
    assert files_in(reader) == ["/files/f"]
    reader.take("I draw", made("g"), made("f"), attempt=2)
    assert files_in(reader) == ["/files/f", "/files/g"]


async def test_a_file_of_an_attempt_that_is_void_is_taken_back_and_made_again() -> None:
    reader = Reader().take(FIRST, call("1"), made("f")).take({**LOST, "steps_kept": 0}, attempt=2)
    assert files_in(reader) == []
    reader.take(call("1"), made("f"), result("1"), attempt=2)
    assert reader.kinds == ["step-start", "tool-look", "file"]


async def test_growth_is_sent_as_growth_and_shared() -> None:
    reader = Reader().take(FIRST, "It")
    grown = {"drop": 0, "append": " is"}
    reader.take(grown)

    assert reader.texts == ["", "It", "It is"]
    assert reader.chunks[-1] == "text-delta"


async def test_a_text_that_shrinks_is_taken_back_and_written_again() -> None:
    reader = Reader().take(FIRST, thought(1, "Hm."), "It is", {"drop": 2, "append": "was"}, "It was so.")

    assert reader.texts == ["", "It is", "", "It was", "It was so."]
    assert [(part["type"], part.get("text")) for part in reader.message.parts] == [
        ("step-start", None),
        ("reasoning", "Hm."),
        ("text", "It was so."),
    ]


async def test_what_a_lost_attempt_wrote_is_taken_back() -> None:
    reader = Reader().take(FIRST, thought(1, "Hm."), "It is")
    reader.take(LOST, attempt=2)

    assert reader.message.parts == [{"type": "step-start"}]
    reader.take(thought(1, "Well."), "It was.", attempt=2)
    assert [part.get("text") for part in reader.message.parts] == [None, "Well.", "It was."]


@pytest.mark.parametrize("hidden", [False, True])
async def test_kept_steps_stay_and_the_unfinished_response_is_taken_back(*, hidden: bool) -> None:
    tools = [] if hidden else [call("a"), result("a")]
    reader = Reader().take(FIRST, thought(1, "First."), *tools, thought(2, "Then"), "It is")
    reader.take({**LOST, "steps_kept": 2, "reasoning_kept": 1}, attempt=2)

    kept = [part for part in reader.message.parts if part["type"] != "step-start"]
    assert [part.get("text", "tool") for part in kept] == ["First.", *(["tool"] if tools else [])]
    reader.take(thought(2, "Now"), "It was.", attempt=2)
    written = [part.get("text", "tool") for part in reader.message.parts if part["type"] != "step-start"]
    assert written == ["First.", *(["tool"] if tools else []), "Now", "It was."]


async def test_a_call_that_was_in_flight_is_made_again_in_its_place() -> None:
    reader = Reader().take(FIRST, call("a"), call("b"), result("a"))
    reader.take({**LOST, "steps_kept": 2}, call("b"), result("b", '{"n":2}'), "So.", attempt=2)

    assert reader.kinds == ["step-start", "tool-look", "tool-look", "step-start", "text"]
    assert [part.get("output") for part in reader.message.parts] == [None, "seen", {"n": 2}, None, None]


async def test_more_than_a_step_cannot_be_taken_back() -> None:
    reader = Reader().take(FIRST, call("a"), result("a"), "It is")

    with pytest.raises(CannotRender):
        reader.take(LOST, attempt=2)
    late = Reader().take(FIRST, call("a"), result("a"), "It is", read=False)
    late.take(LOST, "Else.", attempt=2)
    assert late.kinds == ["step-start", "text"]


async def test_what_a_response_said_before_its_calls_stays_and_the_next_one_is_a_step_of_its_own() -> None:
    reader = Reader().take(FIRST, "Let me look.", call("a"), result("a"), {"drop": 12, "append": "Done."})

    assert [(part["type"], part.get("text")) for part in reader.message.parts] == [
        ("step-start", None),
        ("text", "Let me look."),
        ("tool-look", None),
        ("step-start", None),
        ("text", "Done."),
    ]
    assert reader.message.parts[1]["state"] == "done"


async def test_the_providers_own_tools_are_parts_of_the_response() -> None:
    reader = Reader().take(FIRST, call("n", native=True), result("n", native=True), "It is", "Else")

    assert reader.kinds == ["step-start", "tool-look", "text"]
    assert reader.message.parts[1]["providerExecuted"] is True
    assert reader.text == "Else"
    reader.take({**LOST, "steps_kept": 1}, attempt=2)
    assert reader.kinds == ["step-start"]
    reader.take(call("n", native=True), attempt=2)
    assert reader.kinds == ["step-start", "tool-look"]


async def test_an_object_is_one_part_that_is_replaced() -> None:
    reader = Reader(run_row(text_output=False))
    reader.take(FIRST, call("a"), result("a"), '{"a":1}', '{"a":12,"b":"\\u2028"}')

    assert reader.kinds == ["step-start", "tool-look", "step-start", "data-output"]
    assert part_of(reader, "data-output")["data"] == {"a": 12, "b": "\u2028"}
    reader.take({**LOST, "steps_kept": 2}, attempt=2)
    assert "data-output" not in reader.kinds
    reader.take('{"a":3}', attempt=2)
    assert part_of(reader, "data-output")["data"] == {"a": 3}


async def test_a_reader_that_comes_late_has_the_newest_text_only() -> None:
    reader = Reader().take(FIRST, thought(1, "H"), thought(1, "Hm."), "It", "It is", read=False)
    reader.read()

    assert reader.texts == ["", "It is"]
    assert part_of(reader, "reasoning")["text"] == "Hm."


async def test_a_result_whose_call_was_missed_has_one() -> None:
    reader = Reader().take(FIRST, "It").lose(2).take(result("a"), "It is")

    assert reader.kinds == ["step-start", "text", "tool-look", "step-start", "text"]
    assert part_of(reader, "tool-look")["input"] is None
    assert reader.message.parts[-1]["text"] == "It is"


async def test_progress_is_shown_and_does_not_stay() -> None:
    reader = Reader().take(FIRST, {"event": "progress", "name": "half", "data": [1], "tool_call_id": "a"})

    assert [each["data"] for each in reader.message.transient] == [{"name": "half", "data": [1], "tool_call_id": "a"}]
    assert reader.message.parts == []


async def test_a_run_that_failed_or_was_cancelled_says_so_and_keeps_what_it_wrote() -> None:
    error = {"code": "agent_error", "message": "Sorry.", "retryable": False}
    failed = Reader().take(FIRST, "It").end(RunStatus.FAILED, error=error, partial_output="It")
    cancelled = Reader().take(FIRST, "It").end(RunStatus.CANCELLED, partial_output="It")
    early = Reader().end(RunStatus.CANCELLED)

    assert failed.chunks[-3:] == ["text-end", "finish-step", "error"]
    assert cancelled.chunks[-4:] == ["text-end", "finish-step", "message-metadata", "abort"]
    assert cancelled.message.metadata["status"] == "interrupted"
    assert early.chunks == ["start", "abort"]
    assert failed.text == cancelled.text == "It"
    assert failed.done
    assert cancelled.done
    assert early.done


async def test_a_run_whose_log_has_expired_is_told_from_its_row() -> None:
    reader = Reader().settle(status=RunStatus.SUCCEEDED, attempt=2, last_entry=9, output="It is so.", usage={})

    assert reader.texts == ["", "It is so."]
    assert reader.message.ended == ["finish"]


async def test_a_run_that_waits_asks_for_approvals_and_answers() -> None:
    reader = Reader().take(FIRST, call("a"), call("q"), result("a"), {"event": "waiting", "requests": [PAY, ASK]})

    assert [(part["type"], part.get("state")) for part in reader.message.parts] == [
        ("step-start", None),
        ("tool-look", "output-available"),
        ("tool-look", "input-available"),
        ("tool-pay", "approval-requested"),
        ("data-request", None),
    ]
    assert part_of(reader, "data-request")["data"]["prompt"] == "Who?"


def answers(approved: bool) -> list[Part]:
    return [
        {"event": "answered", "request_id": "p", "approve": approved},
        {"event": "answered", "request_id": "q"},
    ]


@pytest.mark.parametrize("approved", [True, False])
async def test_a_stream_goes_on_after_answers_in_the_message_that_the_reader_has(*, approved: bool) -> None:
    before: list[Part] = [
        {"type": "step-start"},
        {"type": "tool-pay", "toolCallId": "p", "state": "approval-responded"},
        {"type": "tool-ask", "toolCallId": "q", "state": "output-available", "output": {"its": "own"}},
    ]
    reader = Reader(known=Known(frozenset("pq"), frozenset("q")), message=Message(before))
    reader.take(FIRST, {"event": "waiting", "requests": [PAY, ASK]}, {"event": "pause"}, read=False).skip()
    reader.take(*answers(approved))
    reader.take(ANSWERED, result("p", "paid"), result("q", "Ann"), "So.", attempt=2)
    reader.take({**LOST, "steps_kept": 3}, "So be it.", attempt=3)

    assert "tool-approval-response" not in reader.chunks
    pay, ask, _, text = reader.message.parts[1:]
    assert pay["state"] == ("output-available" if approved else "output-denied")
    assert ask["output"] == {"its": "own"}
    assert text["text"] == "So be it."


@pytest.mark.parametrize("approved", [True, False])
async def test_a_reader_from_the_start_sees_what_was_answered(*, approved: bool) -> None:
    reader = Reader().take(FIRST, call("q"), {"event": "waiting", "requests": [PAY, ASK]}, *answers(approved))
    assert part_of(reader, "tool-pay")["state"] == "approval-responded"
    reader.take(ANSWERED, result("p", "paid"), result("q", "Ann"), "So.", attempt=2)

    assert part_of(reader, "tool-pay")["state"] == ("output-available" if approved else "output-denied")
    assert reader.kinds[-2:] == ["step-start", "text"]


async def test_an_answer_that_was_an_error_is_one() -> None:
    answered = {"answer": '{"error": "It is gone."}', "answered_by": "x", "attempt": 1, "answer_entry": 3}
    stored = {**ASK, "args": "{}", "created_at": "2026-01-01T00:00:00Z", "answered_at": None, **answered}
    reader = Reader(run_row(text_output=True, requests=[stored]))
    reader.take(FIRST, call("q"), {"event": "waiting", "requests": [ASK]}, {"event": "answered", "request_id": "q"})
    reader.take(ANSWERED, result("q", "It is gone."), attempt=2)

    assert (part_of(reader, "tool-look")["state"], part_of(reader, "tool-look")["errorText"]) == (
        "output-error",
        "It is gone.",
    )


async def test_what_a_tool_was_given_is_shown_as_it_is_or_as_text() -> None:
    reader = Reader().take(FIRST, call("a", args='{"cut": … (99 bytes)'), call("b", args=None), result("b", "[NaN]"))

    assert [part.get("input") for part in reader.message.parts] == [None, '{"cut": … (99 bytes)', None]
    assert reader.message.parts[-1]["output"] == "[NaN]"
