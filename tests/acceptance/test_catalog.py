"""What `AGENTS` and `MODEL` may say, and the sentence that answers what they may not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent_relay.shared.settings import Settings
from agent_relay.worker.agents.bank_support import SupportDependencies, dependencies
from agent_relay.worker.catalog import (
    RunOptions,
    RunScope,
    ServedAgent,
    ToolEvents,
    UnservableAgents,
    WrongOptions,
    load,
)
from tests.support.in_process import offer_of

AGENTS_OF_A_STRANGER = """
import threading
from dataclasses import dataclass
from pydantic_ai import Agent, UsageLimits
from pydantic_ai.models.test import TestModel
from agent_relay.worker.catalog import RunScope, ServedAgent, ToolEvents

@dataclass
class Needs:
    tenant: str

bare = Agent(TestModel(), description="A bare one")
without_model = Agent()
also_without_model = Agent()
named_model = Agent("test", defer_model_check=True)
unknown_model = Agent("nonsense", defer_model_check=True)
needy = Agent(TestModel(), deps_type=Needs)
needs_nothing = Agent(TestModel(), deps_type=type(None))
not_an_agent = 42

async def make(scope: RunScope) -> Needs:
    return Needs(scope.tenant)

equipped = ServedAgent(agent=needy, dependencies=make, tool_events=ToolEvents.NAMES, description="Equipped",
                       usage_limits=UsageLimits(request_limit=3), examples=["One?", "Two?"])
one_text = ServedAgent(agent=bare, examples="What?")
no_text = ServedAgent(agent=bare, examples=["What?", 7])
blank = ServedAgent(agent=bare, examples=(" ",))
long = ServedAgent(agent=bare, examples=["x" * 501])
many = ServedAgent(agent=bare, examples=["x"] * 21)
equipped_at_once = ServedAgent(agent=needy, dependencies=lambda scope: Needs(scope.tenant))
equipped_in_a_thread = ServedAgent(agent=needy, dependencies=lambda scope: Needs(threading.current_thread().name))
"""


@pytest.fixture(autouse=True)
def strangers_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of agents beside the service, as an operator would lay them."""
    (tmp_path / "stranger.py").write_text(AGENTS_OF_A_STRANGER)
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('of the\\nlicense')\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # pyright: ignore[reportUnknownMemberType]
    yield
    for name in ("stranger", "broken"):
        sys.modules.pop(name, None)


def settings(agents: str | None = None, **others: object) -> Settings:
    given = {} if agents is None else {"agents": agents}
    urls = {"database_url": "postgresql://nowhere/x", "redis_url": "redis://nowhere"}
    return Settings.model_validate({"model": None, **urls, **given, **others})


def refusal(agents: str, **others: object) -> str:
    with pytest.raises(UnservableAgents) as refused:
        load(settings(agents, **others))
    return str(refused.value)


def scope(database: AsyncEngine | None = None, **thread_metadata: object) -> RunScope:
    return RunScope(
        tenant="acme",
        user_id=UUID(int=1),
        thread_metadata=thread_metadata,
        run_metadata={},
        run_id=UUID(int=2),
        attempt=1,
        database=database or create_async_engine("postgresql+psycopg://nowhere/x"),
    )


def test_the_sample_agent_is_served_on_its_script_unless_told_otherwise() -> None:
    offer = load(settings())["bank_support"]

    assert offer.agent_type == "bank_support"
    assert isinstance(offer.model, FunctionModel)
    assert offer.model.model_name == "scripted"
    assert offer.description
    assert next(iter(offer.output_schema["properties"])) == "support_advice"
    assert not offer.text_output
    assert offer.tool_events is ToolEvents.FULL


def test_model_replaces_the_script() -> None:
    assert isinstance(load(settings(model="test"))["bank_support"].model, TestModel)


def test_an_agents_own_model_goes_before_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    offers = load(settings("bare=stranger:bare, without=stranger:without_model", model="openai-chat:gpt-5"))

    assert isinstance(offers["bare"].model, TestModel)
    assert isinstance(model := offers["without"].model, Model)
    assert model.model_name == "gpt-5"


def test_agents_share_the_one_model_that_model_names() -> None:
    offers = load(settings("a=stranger:without_model, b=stranger:also_without_model", model="test"))

    assert offers["a"].model is offers["b"].model


def test_a_bare_agent_is_served() -> None:
    offer = load(settings("greeter=stranger:bare"))["greeter"]

    assert isinstance(offer.agent, Agent)
    assert offer.description == "A bare one"
    assert offer.text_output
    assert offer.output_schema == {"type": "string"}
    assert offer.dependencies is None
    assert offer.tool_events is ToolEvents.FULL
    assert asyncio.run(offer.equip(scope())) is None


def test_an_agent_may_name_its_model_by_a_string() -> None:
    assert isinstance(load(settings("named=stranger:named_model"))["named"].model, TestModel)


