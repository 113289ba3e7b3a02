"""An attempt that is lost anywhere is followed by one that repeats nothing that was finished."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    CancellationToken,
    DeferredToolRequests,
    DeferredToolResults,
    ModelMessage,
    ModelRetry,
    RunContext,
    RunUsage,
    ToolReturn,
)
from pydantic_ai.exceptions import RunCancelled, UsageLimitExceeded
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ModelResponse, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.usage import UsageLimits

from agent_relay.shared.runs.claim import Claim, IntoRun
from agent_relay.shared.runs.steps import FinishedSteps, Step
from agent_relay.worker.catalog import ServedAgent
from agent_relay.worker.deferred_tools import Continuation
from agent_relay.worker.execution.answer import Answer, Answered
from agent_relay.worker.execution.inbox import Inbox
from agent_relay.worker.execution.size_limits import Budget
from agent_relay.worker.execution.steps import NOTHING_KEPT, CannotContinue, LeftAtStep, StepWriter, kept_of
from tests.support.in_process import Heard, offer_of

MOST = 1 << 20


class Lost(BaseException):
    """What ends an attempt as a crash would."""


class Work:
    """An agent that calls what its plan names, a list of tools a response; and a ledger of what was done."""

    def __init__(self, *plan: list[str], output: Any = str) -> None:
        self.plan = plan
        self.done: Counter[str] = Counter()
        """Calls that have returned, by tool."""
        self.begun: Counter[str] = Counter()
        self.asked = 0
        """Requests that the model has answered."""
        self.has_retried = False
        self.seen: list[list[ModelMessage]] = []
        """What the model was told, a request."""
        self.lose: set[str] = set()
        """Tools that end their attempt, once each."""
        self.gates: dict[str, asyncio.Event] = {}
        self.agent: Agent[object, Any] = Agent(self._model(), output_type=output)
        for name in {tool for tools in plan for tool in tools} - {"asks"}:
            self._add(name)

    def _add(self, name: str) -> None:
        async def tool(word: str) -> ToolReturn[str]:
            self.begun[name] += 1
            if name in self.gates:
                await self.gates[name].wait()
            if name in self.lose:
                self.lose.remove(name)
                await turns(50)  # What returns beside it is stored by then.
                raise Lost
            if name == "again" and not self.has_retried:
                self.has_retried = True
                raise ModelRetry("once more")
            self.done[name] += 1
            return ToolReturn(f"{name} of {word}", content="see" if name == "shows" else None)

        self.agent.tool_plain(name=name)(tool)

    def _model(self) -> FunctionModel:
        async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls | str]:
            self.seen.append(ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(messages)))
            turn = sum(isinstance(message, ModelResponse) for message in messages)
            self.asked += 1
            if turn < len(self.plan):
                yield {
                    place: DeltaToolCall(name=tool, json_args='{"word": "it"}', tool_call_id=f"{tool}-{turn}-{place}")
                    for place, tool in enumerate(self.plan[turn])
                }
            elif info.output_tools:
                yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"total": 7}')}
            else:
                yield "done"

        return FunctionModel(stream_function=stream, model_name="plan")


async def turns(number: int) -> None:
    """Let everything else go on."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(30):
        while not is_so():
            await turns(1)


