"""What runs in process runs here, or is refused at the start: models, approvals, histories and prompts of agents."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    CallDeferred,
    DeferredToolRequests,
    DeferredToolResults,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PendingModelResponse,
    RunContext,
    SystemPromptPart,
    TextOutput,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import (
    AbstractCapability,
    HandleDeferredToolCalls,
    Hooks,
    ModelFallback,
    ProcessHistory,
    ReinjectSystemPrompt,
    ResolveModelId,
    SelectModel,
)
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ApprovalRequiredToolset, ExternalToolset, FunctionToolset

from agent_relay.shared.clock import new_id
from agent_relay.shared.runs.claim import Exchange
from agent_relay.worker.catalog import ServedAgent, UnservableAgents
from agent_relay.worker.execution.history import history_of, transcript_of
from tests.support.in_process import ask, offer_of


def says(text: str) -> FunctionModel:
    """Make a model that says so, and how many system prompts it was given."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for word in text.format(prompts=prompts_of(messages)).split():
            yield f"{word} "

    return FunctionModel(stream_function=stream, model_name=text.split(maxsplit=1)[0])


def prompts_of(messages: Sequence[ModelMessage]) -> list[str]:
    """List the system prompts of a conversation."""
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    return [part.content for request in requests for part in request.parts if isinstance(part, SystemPromptPart)]


