"""Steps are read from the messages that pydantic-ai writes, and show what the agent lets be shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

from agent_relay.api.schemas import Step
from agent_relay.api.steps import Exchange, steps_in

AT = datetime(2027, 1, 31, 12, tzinfo=UTC)
STORED = AT + timedelta(seconds=5)
ENDED = AT + timedelta(seconds=60)


def exchange(messages: Sequence[Any], **row: Any) -> Exchange:
    """Make an exchange of messages, whose response is stored as a step of attempt 2."""
    entries = [{"message": message, "attempt": 2, "finished_at": STORED.isoformat()} for message in messages]
    about: dict[str, Any] = {
        "run_id": UUID(int=1),
        "exchange": 1,
        "agent_type": "any",
        "status": "succeeded",
        "finished_at": ENDED,
        "tool_events": "full",
        "reasoning": True,
        "is_last": False,
        "sent": [],
        "length": Decimal(0),
        "entries": json.dumps(entries),
    }
    return Exchange(**about | row)


def read(*messages: ModelMessage, **row: Any) -> list[Step]:
    """Read messages as they are stored."""
    return list(steps_in(exchange(json.loads(ModelMessagesTypeAdapter.dump_json(list(messages))), **row)))


RESPONSE = ModelResponse(
    parts=[
        ThinkingPart("Hm."),
        TextPart("I look."),
        ToolCallPart("look", '{"at": [1, null]}', tool_call_id="c1"),
        ToolCallPart("weigh", {}, tool_call_id="c2"),
    ],
    timestamp=AT,
    usage=RequestUsage(input_tokens=7, output_tokens=3),
)
RESULT = ToolReturnPart("look", {"seen": "\0"}, tool_call_id="c1", timestamp=AT + timedelta(seconds=9))


def test_a_response_shows_what_was_thought_and_said_and_its_calls_with_their_results_and_times() -> None:
    thought, said, looked, weighed = read(RESPONSE, ModelRequest(parts=[RESULT]))

    assert (thought.kind, thought.text) == ("reasoning", "Hm.")
    assert (said.kind, said.text, said.attempt) == ("response", "I look.", 2)
    assert (said.started_at, said.finished_at) == (AT, STORED)
    assert said.usage is not None
    assert (said.usage.requests, said.usage.input_tokens, said.usage.output_tokens) == (1, 7, 3)
    assert (looked.kind, looked.tool_name, looked.args) == ("tool_call", "look", {"at": [1, None]})
    assert (looked.result, looked.started_at, looked.finished_at) == ({"seen": "\0"}, STORED, RESULT.timestamp)
    assert (weighed.tool_name, weighed.result, weighed.finished_at) == ("weigh", None, None)


@pytest.mark.parametrize(
    ("shown", "kinds"),
    [
        ("full", ["reasoning", "response", "tool_call", "tool_call"]),
        ("names", ["response", "tool_call", "tool_call"]),
        (None, ["response", "tool_call", "tool_call"]),
        ("off", ["response"]),
        ("a setting of tomorrow", ["response"]),
    ],
)
def test_the_setting_of_the_agent_says_what_is_shown(shown: str | None, kinds: list[str]) -> None:
    steps = read(RESPONSE, ModelRequest(parts=[RESULT]), tool_events=shown, reasoning=shown == "full")

    assert [step.kind for step in steps] == kinds
    values = [(step.args, step.result) for step in steps if step.kind == "tool_call"]
    assert all((args, result) == (None, None) for args, result in values) or shown == "full"


@pytest.mark.parametrize("reasoning", [True, False, None])
def test_reasoning_is_shown_where_the_agent_shows_it_whatever_is_shown_of_tools(*, reasoning: bool | None) -> None:
    kinds = [step.kind for step in read(RESPONSE, tool_events="off", reasoning=reasoning)]

    assert kinds == [*(["reasoning"] if reasoning else []), "response"]


def test_of_two_results_of_a_call_the_first_counts() -> None:
    """The transcript holds those that the steps do, too."""
    again = ToolReturnPart("look", "twice", tool_call_id="c1")

    looked = read(RESPONSE, ModelRequest(parts=[RESULT]), ModelRequest(parts=[again]))[2]

    assert looked.result == {"seen": "\0"}


def test_what_a_tool_asks_to_be_made_again_is_its_result() -> None:
    retry = ToolReturnPart("weigh", "Not so.", tool_call_id="c2", outcome="retried")

    assert read(RESPONSE, ModelRequest(parts=[RESULT, retry]))[3].result == "Not so."


@pytest.mark.parametrize("tool", ["look", "final_result"])
def test_what_is_said_before_a_call_is_a_step_and_no_part_of_the_output(tool: str) -> None:
    call = ToolCallPart(tool, '{"at": 1}', tool_call_id="c1")
    response = ModelResponse(
        parts=[TextPart("First "), TextPart("this."), call], usage=RequestUsage(input_tokens=7), timestamp=AT
    )

    steps = read(response, ModelRequest(parts=[ToolReturnPart(tool, "seen", tool_call_id="c1")]))

    assert [step.kind for step in steps] == ["response", "tool_call" if tool == "look" else "response"]
    assert steps[0].text == "First this."
    assert steps[1].text == (None if tool == "look" else '{"at": 1}')
    assert [step.usage is not None for step in steps] == [tool == "look", tool != "look"]


@pytest.mark.parametrize("name", ["final_result", "final_result_Yes", "give"])
def test_an_output_is_what_was_said_and_no_call(name: str) -> None:
    response = ModelResponse(parts=[ToolCallPart(name, '{"a": 1}', tool_call_id="o")])
    told = ModelRequest(parts=[ToolReturnPart(name, "Final result processed.", tool_call_id="o")])

    [said] = read(response, told)

    assert (said.kind, said.text) == ("response", '{"a": 1}')


def test_tools_of_the_provider_are_shown_with_their_results() -> None:
    call = NativeToolCallPart("web_search", {"q": "x"}, tool_call_id="n")
    returned = NativeToolReturnPart("web_search", ["found"], tool_call_id="n")

    searched, _ = read(ModelResponse(parts=[call, returned, TextPart("So.")]))

    assert (searched.kind, searched.args, searched.result) == ("native_tool", {"q": "x"}, ["found"])


def test_a_message_into_the_run_is_shown_where_the_model_knew_of_it_and_no_other_prompt() -> None:
    hashes = [hashlib.sha256(b"Hurry.").hexdigest()]
    request = ModelRequest(parts=[RESULT, UserPromptPart("A picture"), UserPromptPart("Hurry.", timestamp=AT)])

    steps = read(RESPONSE, request, sent=hashes)

    assert [(step.kind, step.text, step.started_at) for step in steps[4:]] == [("message", "Hurry.", AT)]
    query = ModelRequest(parts=[UserPromptPart("Hurry.")])
    assert read(query, sent=hashes, exchange=0) == []
    assert len(read(query, query, sent=hashes, exchange=0)) == 1


def test_the_last_response_ends_with_its_run() -> None:
    known = json.loads(ModelMessagesTypeAdapter.dump_json([ModelResponse(parts=[TextPart("So.")])]))
    row = exchange(known, is_last=True, entries=json.dumps([{"message": known[0], "attempt": 1, "finished_at": None}]))

    assert [step.finished_at for step in steps_in(row)] == [ENDED]


ODD: list[Any] = [
    {"kind": "response"},
    {"kind": "response", "parts": None},
    {"kind": "response", "parts": [None, 1, "x", [], {}]},
    {"kind": "response", "parts": [{"part_kind": "tool-call", "tool_name": 5, "args": "{", "tool_call_id": None}]},
    {"kind": "response", "parts": [{"part_kind": "tool-call"}], "timestamp": "soon", "usage": "much"},
    {"kind": "response", "parts": [{"part_kind": "text", "content": {"a": 1}}], "usage": {"input_tokens": -1}},
    {"kind": "request", "parts": [{"part_kind": "tool-return", "tool_call_id": []}]},
    {"kind": ["response"], "parts": {}},
    "no message",
    None,
]


@pytest.mark.parametrize("message", ODD)
def test_what_another_hand_has_written_is_shown_as_far_as_it_can_be_read(message: Any) -> None:
    steps = list(steps_in(exchange([message])))

    assert len(steps) <= 2
    assert [Step.model_validate_json(step.model_dump_json()) for step in steps] == steps


def test_what_is_no_json_shows_nothing() -> None:
    assert list(steps_in(exchange([], entries='[{"message": "\\ud800"}]'))) == []