class Desk:
    """What is stored of a run over its attempts."""

    def __init__(self, work: Work, **served: Any) -> None:
        self.work = work
        self.offer = offer_of(ServedAgent(agent=work.agent, **served))
        self.steps: list[Step] = []
        self.statements = 0
        self.turns_to_store = 1
        self.attempts = 0
        self.writer: StepWriter | None = None
        self.answer: Answer | None = None
        self.token = CancellationToken()
        self.used_before: dict[str, int] = {}
        self.messages: list[IntoRun] = []
        """What was sent into the run."""
        self.reads = 0
        self.order: list[str] = []
        """In which order what was told stood in the log, and steps were stored."""
        self.inbox: Inbox | None = None

    def send(self, query: str) -> None:
        """Send a message into the run; the attempt learns of it."""
        self.messages.append(IntoRun(UUID(int=len(self.messages) + 1), len(self.messages) + 1, query, None))
        if self.inbox is not None:
            self.inbox.expect(len(self.messages))

    async def read(self, heard: int) -> list[IntoRun]:
        """Read as from PostgreSQL."""
        self.reads += 1
        await asyncio.sleep(0)
        return self.messages[heard:]

    async def flushed(self) -> None:
        """Wait as for the event log."""
        self.order.append("told")

    async def as_they_are(self, messages: Sequence[ModelMessage]) -> Sequence[ModelMessage]:
        """There are no files in them."""
        return messages

    async def store(self, finished: FinishedSteps) -> bool:
        """Store as PostgreSQL would."""
        await turns(self.turns_to_store)
        self.statements += 1
        self.order.append("stored")
        self.steps += finished.steps
        return True

    async def attempt(self, *, checkpoints: bool = True) -> Heard:
        """Make the next attempt."""
        self.attempts += 1
        heard, kept = Heard(), kept_of(self.steps, self.offer.version)
        claimed = cast("Claim", SimpleNamespace(run_id="run", attempt=self.attempts))
        self.writer = StepWriter(claimed, self.offer.version, MOST, self.store, lambda: None, self.as_they_are)
        self.inbox = Inbox(kept.heard, len(self.messages), self.read, self.flushed)
        self.answer = Answer(
            self.offer,
            heard,
            self.token,
            budget=Budget(MOST, MOST),
            partial_interval_seconds=0,
            tool_event_bytes=1000,
            model_timeout_seconds=5,
            model_tries=1,
            used_before=RunUsage(requests=kept.usage.get("requests", 0), tool_calls=kept.tool_calls),
            kept=kept,
            steps=self.writer if checkpoints else None,
            inbox=self.inbox,
        )
        heard.answered = await self.answer.write("go", [], None)
        return heard

    async def lost(self) -> None:
        """Make an attempt that is lost; what was under way by then is stored or not, as it happens."""
        with pytest.raises(BaseException) as lost:  # noqa: PT011  (a group of one, where it is of a parallel call)
            await self.attempt()
        assert lost.group_contains(Lost) if isinstance(lost.value, BaseExceptionGroup) else lost.type is Lost
        assert self.writer is not None
        await self.writer.written()


def calls_told(heard: Heard) -> list[str]:
    """Name the calls that readers are told of."""
    return [event["tool_call_id"] for event in heard.events if event["event"] == "tool_call"]


def shape(messages: Any) -> list[str]:
    """Say what messages hold, without times and ids of runs."""
    parts: list[Any] = [part for message in messages for part in message.parts]
    return [
        f"{part.part_kind}:{getattr(part, 'tool_call_id', None) or getattr(part, 'content', None)}"
        for part in parts
        if (part.part_kind, getattr(part, "tool_name", None)) != ("tool-call", "final_result")
    ]


PLANS = {
    "one after the other": (["a"], ["b"], ["c"]),
    "side by side": (["a", "b", "c"],),
    "both": (["a", "b"], ["c", "a"], ["b"]),
    "the same tool twice": (["a", "a", "b"], ["a"]),
    "with content for the model": (["shows", "a"], ["b"]),
    "with a retry": (["again", "a"], ["again", "b"]),
}


@pytest.mark.parametrize("plan", PLANS)
async def test_a_run_that_is_lost_in_each_tool_repeats_nothing_that_had_finished(plan: str) -> None:
    undisturbed = Work(*PLANS[plan])
    expected = await Desk(undisturbed).attempt()

    for name in {tool for tools in PLANS[plan] for tool in tools}:
        work = Work(*PLANS[plan])
        work.lose = {name}
        desk = Desk(work)
        await desk.lost()
        heard = await desk.attempt()

        assert heard.answered is not None
        assert work.asked == undisturbed.asked
        assert work.done == undisturbed.done
        assert shape(heard.messages) == shape(expected.messages)
        assert shape(work.seen[-1]) == shape(undisturbed.seen[-1])