def calls(*tools: str) -> FunctionModel:
    """Make a model that calls one tool after the other, and then says so."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        answered = [part.tool_call_id for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        done = int(answered[-1].partition("_")[0]) + 1 if answered else 0
        if done < len(tools):
            yield {0: DeltaToolCall(name=tools[done], json_args="{}", tool_call_id=f"{done}_{new_id()}")}
        else:
            yield "Done."

    return FunctionModel(stream_function=stream, model_name="calls")


def kinds(message: ModelMessage) -> list[str]:
    """List the kinds of parts of a message."""
    return [part.part_kind for part in message.parts]


def open_calls(messages: Sequence[ModelMessage]) -> set[str]:
    """List the tool calls that have no answer."""
    parts = [part for message in messages for part in message.parts]
    called = {part.tool_call_id for part in parts if isinstance(part, ToolCallPart)}
    return called - {part.tool_call_id for part in parts if isinstance(part, ToolReturnPart)}


# Models that the agent chooses


async def test_a_capability_selects_the_model() -> None:
    agent = Agent(says("own"), capabilities=[SelectModel(lambda _: says("selected"))])

    assert (await ask(agent)).texts[-1] == "selected "


async def test_a_capability_selects_another_model_for_each_step() -> None:
    steps = [calls("look"), says("finished")]
    agent = Agent(calls("look"), capabilities=[SelectModel(lambda ctx: steps[min(ctx.run_step, 2) - 1])])
    agent.tool_plain(name="look")(lambda: "seen")

    assert (await ask(agent)).texts[-1] == "finished "


async def test_the_names_of_models_are_looked_up_by_the_agent_for_the_run_it_is_in() -> None:
    def resolve(ctx: Any, name: str) -> FunctionModel | None:
        return says(f"{ctx.deps}/{name}") if name.startswith("ours:") else None

    looks_up: list[Any] = [ResolveModelId(resolve)]
    agent = Agent("ours:small", deps_type=str, defer_model_check=True, capabilities=looks_up)

    assert (await ask(ServedAgent(agent=agent, dependencies=str), deps="acme")).texts[-1] == "acme/ours:small "


async def test_the_name_in_model_is_looked_up_by_the_agent_too() -> None:
    agent = Agent(capabilities=[ResolveModelId(lambda _, name: says(name))])

    assert (await ask(agent, model="ours:big")).texts[-1] == "ours:big "


async def test_a_model_that_an_agent_selects_counts_before_model() -> None:
    agent = Agent(capabilities=[SelectModel(lambda _: says("selected"))])

    assert (await ask(agent, model="test")).texts[-1] == "selected "


@pytest.mark.parametrize("own", [None, says("own"), "test"])
async def test_a_capability_that_is_made_for_a_run_selects_the_model(own: Any) -> None:
    def choose(_ctx: RunContext[None]) -> AbstractCapability[None]:
        return SelectModel(lambda _: says("chosen"))

    choosers: list[Any] = [choose]
    agent = Agent(own, capabilities=choosers)

    assert (await ask(agent, model="test")).texts[-1] == "chosen "


async def test_a_capability_that_is_made_for_a_run_may_leave_the_model_alone() -> None:
    agent = Agent(capabilities=[lambda _ctx: None])

    assert (await ask(agent, model="test")).texts[-1] == "success (no tool calls)"


async def test_a_capability_falls_back_to_another_model() -> None:
    asked: list[int] = []

    async def refuses(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        asked.append(len(messages))
        raise ModelHTTPError(500, "first")
        yield ""

    agent = Agent(FunctionModel(stream_function=refuses), capabilities=[ModelFallback(says("second"))])

    assert (await ask(agent, tries=4)).texts[-1] == "second "
    assert asked == [1]


async def test_a_wrapped_agent_is_served_as_the_agent_it_wraps() -> None:
    agent = WrapperAgent(Agent(says("own"), capabilities=[SelectModel(lambda _: says("selected"))]))

    assert (await ask(agent)).texts[-1] == "selected "


async def test_an_agent_that_is_overridden_as_it_answers_keeps_to_that() -> None:
    agent = Agent(says("own"))
    with agent.override(model=says("overridden")):
        assert (await ask(agent)).texts[-1] == "overridden "


# Settings


async def test_our_settings_hold_where_nobody_has_set_them() -> None:
    seen: list[dict[str, Any]] = []

    async def stream(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        seen.append(dict(info.model_settings or {}))
        yield "hello"

    def model(**settings: Any) -> FunctionModel:
        return FunctionModel(stream_function=stream, settings=settings or None)  # pyright: ignore[reportArgumentType]

    agents: list[Agent[None, str]] = [
        Agent(model()),
        Agent(model(), model_settings={"temperature": 0.5}),
        Agent(model(), model_settings=lambda _: {"temperature": 0.5, "timeout": 7}),
        Agent(model(timeout=8, temperature=0.25)),
        Agent(model(timeout=8), model_settings={"max_retries": 3}),
        Agent(FallbackModel(model(timeout=9), model())),
    ]
    for agent in agents:
        await ask(agent, timeout_seconds=5)

    assert seen == [
        {"timeout": 5, "max_retries": 0},
        {"timeout": 5, "max_retries": 0, "temperature": 0.5},
        {"timeout": 7, "max_retries": 0, "temperature": 0.5},
        {"timeout": 8, "max_retries": 0, "temperature": 0.25},
        {"timeout": 8, "max_retries": 3},
        {"timeout": 9, "max_retries": 0},
    ]


# Approvals and results from outside


def pays(**options: Any) -> Agent[None, Any]:
    """Make an agent whose tool is to be approved."""
    agent: Agent[None, Any] = Agent(calls("pay"), **options)
    agent.tool_plain(name="pay", requires_approval=True)(lambda: "paid")
    return agent


def approve(_ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
    """Approve everything."""
    return requests.build_results(approve_all=True)


EXTERNAL = ExternalToolset([ToolDefinition(name="elsewhere", parameters_json_schema={"type": "object"})])


def lookup() -> str:
    """Look something up."""
    return "found"


ASKING: dict[str, tuple[Agent[None, Any], str]] = {
    "an approval": (pays(), "approval"),
    "an approval that the type names": (pays(output_type=[str, DeferredToolRequests]), "approval"),
    "an approval of an agent with a form": (pays(output_type=bool), "approval"),
    "hooks without a handler": (pays(capabilities=[Hooks()]), "approval"),
    "wrapped": (WrapperAgent(pays()), "approval"),  # pyright: ignore[reportAssignmentType]
    "approvals of a toolset": (
        Agent(calls("lookup"), toolsets=[ApprovalRequiredToolset(FunctionToolset([lookup]))]),
        "approval",
    ),
    "approvals of a toolset's tools": (
        Agent(calls("lookup"), toolsets=[FunctionToolset([lookup], requires_approval=True)]),
        "approval",
    ),
    "external": (Agent(calls("elsewhere"), toolsets=[EXTERNAL]), "external"),
    "external, prefixed": (Agent(calls("x_elsewhere"), toolsets=[EXTERNAL.prefixed("x")]), "external"),
}


@pytest.mark.parametrize("name", ASKING)
async def test_a_tool_may_ask_whatever_the_agent_says_of_its_output(name: str) -> None:
    agent, kind = ASKING[name]
    heard = await ask(agent)

    assert [call.kind for call in heard.asked] == [kind]
    assert open_calls(heard.messages) == {call.request_id for call in heard.asked}


def test_what_is_asked_is_no_part_of_the_output_that_callers_see() -> None:
    outputs: list[Any] = [[str, DeferredToolRequests], str | DeferredToolRequests, [DeferredToolRequests, str]]
    for output in outputs:
        offer = offer_of(Agent(TestModel(), output_type=output))
        assert (offer.output_schema, offer.text_output) == ({"type": "string"}, True)
    offer = offer_of(Agent(TestModel(), output_type=[int, bool, DeferredToolRequests]))
    assert offer.output_schema == {"anyOf": [{"type": "integer"}, {"type": "boolean"}]}


def test_an_agent_that_ends_before_its_provider_is_refused_at_the_start() -> None:
    with pytest.raises(UnservableAgents, match="PendingModelResponse"):
        offer_of(Agent(TestModel(), output_type=[str, PendingModelResponse]))


async def test_approvals_that_are_given_at_once_are_no_obstacle() -> None:
    for options in ({}, {"output_type": [str, DeferredToolRequests]}):
        agent = pays(capabilities=[HandleDeferredToolCalls(approve)], **options)
        heard = await ask(agent)

        assert [event.get("content") for event in heard.events] == [None, "paid"]
        assert heard.texts[-1].strip('"') == "Done."
        assert open_calls(heard.messages) == set()


async def test_hooks_may_approve() -> None:
    async def decide(ctx: RunContext[Any], *, requests: DeferredToolRequests) -> DeferredToolResults:
        return approve(ctx, requests)

    assert (await ask(pays(capabilities=[Hooks(deferred_tool_calls=decide)]))).texts[-1] == "Done."


async def test_an_approval_that_is_denied_at_once_is_an_answer() -> None:
    def deny(_ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return DeferredToolResults(approvals=dict.fromkeys((call.tool_call_id for call in requests.approvals), False))

    heard = await ask(pays(capabilities=[HandleDeferredToolCalls(deny)]))

    assert heard.texts[-1] == "Done."
    assert open_calls(heard.messages) == set()


@pytest.mark.parametrize("error", [ApprovalRequired, CallDeferred])
@pytest.mark.parametrize("declines", [False, True])
async def test_what_a_tool_asks_in_the_run_is_said_with_its_kind(error: Any, declines: bool) -> None:
    capabilities = [HandleDeferredToolCalls(lambda _ctx, _requests: None)] if declines else []
    output: Any = [str, DeferredToolRequests] if declines else str
    agent: Agent[None, Any] = Agent(calls("pay"), output_type=output, capabilities=capabilities)

    @agent.tool_plain
    def pay() -> str:
        raise error

    heard = await ask(agent)

    assert [(call.tool_name, call.kind) for call in heard.asked] == [
        ("pay", "approval" if error is ApprovalRequired else "external")
    ]


async def test_a_thread_with_open_calls_goes_on() -> None:
    """As earlier versions have left some."""
    asked = ModelRequest(parts=[UserPromptPart("Pay.")])
    called = ModelResponse(parts=[ToolCallPart("pay", {}, tool_call_id="1")])
    history = await history_of(
        [Exchange(query="Pay.", transcript=await transcript_of([asked, called], 1 << 20), answer=None)]
    )

    assert open_calls(history) == set()


# Histories and prompts


async def test_a_history_that_is_cut_loses_nothing_for_good() -> None:
    def last_two(messages: list[ModelMessage]) -> list[ModelMessage]:
        return messages[-2:]

    agent = Agent(calls("look", "look"), capabilities=[ProcessHistory(last_two)])
    agent.tool_plain(name="look")(lambda: "seen")
    plain = Agent(calls("look", "look"))
    plain.tool_plain(name="look")(lambda: "seen")

    cut, uncut = await ask(agent), await ask(plain)

    assert [kinds(message) for message in cut.messages] == [kinds(message) for message in uncut.messages]
    assert open_calls(cut.messages) == set()
    again = await ask(agent, "again", history=list(cut.messages))
    assert [kinds(message) for message in again.messages] == [kinds(message) for message in uncut.messages]


async def test_a_history_that_is_changed_is_stored_as_changed() -> None:
    def hide(messages: list[ModelMessage]) -> list[ModelMessage]:
        for message in messages:
            for part in message.parts:
                if isinstance(part, UserPromptPart):
                    part.content = "[hidden]"
        return messages

    heard = await ask(Agent(says("Fine."), capabilities=[ProcessHistory(hide)]), "my number is 4")

    assert "my number" not in str(await transcript_of(heard.messages, 1 << 20))


@pytest.mark.parametrize("own", [[], [ReinjectSystemPrompt()], [ReinjectSystemPrompt(replace_existing=True)]])
async def test_a_thread_whose_first_run_was_cut_has_its_system_prompt(own: Any) -> None:
    agent = Agent(says("{prompts}"), system_prompt="Be brief.", capabilities=own)
    agent.system_prompt(lambda: "Today is Monday.")
    cut = await history_of([Exchange(query="One?", transcript=None, answer="On")])

    heard = await ask(agent, "Two?", history=cut)
    both = [*cut, *heard.messages]
    later = await ask(agent, "Three?", history=both)

    expected = "['Be brief.', 'Today is Monday.'] "
    assert heard.texts[-1] == expected
    assert later.texts[-1] == expected


async def test_a_thread_that_has_a_system_prompt_is_given_no_second() -> None:
    agent = Agent(says("{prompts}"), system_prompt="Be brief.")
    first = await ask(agent, "One?")

    assert (await ask(agent, "Two?", history=list(first.messages))).texts[-1] == "['Be brief.'] "


# Outputs


async def test_text_beside_another_output_is_told_as_json() -> None:
    class Sum(BaseModel):
        total: int

    agent = Agent(says("no sum"), output_type=[str, Sum])

    assert (await ask(agent)).texts[-1] == '"no sum "'


async def test_text_that_a_function_makes_an_output_of_is_told_as_that() -> None:
    def words(text: str) -> list[str]:
        return text.split()

    heard = await ask(Agent(says("one two"), output_type=TextOutput(words)))

    assert set(heard.texts) == {'["one","two"]'}


# Validators and functions that expect a whole output


class Answer(BaseModel):
    """An output of which every part is one."""

    title: str = ""
    words: list[str] = []


def writes(text: str = '{"title": "x", "words": ["a", "b", "c"]}') -> FunctionModel:
    """Make a model that writes an output a few characters at a time, as a call or as text."""

    async def stream(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        for start in range(0, len(text), 4):
            part = text[start : start + 4]
            if info.output_tools:
                name = info.output_tools[0].name if start == 0 else None
                yield {0: DeltaToolCall(name=name, json_args=part, tool_call_id="1")}
            else:
                yield part

    return FunctionModel(stream_function=stream, model_name="writes")


def check(answer: Answer) -> Answer:
    """Look at what only a whole output has."""
    assert len(answer.words) == 3
    return answer


def parse(text: str) -> dict[str, Any]:
    """Read what is no JSON before it is whole."""
    return json.loads(text)


def pick(title: str, words: list[str]) -> str:
    """Make an output of arguments that have to be there."""
    return f"{title} {words[2]}"


async def test_a_validator_that_fails_on_parts_of_an_output_fails_no_run() -> None:
    agent = Agent(writes(), output_type=Answer)
    agent.output_validator(check)

    assert set((await ask(agent)).texts) == {'{"title":"x","words":["a","b","c"]}'}


@pytest.mark.parametrize("output", [pick, TextOutput(parse)])
async def test_a_function_that_fails_on_parts_of_an_output_fails_no_run(output: Any) -> None:
    heard = await ask(Agent(writes(), output_type=output))

    assert json.loads(heard.texts[-1]) in ("x c", {"title": "x", "words": ["a", "b", "c"]})


async def test_a_validator_that_fails_on_the_whole_output_fails_the_run() -> None:
    agent = Agent(writes('{"title": "x", "words": []}'), output_type=Answer)
    agent.output_validator(check)

    with pytest.raises(AssertionError):
        await ask(agent)
