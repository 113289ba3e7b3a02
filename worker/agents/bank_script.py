"""A scripted model for the sample agent: no network and no key; its answer states that.

It calls the real tool, takes amounts from what the tool returned, and writes the answer token by token at a steady
pace. It knows four kinds of queries and no language.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from pydantic_ai import ModelMessage, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.messages import ModelRequestPart, ModelResponsePart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

_TOOL = "customer_balance"
_QUOTED_CHARACTERS = 120

_TOKEN = re.compile(r" ?\w{1,6}| ?[^\w\s]|\s")
_AMOUNT = re.compile(r"-?\$\d+\.\d\d")
_CARD_GONE = re.compile(
    r"\b(lost|lose|missing|stolen|stole|theft|robbed)\b.*\b(card|wallet|purse)\b"
    r"|\b(card|wallet|purse)\b.*\b(lost|missing|stolen|stole|gone)\b",
    re.IGNORECASE | re.DOTALL,
)
_BALANCE = re.compile(r"\b(balance|how much (money )?(do|have) i|in my account)\b", re.IGNORECASE)
_PENDING = re.compile(r"\bpending\b", re.IGNORECASE)
_NOT_PENDING = re.compile(r"\b(without|excluding|except|not counting|no)\b[\w ]*\bpending\b", re.IGNORECASE)

_CONFESSION = (
    "Please note that a script wrote this answer: no language model is configured for this service. "
    "Set MODEL to the name of one, and it will answer in earnest."
)


class _Intent(Enum):
    """The kinds of queries that the script tells apart."""

    BALANCE = auto()
    CARD_GONE = auto()
    UNCLEAR = auto()
    OTHER = auto()


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """The messages' content about the query that is being answered."""

    query: str
    asked_balance_before: bool
    """Whether an earlier run of the thread looked a balance up."""
    called: bool
    returned: str | None
    """The tool's result in this run."""

    @property
    def intent(self) -> _Intent:
        if _CARD_GONE.search(self.query):
            return _Intent.CARD_GONE
        if _BALANCE.search(self.query):
            return _Intent.BALANCE
        if _PENDING.search(self.query):
            return _Intent.BALANCE if self.asked_balance_before else _Intent.UNCLEAR
        return _Intent.OTHER

    @property
    def include_pending(self) -> bool:
        return bool(_PENDING.search(self.query)) and not _NOT_PENDING.search(self.query)


def scripted(tokens_per_second: float) -> Model:
    """Make the model; a pace of 0 does not wait between tokens."""

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        turn = _read(messages)
        if turn.intent is _Intent.BALANCE and not turn.called:
            name, arguments = _TOOL, {"include_pending": turn.include_pending}
        else:
            name, arguments = info.output_tools[0].name, _ANSWERS[turn.intent](turn)
        yield {0: DeltaToolCall(name=name)}
        async for token in _paced(_tokens(json.dumps(arguments, ensure_ascii=False)), tokens_per_second):
            yield {0: DeltaToolCall(json_args=token)}

    return FunctionModel(stream_function=answer, model_name="scripted")


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