@pytest.mark.parametrize("stored", range(9))
async def test_wherever_a_run_is_lost_its_end_and_its_messages_are_the_same(stored: int) -> None:
    plan = PLANS["both"]
    undisturbed = Work(*plan)
    whole = Desk(undisturbed)
    expected = await whole.attempt()
    assert len(whole.steps) == 8

    work = Work(*plan)
    desk = Desk(work)
    desk.steps = whole.steps[:stored]  # Each prefix of what is stored is what a crash may leave.
    heard = await desk.attempt()

    assert shape(heard.messages) == shape(expected.messages)
    assert len(desk.steps) == 8
    kept_results = sum("tool-return" in step.messages for step in whole.steps[:stored])
    assert work.done.total() == undisturbed.done.total() - kept_results
    assert desk.answer is not None
    assert whole.answer is not None
    assert desk.answer.usage.requests == whole.answer.usage.requests
    assert desk.answer.usage.tool_calls == whole.answer.usage.tool_calls


async def test_parallel_calls_are_stored_one_by_one_as_each_returns() -> None:
    work = Work(["slow", "quick"])
    work.gates["slow"] = asyncio.Event()
    desk = Desk(work)
    running = asyncio.create_task(desk.attempt())

    await until(lambda: len(desk.steps) == 2)
    assert "quick of it" in desk.steps[1].messages
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    del work.gates["slow"]
    heard = await desk.attempt()

    assert (work.begun["quick"], work.begun["slow"], work.asked) == (1, 2, 2)
    assert calls_told(heard) == ["slow-0-0"]
    assert [part.split(":")[1] for part in shape(heard.messages)][1:] == [
        "slow-0-0", "quick-0-1", "slow-0-0", "quick-0-1", "done",
    ]  # fmt: skip


async def test_a_run_waits_for_a_person_once_its_finished_calls_are_stored() -> None:
    work = Work(["a", "asks"], output=[str, DeferredToolRequests])

    def asks(word: str) -> str:
        return word

    work.agent.tool_plain(name="asks", requires_approval=True)(asks)
    desk = Desk(work)
    desk.turns_to_store = 100
    heard = await desk.attempt()

    assert [call.tool_name for call in heard.asked] == ["asks"]
    assert any("a of it" in step.messages for step in desk.steps)


async def test_what_returns_in_the_same_moment_is_one_statement() -> None:
    desk = Desk(Work(["a"] * 8))
    await desk.attempt()

    assert len(desk.steps) == 9
    assert desk.statements <= 4


async def test_a_model_that_names_its_provider_goes_on_too() -> None:
    """Then pydantic-ai looks for the very response in its messages."""
    desk = Desk(Work(["a", "b"]))
    await desk.attempt()
    messages = json.loads(desk.steps[0].messages)
    messages[-1]["provider_name"] = "openai"
    desk.steps = [replace(desk.steps[0], messages=json.dumps(messages)), desk.steps[1]]

    assert (await desk.attempt()).texts[-1] == "done"


class Total(BaseModel):
    """An output that the model gives by calling a tool."""

    total: int


async def test_an_agent_with_an_output_goes_on_and_its_last_answer_is_no_step() -> None:
    work = Work(["a"], ["b"], output=Total)
    work.lose = {"b"}
    desk = Desk(work)
    await desk.lost()

    assert (await desk.attempt()).texts[-1] == '{"total":7}'
    assert work.done == {"a": 1, "b": 1}
    assert len(desk.steps) == 4


@pytest.mark.parametrize("output", [str, Total])
async def test_an_agent_that_calls_no_tools_stores_nothing(output: type) -> None:
    desk = Desk(Work(output=output))
    await desk.attempt()

    assert desk.statements == 0


async def test_an_open_call_is_named_and_a_finished_one_is_not() -> None:
    work = Work(["a", "b"])
    work.lose = {"b"}
    desk = Desk(work)
    await desk.lost()

    kept = kept_of(desk.steps, desk.offer.version)
    finished = sum("a of it" in step.messages for step in desk.steps)
    assert kept.unfinished_calls == ({"b-0-1"} if finished else {"a-0-0", "b-0-1"})
    assert kept.count == len(desk.steps)


async def test_a_cancelled_run_keeps_what_all_of_its_attempts_have_said() -> None:
    work = Work(["slow", "quick"])
    desk = Desk(work)
    await desk.attempt()
    desk.steps = [desk.steps[0], next(step for step in desk.steps[1:] if "quick of" in step.messages)]
    work.gates["slow"] = asyncio.Event()
    running = asyncio.create_task(desk.attempt())
    await until(lambda: work.begun["slow"] == 2)
    desk.token.cancel()
    with pytest.raises(RunCancelled) as cut:
        await running

    assert desk.answer is not None
    messages = desk.answer.whole(cut.value.new_messages())
    assert isinstance(messages[0], ModelRequest)
    assert isinstance(messages[0].parts[0], UserPromptPart)
    assert shape(messages)[1:] == ["tool-call:slow-0-0", "tool-call:quick-0-1", "tool-return:quick-0-1"]


