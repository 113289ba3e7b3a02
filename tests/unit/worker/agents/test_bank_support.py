"""The sample agent on its script: what it answers, and how the answer grows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_ai import (
    Agent,
    FinalResultEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRetry,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from typing_extensions import override

from agent_relay.worker.agents.bank import Bank, Customer, dollars
from agent_relay.worker.agents.bank_script import scripted
from agent_relay.worker.agents.bank_support import SupportAnswer, SupportDependencies, WholeAnswer, agent

JOHN = Customer(id=123, name="John")


class BankOfJohn(Bank):
    """A bank without a database: one customer, $1245.95 booked and $122.50 on its way out."""

    def __init__(self) -> None:  # pyright: ignore[reportMissingSuperCall]
        pass

    @override
    async def customer(self, customer_id: int) -> Customer | None:
        return JOHN if customer_id == JOHN.id else None

    @override
    async def balance(self, customer_id: int, include_pending: bool) -> int | None:
        if customer_id != JOHN.id:
            return None
        return 1123_45 if include_pending else 1245_95


@dataclass
class Watched:
    """A run as the worker would see it."""

    partials: list[SupportAnswer] = field(default_factory=list[SupportAnswer])
    tool_results: list[str] = field(default_factory=list[str])
    messages: list[ModelMessage] = field(default_factory=list[ModelMessage])
    answer: SupportAnswer = field(default_factory=SupportAnswer)
    answering_seconds: float = 0


async def ask(
    query: str,
    *,
    history: list[ModelMessage] | None = None,
    model: Model | None = None,
    customer: Customer | None = JOHN,
) -> Watched:
    """Run the agent and validate at every event, as often as a worker ever could."""
    watched = Watched()
    dependencies = SupportDependencies(customer=customer, bank=BankOfJohn())
    async with agent.iter(query, deps=dependencies, message_history=history, model=model or scripted(0)) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                began = time.monotonic()
                answering = False
                async with node.stream(run.ctx) as stream:
                    async for event in stream:
                        answering = answering or isinstance(event, FinalResultEvent)
                        if answering:
                            try:
                                partial = await stream.validate_response_output(stream.response, allow_partial=True)
                            except (ValidationError, ModelRetry):
                                continue
                            if partial and partial not in watched.partials[-1:]:
                                watched.partials.append(partial)
                watched.answering_seconds = time.monotonic() - began
            elif Agent.is_call_tools_node(node):
                async with node.stream(run.ctx) as events:
                    async for event in events:
                        if isinstance(event, FunctionToolResultEvent):
                            watched.tool_results.append(event.part.model_response_str())
    assert run.result is not None
    watched.messages = run.result.all_messages()
    watched.answer = run.result.output
    return watched


def stored(messages: list[ModelMessage]) -> list[ModelMessage]:
    """Take messages through their stored form."""
    return ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(messages))


def advice(answer: SupportAnswer) -> str:
    return answer.get("support_advice", "")


QUERIES = ["What is my balance?", "I just lost my card!", "And with pending?", 'Sing "Ça ira" \\ 😀\n\tfor me']


@pytest.mark.parametrize("query", QUERIES)
async def test_the_answer_grows_from_its_first_characters_to_every_field(query: str) -> None:
    seen = await ask(query)

    first = seen.partials[0]
    assert set(first) == {"support_advice"}
    assert len(advice(first)) < 10
    texts = [advice(partial) for partial in seen.partials]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert seen.partials[-1] == seen.answer
    WholeAnswer.model_validate(seen.answer, strict=True)


@pytest.mark.parametrize("query", QUERIES)
async def test_every_partial_validates_as_an_output(query: str) -> None:
    output = TypeAdapter(SupportAnswer)

    for partial in (await ask(query)).partials:
        assert output.validate_python(partial, strict=True) == partial


@pytest.mark.parametrize("query", QUERIES)
async def test_the_answer_says_that_a_script_wrote_it(query: str) -> None:
    seen = await ask(query)

    assert "a script wrote this answer" in advice(seen.answer)
    assert "MODEL" in advice(seen.answer)
    assert [message.model_name for message in seen.messages if isinstance(message, ModelResponse)][-1] == "scripted"


@pytest.mark.parametrize("query", QUERIES)
async def test_the_answer_is_long_enough_to_be_seen_streaming(query: str) -> None:
    assert len((await ask(query)).partials) >= 120


async def test_a_balance_question_is_answered_from_the_tool() -> None:
    seen = await ask("What is my balance?")

    assert seen.tool_results == ["$1245.95"]
    assert "$1245.95" in advice(seen.answer)
    assert seen.answer.get("block_card") is False


@pytest.mark.parametrize("query", ["What is my balance with pending transactions?", "My BALANCE, pending included"])
async def test_pending_transactions_count_when_asked_for(query: str) -> None:
    seen = await ask(query)

    assert seen.tool_results == ["$1123.45"]
    assert "$1123.45" in advice(seen.answer)


async def test_pending_transactions_are_left_out_when_asked_for() -> None:
    assert (await ask("What is my balance without the pending transactions?")).tool_results == ["$1245.95"]


@pytest.mark.parametrize("query", ["I just lost my card!", "Somebody stole my wallet", "My card is missing"])
async def test_a_lost_card_is_blocked(query: str) -> None:
    seen = await ask(query)

    assert seen.answer.get("block_card") is True
    assert seen.answer.get("risk_level", 0) >= 7
    assert len(seen.answer.get("follow_up_actions", [])) > 1
    assert seen.tool_results == []


async def test_a_follow_up_is_understood_from_the_stored_history() -> None:
    before = await ask("What is my balance?")

    seen = await ask("And with pending transactions?", history=stored(before.messages))

    assert seen.tool_results == ["$1123.45"]
    assert "$1123.45" in advice(seen.answer)


async def test_a_follow_up_still_works_after_another_subject() -> None:
    balance = await ask("What is my balance?")
    card = await ask("I lost my card", history=stored(balance.messages))

    assert (await ask("and with pending?", history=stored(card.messages))).tool_results == ["$1123.45"]


async def test_a_follow_up_to_nothing_is_asked_back() -> None:
    seen = await ask("And with pending?")

    assert seen.tool_results == []
    assert "not sure what you mean" in advice(seen.answer)


async def test_anything_else_is_quoted_and_told_what_the_script_can_do() -> None:
    seen = await ask("Sing me\n a song")

    assert "“Sing me a song”" in advice(seen.answer)
    assert "balance" in advice(seen.answer)
    assert seen.tool_results == []


async def test_a_long_query_is_not_quoted_whole() -> None:
    assert len(advice((await ask("x" * 100_000)).answer)) < 1000


async def test_a_customer_whom_the_bank_does_not_know_gets_an_answer_and_no_amount() -> None:
    seen = await ask("What is my balance?", customer=None)

    assert seen.tool_results == ["The bank does not know this customer."]
    assert "$" not in advice(seen.answer)


async def test_amounts_come_from_the_tool() -> None:
    class AnotherBank(BankOfJohn):
        @override
        async def balance(self, customer_id: int, include_pending: bool) -> int | None:
            return -5

    async with agent.iter(
        "My balance?", deps=SupportDependencies(customer=JOHN, bank=AnotherBank()), model=scripted(0)
    ) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for _ in stream:
                        pass
    assert run.result is not None
    assert "-$0.05" in advice(run.result.output)


async def test_tokens_come_at_the_pace_that_was_asked_for() -> None:
    tokens_per_second = 400

    seen = await ask("I lost my card", model=scripted(tokens_per_second))

    assert len(seen.partials) / seen.answering_seconds <= tokens_per_second


async def test_the_default_pace_makes_an_answer_of_two_seconds() -> None:
    seen = await ask("What is my balance?")

    assert 1.6 < len(seen.partials) / 80 < 3


async def test_an_answer_that_lacks_a_field_is_sent_back_and_never_accepted() -> None:
    sent_back: list[str] = []

    async def half(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        sent_back.extend(part.model_response_str() for part in messages[-1].parts if part.part_kind == "tool-return")
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"support_advice": "Hm", "risk_level": 3}')}

    with pytest.raises(UnexpectedModelBehavior):
        await ask("Hello", model=FunctionModel(stream_function=half))

    assert len(sent_back) == 2
    assert "block_card" in sent_back[0]
    assert "follow_up_actions" in sent_back[0]


async def test_model_and_callers_are_told_that_every_field_is_required() -> None:
    fields = ["support_advice", "block_card", "risk_level", "follow_up_actions"]
    schemas: list[dict[str, Any]] = []

    async def look(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        schemas.extend(tool.parameters_json_schema for tool in info.output_tools)
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args="{}")}

    with pytest.raises(UnexpectedModelBehavior):
        await ask("Hello", model=FunctionModel(stream_function=look))

    assert schemas[0]["required"] == fields
    assert agent.output_json_schema()["required"] == fields
    assert agent.output_json_schema()["properties"]["risk_level"]["maximum"] == 10


async def test_the_model_is_told_who_asks() -> None:
    told: list[str | None] = []

    async def look(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        told.append(info.instructions)
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args="{}")}

    with pytest.raises(UnexpectedModelBehavior):
        await ask("Hello", model=FunctionModel(stream_function=look))

    assert told[0] is not None
    assert "John" in told[0]


async def test_the_tool_is_called_with_what_was_asked() -> None:
    seen = await ask("My balance with pending, please")

    calls = [part for message in seen.messages for part in message.parts if isinstance(part, ToolCallPart)]
    assert calls[0].tool_name == "customer_balance"
    assert calls[0].args_as_dict() == {"include_pending": True}


@pytest.mark.parametrize(
    ("cents", "written"), [(112345, "$1123.45"), (5, "$0.05"), (0, "$0.00"), (-5, "-$0.05"), (-12250, "-$122.50")]
)
def test_cents_are_written_as_dollars(cents: int, written: str) -> None:
    assert dollars(cents) == written