async def _paced(tokens: list[str], tokens_per_second: float) -> AsyncIterator[str]:
    """Yield each token when it is due, counted from the first, so that late ones do not delay the rest."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for number, token in enumerate(tokens, start=1):
        if tokens_per_second and (early := began + number / tokens_per_second - clock()) > 0:
            await asyncio.sleep(early)
        yield token


def _read(messages: list[ModelMessage]) -> _Turn:
    parts: list[ModelRequestPart | ModelResponsePart] = [part for message in messages for part in message.parts]
    # A request can hold the last run's tool returns and this run's query: only the parts show where a run begins.
    begins = max((place for place, part in enumerate(parts) if isinstance(part, UserPromptPart)), default=0)
    this_run = parts[begins:]
    returned = [part for part in this_run if isinstance(part, ToolReturnPart) and part.tool_name == _TOOL]
    return _Turn(
        query=next((_text(part) for part in this_run if isinstance(part, UserPromptPart)), ""),
        asked_balance_before=any(_calls_tool(part) for part in parts[:begins]),
        called=any(_calls_tool(part) for part in this_run),
        returned=returned[-1].model_response_str() if returned else None,
    )


def _calls_tool(part: object) -> bool:
    return isinstance(part, ToolCallPart) and part.tool_name == _TOOL


def _text(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    return " ".join(piece for piece in part.content if isinstance(piece, str))


def _quoted(query: str) -> str:
    """Quote the query on one line, cut where it is long."""
    line = " ".join(query.split())
    return f"“{line}”" if len(line) <= _QUOTED_CHARACTERS else f"“{line[: _QUOTED_CHARACTERS - 1]}…”"


def _answer(advice: str, *, block_card: bool, risk_level: int, follow_up_actions: list[str]) -> dict[str, Any]:
    return {
        "support_advice": f"{advice} {_CONFESSION}",
        "block_card": block_card,
        "risk_level": risk_level,
        "follow_up_actions": follow_up_actions,
    }


def _about_balance(turn: _Turn) -> dict[str, Any]:
    amount = _AMOUNT.search(turn.returned or "")
    if amount is None:
        return _answer(
            f"I looked your account up to answer {_quoted(turn.query)}, but found no balance to tell you: "
            f"{turn.returned or 'the tool returned nothing.'} Please sign in again or show your customer card at one "
            "of our branches, and we will gladly help you from there.",
            block_card=False,
            risk_level=4,
            follow_up_actions=["Verify who the customer is before anything about an account is told"],
        )
    counted, other = (
        ("including pending transactions", "leave the pending transactions out")
        if turn.include_pending
        else ("without pending transactions", "count the pending transactions in as well")
    )
    return _answer(
        f"Thank you for your question. I looked your account up a moment ago: your balance, {counted}, is "
        f"{amount.group()}. It can change as soon as the next transaction is booked. If you would like me to {other}, "
        "just ask, and I will look it up again for you.",
        block_card=False,
        risk_level=1,
        follow_up_actions=["None is needed, unless the customer does not recognise a transaction"],
    )


def _about_card(_turn: _Turn) -> dict[str, Any]:
    return _answer(
        "I am sorry to hear that. We are blocking your card right away, so that nobody can pay with it or draw money. "
        "Please look through your recent transactions and tell us about any that you do not recognise. If the card was "
        "stolen, report it to the police as well and keep the number of the report.",
        block_card=True,
        risk_level=8,
        follow_up_actions=[
            "Block the card and confirm it to the customer",
            "Send a new card to the address on file",
            "Check the recent transactions for fraud",
        ],
    )


def _about_nothing_clear(turn: _Turn) -> dict[str, Any]:
    return _answer(
        f"I am not sure what you mean by {_quoted(turn.query)}, because we have not talked about your account in this "
        "conversation yet. Would you like to know your balance with the pending transactions counted in? Then ask me "
        "for “my balance with pending transactions”, and I will look it up for you.",
        block_card=False,
        risk_level=0,
        follow_up_actions=["Wait for the customer to say what they mean"],
    )


def _about_myself(turn: _Turn) -> dict[str, Any]:
    return _answer(
        f"You wrote {_quoted(turn.query)}, which I have no answer for. I can tell you the balance of your account, "
        "with or without pending transactions, and I can block a card that was lost or stolen. For everything else, "
        "please ask the staff of your branch.",
        block_card=False,
        risk_level=0,
        follow_up_actions=["Offer the customer a call from the staff of their branch"],
    )


_ANSWERS: dict[_Intent, Callable[[_Turn], dict[str, Any]]] = {
    _Intent.BALANCE: _about_balance,
    _Intent.CARD_GONE: _about_card,
    _Intent.UNCLEAR: _about_nothing_clear,
    _Intent.OTHER: _about_myself,
}