async def test_limits_count_what_earlier_attempts_used() -> None:
    work = Work(["a"], ["b"], ["c"])
    work.lose = {"b"}
    desk = Desk(work, usage_limits=UsageLimits(tool_calls_limit=2))
    await desk.lost()

    with pytest.raises(UsageLimitExceeded):
        await desk.attempt()
    assert work.done == {"a": 1, "b": 1}


@pytest.mark.parametrize("leave_in", ["a", "b", "c"])
async def test_a_run_that_is_to_be_given_back_is_left_after_the_step_in_hand(leave_in: str) -> None:
    work = Work(["a"], ["b"], ["c"])
    work.gates[leave_in] = asyncio.Event()
    desk = Desk(work)
    running = asyncio.create_task(desk.attempt())
    await until(lambda: work.begun[leave_in])
    assert desk.writer is not None
    desk.writer.leaving = True
    work.gates[leave_in].set()

    with pytest.raises(LeftAtStep):
        await running
    assert work.done[leave_in] == 1
    assert work.done.total() == "abc".index(leave_in) + 1

    assert (await desk.attempt()).texts[-1] == "done"
    assert work.done == {"a": 1, "b": 1, "c": 1}
    assert work.asked == 4


async def test_a_run_whose_steps_cannot_be_stored_is_not_left_early() -> None:
    work = Work(["a"], ["b"])
    desk = Desk(work)

    async def refuse(_: FinishedSteps) -> bool:
        assert desk.writer is not None
        desk.writer.leaving = True
        raise RuntimeError("cannot be stored")

    desk.store = refuse  # pyright: ignore[reportAttributeAccessIssue]

    assert (await desk.attempt()).texts[-1] == "done"
    assert desk.writer is not None
    assert not desk.writer.is_whole


