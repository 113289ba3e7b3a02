"""What the worker serves: the agents that `AGENTS` names, each with its model, its dependencies and what is told of it.

It knows how to find agents and what they need, not how they are run.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic_ai import Agent, UsageLimits
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability, DynamicCapability, ModelFallback
from pydantic_ai.models import Model, infer_model, parse_model_id
from pydantic_ai.providers import infer_provider_class
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.settings import Settings, WrongSettings
from worker import process_guard
from worker.output_text import OutputText
from worker.waiting import CannotWait, capabilities_of, check_waiting

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

SLOW_IMPORT_SECONDS = 5.0
"""After so long the import of an agent's module is said to be slow, and then less and less often."""
LONGEST_PAUSE_SECONDS = 60.0
_NO_DEPENDENCIES = (object, NoneType)
"""What pydantic-ai calls the dependencies of an agent that takes none."""
_OPENAI = frozenset({"openai", "openai-chat", "openai-responses"})
"""Providers of models that OpenAI's API serves, or what `OPENAI_BASE_URL` names in its place."""
_NEEDED_BY_ALL = "genai_prices.data"
_NEEDED_BY_OPENAI = (
    "openai.resources.chat.chat",
    "openai.resources.responses.responses",
    "worker.windowed_client",
)
"""What is imported only as a model is made."""


@dataclass(frozen=True, kw_only=True)
class RunScope:
    """The run that dependencies are made for.

    A tool can run again when an attempt is lost: `run_id` and `attempt` are there to make its idempotency keys.
    """

    tenant: str
    user_id: UUID
    thread_metadata: dict[str, Any]
    """Empty for a run without a thread."""
    run_metadata: dict[str, Any]
    run_id: UUID
    attempt: int
    database: AsyncEngine
    """The service's own database, for agents that keep a table beside its tables."""


Dependencies = Callable[[RunScope], Any | Awaitable[Any]]
"""Makes what an agent's tools and instructions find in `RunContext.deps`."""

Script = Callable[[float], Model]
"""Makes a scripted model that speaks so many tokens a second."""


class ToolEvents(StrEnum):
    """What a stream tells of an agent's tool calls."""

    FULL = "full"
    """Names, arguments and results."""
    NAMES = "names"
    """Names only."""
    OFF = "off"
    """Nothing."""


@dataclass(frozen=True, kw_only=True)
class ServedAgent:
    """An agent and what it needs to be served; a bare agent is served as if every other field were left out."""

    agent: AbstractAgent[Any, Any]
    dependencies: Dependencies | None = None
    script: Script | None = None
    """Makes the model that answers where neither the agent nor `MODEL` brings one."""
    tool_events: ToolEvents = ToolEvents.FULL
    description: str | None = None
    """Told to callers; without it, the agent's own description is."""
    usage_limits: UsageLimits | None = None
    """What a run may use, all its attempts together; without it, what the settings say."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An agent that is ready to answer, under the name that callers know it by."""

    agent_type: str
    agent: AbstractAgent[Any, Any]
    model: Model | str | None
    """What it is asked with; a name is looked up by the agent itself."""
    chooses_model: bool
    """Whether the agent's own model or capabilities count before `model`."""
    falls_back: bool
    """Whether a capability of the agent's asks another model as soon as one fails."""
    is_plain: bool
    """Whether the agent has no capabilities that could change a request or the model that it goes to."""
    description: str
    output_schema: dict[str, Any]
    """JSON Schema of the output."""
    text_output: bool
    """Whether the output is text instead of JSON."""
    output_text: OutputText
    """Writes outputs that are JSON."""
    tool_events: ToolEvents
    dependencies: Dependencies | None
    usage_limits: UsageLimits | None

    async def equip(self, scope: RunScope) -> Any:
        """Make the dependencies of a run; None for an agent that takes none."""
        if self.dependencies is None:
            return None
        made = self.dependencies(scope)
        return await made if inspect.isawaitable(made) else made


class UnservableAgents(WrongSettings):
    """Some of `AGENTS` cannot be served; the message is one sentence for each."""


def load(settings: Settings, openai_http: Callable[[], httpx2.AsyncClient] | None = None) -> dict[str, Offer]:
    """Import the agents and give each its model, or stop with a sentence for each that cannot be served.

    `openai_http` makes the client for a `MODEL` of OpenAI's; without it, pydantic-ai does. OpenAI's SDK, which takes as
    long to import as everything else, is left alone where no model speaks with it.
    """
    offers: dict[str, Offer] = {}
    problems: list[str] = []
    configured_model = cache(lambda: _configured_model(settings, openai_http))
    for agent_type, path in settings.agents.items():
        try:
            with _noting_a_slow_import(agent_type, path):
                served = _import(path)
            _check_dependencies(served)
            check_waiting(served.agent)
            offers[agent_type] = _offer(agent_type, served, _model(served, settings, configured_model), settings)
        except (_Unservable, CannotWait) as problem:
            problems.append(f"AGENTS: {agent_type} ({path}) {problem}.")
        except _WrongModel as problem:
            problems.append(f"MODEL: {problem}.")
    if problems:
        raise UnservableAgents(list(dict.fromkeys(problems)))
    return offers


class _Unservable(Exception):
    """The rest of a sentence that begins with the agent's name."""


class _WrongModel(Exception):
    """What is wrong with `MODEL`."""