def test_an_agent_whose_dependencies_are_of_type_none_needs_no_factory() -> None:
    assert "free" in load(settings("free=stranger:needs_nothing"))


def test_a_plain_factory_may_wait_without_keeping_the_loop() -> None:
    offer = load(settings("it=stranger:equipped_in_a_thread"))["it"]

    assert asyncio.run(offer.equip(scope())).tenant != threading.current_thread().name


@pytest.mark.parametrize("attribute", ["equipped", "equipped_at_once"])
def test_dependencies_come_from_the_factory_whether_it_is_async_or_not(attribute: str) -> None:
    offer = load(settings(f"needy=stranger:{attribute}"))["needy"]

    assert asyncio.run(offer.equip(scope())).tenant == "acme"


def test_what_a_served_agent_says_of_itself_is_kept() -> None:
    offer = load(settings("needy=stranger:equipped"))["needy"]

    assert offer.description == "Equipped"
    assert offer.examples == ("One?", "Two?")
    assert offer.tool_events is ToolEvents.NAMES
    assert offer.usage_limits is not None
    assert offer.usage_limits.request_limit == 3


def test_the_tests_own_agents_can_be_served() -> None:
    names = ["echo", "slow", "unicode", "nul", "breaks", "form", "unicode_form", "never_valid", "tool_fails", "limited"]

    offers = load(settings(",".join(f"{name}=tests.support.agents:{name}" for name in names)))

    assert [name for name in names if offers[name].text_output] == [
        "echo",
        "slow",
        "unicode",
        "nul",
        "breaks",
        "tool_fails",
        "limited",
    ]


@pytest.mark.parametrize(
    ("agents", "sentence"),
    [
        (
            "x=nowhere_at_all:agent",
            "AGENTS: x (nowhere_at_all:agent) cannot be imported: ModuleNotFoundError: No module ",
        ),
        (
            "x=stranger:absent",
            "AGENTS: x (stranger:absent) cannot be imported: AttributeError: module 'stranger' has no ",
        ),
        ("x=stranger:one_text", "AGENTS: x (stranger:one_text) has examples that are no list of texts."),
        ("x=stranger:no_text", "has an example that is no text of 1 to 500 characters: 7."),
        ("x=stranger:blank", "has an example that is no text of 1 to 500 characters: ' '."),
        ("x=stranger:long", "has an example that is no text of 1 to 500 characters: 'xxx"),
        ("x=stranger:many", "has 21 examples; at most 20 are shown."),
        ("x=stranger:not_an_agent", "is neither a pydantic_ai.Agent nor a ServedAgent but of type int."),
        ("x=stranger:needy", "AGENTS: x (stranger:needy) takes dependencies, so a ServedAgent must bring the factory"),
        (
            "x=stranger:without_model",
            "AGENTS: x (stranger:without_model) has no model: give the agent one or set MODEL.",
        ),
        (
            "x=stranger:unknown_model",
            "AGENTS: x (stranger:unknown_model) names a model that cannot be made: UserError: ",
        ),
    ],
)
def test_an_agent_that_cannot_be_served_is_named_in_one_sentence(agents: str, sentence: str) -> None:
    said = refusal(agents)

    assert sentence in said
    assert said.endswith(".")
    assert "\n" not in said


def test_an_agent_whose_module_breaks_is_told_where() -> None:
    said = refusal("x=broken:agent")

    assert "ValueError: of the license" in said
    assert "broken.py, line 2)" in said


@pytest.mark.parametrize("model", ["gpt-5", "nobody:gpt-5", "openai-chat:gpt-5"])
def test_a_model_that_cannot_be_made_is_named_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    said = refusal("a=stranger:without_model, b=stranger:also_without_model", model=model)

    assert said.startswith(f"MODEL: '{model}' cannot be made: ")
    assert "\n" not in said


def test_every_problem_is_told_at_once() -> None:
    said = refusal("a=nowhere_at_all:agent, b=stranger:needy, c=stranger:bare")

    assert len(said.splitlines()) == 2
    assert "AGENTS: c" not in said


@pytest.mark.parametrize("customer_id", ["123", 123.0, True, None, -1, 0, 1 << 63, [123]])
def test_a_customer_who_is_named_wrongly_is_a_stranger_and_never_the_seeded_one(customer_id: object) -> None:
    made: SupportDependencies = asyncio.run(dependencies(scope(customer_id=customer_id)))

    assert made.customer is None