CHANGES: dict[str, Any] = {
    "a version": {"version": "2"},
    "an output": {"output": Total},
    "a tool less": {"plan": [["a"]]},
    "another tool": {"plan": [["a"], ["b"], ["c"]]},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_steps_of_another_version_of_the_agent_are_not_gone_on_from(change: str) -> None:
    desk = Desk(Work(["a"], ["b"]))
    await desk.attempt()
    assert kept_of(desk.steps, Desk(Work(["b"], ["a"])).offer.version).count == 4  # The same tools and output.
    changed = CHANGES[change]
    work = Work(*changed.get("plan", [["a"], ["b"]]), output=changed.get("output", str))
    other = Desk(work, version=changed.get("version", ""))

    with pytest.raises(CannotContinue, match="changed"):
        kept_of(desk.steps, other.offer.version)


@pytest.mark.parametrize("written", ["", "[", "{}", '[{"kind": "poem"}]', "[1]"])
def test_steps_that_cannot_be_read_are_not_gone_on_from(written: str) -> None:
    with pytest.raises(CannotContinue, match="cannot be read"):
        kept_of([Step("v", written, {})], "v")


def test_a_run_without_steps_begins_with_its_query() -> None:
    assert kept_of([], "v") is NOTHING_KEPT
    assert NOTHING_KEPT.unfinished_calls == frozenset()


async def test_tools_see_their_own_call_again_under_the_same_id() -> None:
    ids: list[str | None] = []
    work = Work(["a"])

    @work.agent.tool
    def b(ctx: RunContext[object], word: str) -> str:
        ids.append(ctx.tool_call_id)
        if len(ids) == 1:
            raise Lost
        return word

    work.plan = (["a"], ["b"])
    desk = Desk(work)
    await desk.lost()
    heard = await desk.attempt()

    assert isinstance(heard.answered, Answered)
    assert ids == ["b-1-0", "b-1-0"]
    assert calls_told(heard) == ["b-1-0"]


async def test_after_a_wait_only_calls_that_have_not_returned_are_given_their_answers() -> None:
    desk = Desk(Work(["a", "b"], ["c"]))
    await desk.attempt()
    messages = ModelMessagesTypeAdapter.validate_json(desk.steps[0].messages)
    waited = Continuation(messages, DeferredToolResults(approvals={"a-0-0": True, "b-0-1": True}))
    returned = next(step for step in desk.steps[1:] if "a of it" in step.messages)

    nothing, one, everything = (
        kept_of(steps, desk.offer.version, waited) for steps in ([], [returned], desk.steps[1:3])
    )

    assert nothing.results == waited.results
    assert one.results == DeferredToolResults(approvals={"b-0-1": True})
    assert one.unfinished_calls == {"b-0-1"}
    assert isinstance(one.messages[-1], ModelRequest)
    assert (everything.results, everything.unfinished_calls) == (None, frozenset())
    assert kept_of(desk.steps[1:4], desk.offer.version, waited).unfinished_calls == {"c-1-0"}


def prompts(messages: Any) -> list[str]:
    """List what the user said."""
    return [str(part.content) for message in messages for part in message.parts if isinstance(part, UserPromptPart)]


def messages_told(heard: Heard) -> list[int]:
    """Name the messages into the run that readers are told of."""
    return [UUID(event["message"]["id"]).int for event in heard.events if event["event"] == "message_enqueued"]


async def test_a_message_into_a_run_is_given_with_the_next_request_and_told_once() -> None:
    work = Work(["slow"], ["b"])
    work.gates["slow"] = asyncio.Event()
    desk = Desk(work)
    running = asyncio.create_task(desk.attempt())
    await until(lambda: work.begun["slow"])
    desk.send("hurry")
    desk.send("please")
    work.gates["slow"].set()
    heard = await running

    assert [prompts(seen) for seen in work.seen] == [["go"], ["go", "hurry", "please"], ["go", "hurry", "please"]]
    assert shape(work.seen[1])[-3:] == ["tool-return:slow-0-0", "user-prompt:hurry", "user-prompt:please"]
    assert messages_told(heard) == [1, 2]
    assert prompts(heard.messages) == ["go", "hurry", "please"]
    assert (desk.reads, desk.inbox and desk.inbox.heard) == (1, 2)
    assert desk.order.index("told") == 2  # Before the step that holds them is stored.


async def test_without_messages_nothing_is_read_and_no_step_waits() -> None:
    desk = Desk(Work(["a"], ["b"]))
    await desk.attempt()

    assert (desk.reads, "told" in desk.order) == (0, False)


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("stored", range(7))
async def test_wherever_a_run_is_lost_the_model_knows_each_message_once(stored: int, *, checkpoints: bool) -> None:
    plan = PLANS["one after the other"]
    whole = Desk(Work(*plan))
    whole.send("at the beginning")
    whole.work.gates["b"] = asyncio.Event()
    running = asyncio.create_task(whole.attempt())
    await until(lambda: whole.work.begun["b"])
    whole.send("later")
    whole.work.gates["b"].set()
    expected = await running
    assert len(whole.steps) == 6

    work = Work(*plan)
    desk = Desk(work)
    desk.messages = whole.messages
    desk.steps = whole.steps[:stored] if checkpoints else []  # Each prefix of what is stored is what a crash may leave.
    heard = await desk.attempt(checkpoints=checkpoints)

    known = max((step.heard for step in desk.steps[: stored if checkpoints else 0]), default=0)
    assert messages_told(heard) == list(range(known + 1, 3))
    assert sorted(prompts(work.seen[-1])) == sorted(prompts(heard.messages)) == ["at the beginning", "go", "later"]
    assert sorted(shape(heard.messages)) == sorted(shape(expected.messages))
    assert desk.inbox is not None
    assert desk.inbox.heard == 2


async def test_a_message_that_was_given_and_not_stored_is_given_again_and_in_no_answer_twice() -> None:
    work = Work(["a"], ["b"])
    work.lose = {"a"}
    desk = Desk(work)
    desk.send("hurry")
    await desk.lost()
    first = len(work.seen)
    desk.steps.clear()  # It was lost before that step was stored.
    heard = await desk.attempt()

    assert prompts(work.seen[0]) == prompts(work.seen[first]) == ["go", "hurry"]
    assert (messages_told(heard), prompts(heard.messages)) == ([1], ["go", "hurry"])