def _import(path: str) -> ServedAgent:
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except BaseException as error:  # An agent's module may raise anything, also SystemExit.
        raise _Unservable(f"cannot be imported: {_said(error)}{_place(error)}") from error
    if isinstance(found, ServedAgent):
        return found
    if isinstance(found, AbstractAgent):
        return ServedAgent(agent=found)  # pyright: ignore[reportUnknownArgumentType]
    raise _Unservable(f"is neither a pydantic_ai.Agent nor a ServedAgent but of type {type(found).__name__}")


@contextmanager
def _noting_a_slow_import(agent_type: str, path: str) -> Generator[None]:
    """Log, from a thread, that an import takes long, where it is, and what can be done about it."""
    importing, over = threading.get_ident(), threading.Event()

    def note() -> None:
        pause = SLOW_IMPORT_SECONDS
        while not over.wait(pause):
            log.warning(
                "catalog.slow_import agent=%s path=%s at=%s: the worker takes no runs until this is imported; "
                "move what takes long out of the module",
                agent_type,
                path,
                process_guard.where(*process_guard.frames_of(importing)),
            )
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    threading.Thread(target=note, name="slow import", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _check_dependencies(served: ServedAgent) -> None:
    if served.agent.deps_type not in _NO_DEPENDENCIES and served.dependencies is None:
        raise _Unservable("takes dependencies, so a ServedAgent must bring the factory that makes them")


def _model(
    served: ServedAgent, settings: Settings, configured_model: Callable[[], Model]
) -> tuple[Model | str | None, bool]:
    """Return the model that the agent is asked with, and whether its own choice counts before it.

    An agent that chooses by capabilities (`SelectModel`, `ResolveModelId`, a function that returns such) is left to do
    so: whatever `agent.iter` is given as a model would be used instead.
    """
    own, capability = served.agent.model, served.agent.root_capability
    looks_up = capability.has_resolve_model_id
    chooses = capability.get_model() is not None
    if own is not None and (looks_up or chooses or _is_dynamic(capability)):
        return None, True
    if own is not None:
        try:
            return infer_model(own), False
        except Exception as error:  # As many kinds of errors as there are providers.
            raise _Unservable(f"names a model that cannot be made: {_said(error)}") from error
    if chooses:
        return None, True
    if settings.model is not None:
        return settings.model if looks_up else configured_model(), _is_dynamic(capability) or looks_up
    if served.script is not None:
        return served.script(settings.scripted_tokens_per_second), _is_dynamic(capability)
    raise _Unservable("has no model: give the agent one or set MODEL")


def _is_dynamic(capability: AbstractCapability[Any]) -> bool:
    """Tell whether a capability is made anew for each run, and so may choose a model then."""
    return any(isinstance(leaf, DynamicCapability) for leaf in capabilities_of(capability))


@cache
def _of_every_agent() -> frozenset[type]:
    """Name the capabilities that pydantic-ai gives to every agent."""
    return frozenset(type(leaf) for leaf in capabilities_of(Agent().root_capability))


def import_model(settings: Settings) -> None:
    """Import what a configured model needs, so that processes that are forked need not; none is made."""
    importlib.import_module(_NEEDED_BY_ALL)
    name = parse_model_id(settings.model or "")[0] or ""
    with suppress(Exception):  # Who makes it says what is wrong.
        importlib.import_module(infer_provider_class(name).__module__.replace(".providers.", ".models."))
        for module in _NEEDED_BY_OPENAI if name in _OPENAI else ():
            importlib.import_module(module)


def _configured_model(settings: Settings, openai_http: Callable[[], httpx2.AsyncClient] | None) -> Model:
    name = settings.model or ""
    try:
        if openai_http is not None and parse_model_id(name)[0] in _OPENAI:
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

            return infer_model(name, lambda _: OpenAIProvider(http_client=openai_http()))
        return infer_model(name)
    except Exception as error:  # As many kinds of errors as there are providers.
        raise _WrongModel(f"{name!r} cannot be made: {_said(error)}") from error


def _usage_limits(settings: Settings) -> UsageLimits:
    """Limit agents that bring no limits of their own."""
    return UsageLimits(
        request_limit=settings.max_requests or None,
        total_tokens_limit=settings.max_tokens or None,
        tool_calls_limit=settings.max_tool_calls or None,
    )


def _offer(agent_type: str, served: ServedAgent, model: tuple[Model | str | None, bool], settings: Settings) -> Offer:
    agent = served.agent
    capabilities = {type(leaf) for leaf in capabilities_of(agent.root_capability)}
    try:
        schema = agent.output_json_schema()
        output_text = OutputText(agent.output_type)
    except Exception as error:  # A type that pydantic has no schema for says so in several ways.
        raise _Unservable(f"has an output that no JSON Schema describes: {_said(error)}") from error
    return Offer(
        agent_type=agent_type,
        agent=agent,
        model=model[0],
        chooses_model=model[1],
        falls_back=ModelFallback in capabilities,
        is_plain=_of_every_agent() >= capabilities,
        description=served.description or agent.description or "",
        output_schema=schema,
        text_output=agent.output_type is str,
        output_text=output_text,
        tool_events=served.tool_events,
        dependencies=served.dependencies,
        usage_limits=served.usage_limits or _usage_limits(settings),
    )


def _said(error: BaseException) -> str:
    """Say an error in one line without its full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


def _place(error: BaseException) -> str:
    """Say which line of the agent's own code raised an error; nothing where none did."""
    ours = {__file__, importlib.__file__, process_guard.__file__}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename not in ours and not frame.filename.startswith("<"):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