def test_what_only_some_models_need_is_not_imported_for_others() -> None:
    script = (
        "import sys, agent_relay.worker.process, agent_relay.worker.agents.bank_support; print('openai' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout

    assert said == "False\n"


@pytest.mark.parametrize("model", ["openai-chat:any", "openai-responses:any"])
def test_what_a_configured_model_needs_is_imported_before_one_is_made(model: str, tmp_path: Path) -> None:
    """Processes are forked in between, and each would have to import it for itself."""
    (tmp_path / "own.py").write_text("from pydantic_ai import Agent\nagent = Agent()\n")
    script = f"""
import sys
import threading
from agent_relay.shared.settings import Settings
from worker import process
from agent_relay.worker.catalog import import_model, load

def client():
    from agent_relay.worker.models.openai_client import windowed_client
    return windowed_client(0.03)

sys.path.insert(0, {str(tmp_path)!r})
nowhere = {{"database_url": "postgresql://nowhere", "redis_url": "redis://nowhere"}}
settings = Settings(**nowhere, agents={{"own": "own:agent"}}, model={model!r})
import_model(settings)
before = set(sys.modules)
load(settings, client)
print(*sys.modules.keys() - before)
"""

    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OPENAI_API_KEY": "none"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert said == "own\n"


SPEC = {
    "model": "test",
    "name": "poet",
    "description": "Writes a poem.",
    "instructions": "Write a poem.",
    "model_settings": {"temperature": 0.5},
    "capabilities": ["ReinjectSystemPrompt"],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("poet.json", json.dumps(SPEC)),
        ("poet.yaml", yaml.safe_dump(SPEC)),
        ("poet.yml", "model: test\ndescription: Writes a poem.\n"),
    ],
)
async def test_an_agent_spec_is_served_as_an_agent(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)

    offer = load(settings(f"poet={tmp_path / name}"))["poet"]

    assert isinstance(offer.model, TestModel)
    assert (offer.description, offer.text_output) == ("Writes a poem.", True)
    assert (await offer.agent.run("?")).output == "success (no tool calls)"


def test_a_spec_without_a_model_has_that_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text("{}")

    assert isinstance(load(settings(f"plain={tmp_path / 'plain.json'}", model="test"))["plain"].model, TestModel)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "cannot be imported: UserError: Agent spec must parse to an object, got list"),
        ('{"model": ', "cannot be imported: ValueError"),
        ('{"model": 7}', "cannot be imported: ValidationError"),
        ('{"model": "nonsense"}', "nonsense"),
        ('{"capabilities": ["Levitate"]}', "Levitate"),
        ("{}", "has no model: give the agent one or set MODEL"),
        ("\xff", "cannot be imported: "),
    ],
)
def test_a_spec_that_is_none_is_refused_with_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_bytes(text.encode("latin-1"))

    refused = refusal(f"poet={tmp_path / 'spec.json'}")

    assert refused.startswith("AGENTS: poet (")
    assert sentence in refused
    assert "\n" not in refused


def test_a_spec_that_is_not_there_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert "cannot be imported: FileNotFoundError" in refusal(f"poet={tmp_path / 'none.yaml'}")


class Choices(BaseModel):
    """What may be chosen."""

    words: int = 5


class Demanding(BaseModel):
    """What must be chosen."""

    words: int
    tone: str = "kind"
    place: str


class Undescribable(BaseModel):
    """What no JSON Schema describes."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    lock: Any = Field(default_factory=threading.Lock)
    call: Callable[[], None] | None = None


def _apply(_options: Choices, _scope: RunScope) -> RunOptions:
    return RunOptions()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"options": Choices}, "has options, so a ServedAgent must bring apply, which says what they mean."),
        ({"options": dict, "apply": _apply}, "has options that are no class of pydantic's BaseModel."),
        ({"apply": _apply}, "has options that are no class of pydantic's BaseModel."),
        ({"options": Choices(), "apply": _apply}, "has options that are no class of pydantic's BaseModel."),
        (
            {"options": Demanding, "apply": _apply},
            "has options without a default (words, place): callers may leave each out.",
        ),
        (
            {"options": Undescribable, "apply": _apply},
            "has options that cannot be offered: PydanticInvalidForJsonSchema",
        ),
    ],
)
def test_options_that_cannot_be_offered_are_refused_with_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnservableAgents) as refused:
        offer_of(ServedAgent(agent=Agent("test"), **fields))

    assert sentence in str(refused.value)


async def test_options_that_are_not_valid_any_more_end_the_run_with_a_sentence() -> None:
    offer = offer_of(ServedAgent(agent=Agent("test"), options=Choices, apply=_apply))

    for chosen in ({"words": "many"}, {"words": [1]}):
        with pytest.raises(WrongOptions, match=r"^The options are not valid: words: .*integer"):
            await offer.options_of(chosen, scope())
    assert await offer.options_of({}, scope()) == RunOptions()
    with pytest.raises(WrongOptions, match="The agent takes no options any more"):
        await offer_of(Agent("test")).options_of({"words": 1}, scope())


async def test_what_apply_returns_must_be_run_options() -> None:
    offer = offer_of(ServedAgent(agent=Agent("test"), options=Choices, apply=lambda _options, _scope: None))  # pyright: ignore[reportArgumentType]

    with pytest.raises(TypeError, match="apply returned NoneType, not RunOptions"):
        await offer.options_of({}, scope())
