"""The agents of a worker: those that `AGENTS` names, each with its model, its dependencies and its settings.

It knows how to find agents and their needs, not how they are run.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import ModuleType, NoneType
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_ai import Agent, BinaryContent, UsageLimits
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability, DynamicCapability, ModelFallback
from pydantic_ai.models import Model, infer_model, parse_model_id
from pydantic_ai.output import OutputSpec
from pydantic_ai.providers import infer_provider_class
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, FunctionToolset, WrapperToolset
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.settings import Settings, WrongSettings
from agent_relay.worker.deferred_tools import CannotWait, capabilities_of, check_waiting, may_wait, without_requests
from agent_relay.worker.guests import guard
from agent_relay.worker.output_text import OutputText

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

SLOW_IMPORT_SECONDS = 5.0
"""After this time the import of an agent's module is logged as slow, and then less and less often."""
LONGEST_PAUSE_SECONDS = 60.0
MOST_EXAMPLES = 20
LONGEST_EXAMPLE = 500
FILE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A file, see `GET /files/{file_id}/content`.",
    "properties": {
        "file_id": {"type": "string", "format": "uuid"},
        "media_type": {"type": "string"},
        "bytes": {"type": "integer"},
    },
    "required": ["file_id", "media_type", "bytes"],
    "additionalProperties": False,
}
"""Of an output that is a file."""
_PATTERN = re.compile(r"\*/\*|[a-z]+/(?:\*|[a-z0-9][a-z0-9.+-]*)")
_NO_DEPENDENCIES = (object, NoneType)
"""pydantic-ai's type of the dependencies of an agent that takes none."""
_OPENAI = frozenset({"openai", "openai-chat", "openai-responses"})
"""Providers of models that OpenAI's API serves, or what `OPENAI_BASE_URL` names in its place."""
_NEEDED_BY_ALL = "genai_prices.data"
_NEEDED_BY_OPENAI = (
    "openai.resources.chat.chat",
    "openai.resources.responses.responses",
    "agent_relay.worker.models.openai_client",
)
"""Modules that are imported only as a model is made."""


@dataclass(frozen=True, kw_only=True)
class RunScope:
    """The run that dependencies are made for.

    A tool that had not returned when an attempt was lost is called again: `run_id` and the call's id are there to make
    its idempotency keys, and `unfinished_calls` names such calls.
    """

    tenant: str
    user_id: UUID
    thread_metadata: dict[str, Any]
    """Empty for a run without a thread."""
    run_metadata: dict[str, Any]
    run_id: UUID
    attempt: int
    """1, 2, 3, …: from 2 on, an earlier one was lost or returned to the queue."""
    unfinished_calls: frozenset[str] = frozenset()
    """The ids (`RunContext.tool_call_id`) of calls that an earlier attempt may have begun, and did not see return."""
    database: AsyncEngine
    """The database of `AGENT_DATABASE_URL`, for agents that keep tables; without one, the service's own, all of it."""


Dependencies = Callable[[RunScope], Any | Awaitable[Any]]
"""Makes the `RunContext.deps` of an agent's tools and instructions.

A coroutine function runs in the event loop; a plain one in a thread, as tools do.
"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings of one run; those that are left out are as the agent has them."""

    model: Model | str | None = None
    """Asked in place of the agent's own and of `MODEL`."""
    model_settings: ModelSettings | None = None
    """Hold before the agent's own."""
    instructions: str | Sequence[str] | None = None
    """Stand behind the agent's own."""
    toolsets: Sequence[AbstractToolset[Any]] | None = None
    """Beside the agent's own; the run enters them itself."""
    output_type: OutputSpec[Any] | None = None
    """In place of the agent's own, which must have no output validators then."""


AS_THE_AGENT_HAS_IT = RunOptions()

Apply = Callable[[Any, RunScope], RunOptions | Awaitable[RunOptions]]
"""Says what chosen options mean for a run. A coroutine function runs in the event loop; a plain one in a thread."""

Script = Callable[[float], Model]
"""Makes a scripted model that writes this number of tokens a second."""


class ToolEvents(StrEnum):
    """The part of an agent's tool calls that streams show."""

    FULL = "full"
    """Names, arguments and results."""
    NAMES = "names"
    """Names only."""
    OFF = "off"
    """Nothing."""


@dataclass(frozen=True, kw_only=True)
class ServedAgent:
    """An agent and its settings; a bare agent is served as if every other field were left out."""

    agent: AbstractAgent[Any, Any]
    dependencies: Dependencies | None = None
    script: Script | None = None
    """Makes the model that answers where neither the agent nor `MODEL` brings one."""
    tool_events: ToolEvents = ToolEvents.FULL
    reasoning: bool | None = None
    """Whether streams and steps show the model's reasoning; None: if `tool_events` is `FULL`."""
    description: str | None = None
    """Told to callers; without it, the agent's own description is."""
    examples: Sequence[str] = ()
    """Queries to begin with, shown to callers; the chat page has a button for each."""
    usage_limits: UsageLimits | None = None
    """The usage limits of a run, all its attempts together; without it, those of the settings."""
    checkpoints: bool = True
    """Whether finished steps are stored, and the next attempt goes on from them; else it begins with the query."""
    options: type[BaseModel] | None = None
    """The options of a run, each field with a default; callers are shown its JSON Schema."""
    apply: Apply | None = None
    """Returns the effect of the chosen options; an agent with options must have it."""
    attachments: Sequence[str] = ("*/*",)
    """The media types that may be attached to queries, as `application/pdf` or `image/*`; none where it is empty."""
    attachment_urls: Literal["fetch", "pass"] = "fetch"
    """Whether attachments with an address are fetched by the worker, or by the model's provider from that address."""
    waiting: bool | None = None
    """Shown to callers: whether runs may wait for answers; None: found from the tools and the output type."""
    version: str = ""
    """Runs do not go on from steps that another version of the agent has finished; they begin with the query."""


class WrongOptions(Exception):
    """A sentence with the reason why chosen options, which fitted their schema once, cannot be used."""

    code = FailureCode.AGENT_ERROR


@dataclass(frozen=True, kw_only=True)
class OfferedOptions:
    """The options of an agent."""

    type: type[BaseModel]
    apply: Apply
    schema: dict[str, Any]
    """JSON Schema; it takes nothing that it does not name."""

    async def of_run(self, chosen: dict[str, Any], scope: RunScope) -> RunOptions:
        """Return the settings of a run.

        Raises:
            WrongOptions: they are not valid.
        """
        try:
            options = self.type.model_validate_json(to_json(chosen))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = "/".join(map(str, first["loc"]))
            raise WrongOptions(f"The options are not valid: {place}: {first['msg']}.") from None
        made = await _call(self.apply, options, scope)
        if not isinstance(made, RunOptions):
            raise TypeError(f"apply returned {type(made).__name__}, not RunOptions")
        return made


@dataclass(frozen=True, kw_only=True)
class RegisteredAgent:
    """An agent that is ready to answer, under its name for callers."""

    agent_type: str
    agent: AbstractAgent[Any, Any]
    model: Model | str | None
    """The model that it is asked with; a name is looked up by the agent itself."""
    chooses_model: bool
    """Whether the agent's own model or capabilities count before `model`."""
    falls_back: bool
    """Whether a capability of the agent's asks another model as soon as one fails."""
    is_plain: bool
    """Whether the agent has no capabilities that could change a request or the model that it goes to."""
    description: str
    examples: tuple[str, ...]
    """Queries to begin with."""
    output_schema: dict[str, Any]
    """JSON Schema of the output."""
    text_output: bool
    """Whether the output is text instead of JSON."""
    output_text: OutputText
    """Writes outputs that are JSON."""
    tool_events: ToolEvents
    reasoning: bool
    dependencies: Dependencies | None
    usage_limits: UsageLimits | None
    options: OfferedOptions | None
    model_named: Callable[[str], Model]
    """Makes the model of a name, once a process."""
    attachments: tuple[str, ...]
    """The media types that may be attached."""
    attachment_urls: Literal["fetch", "pass"]
    waiting: bool
    checkpoints: bool
    version: str
    """Says, in few characters, which output and tools the agent has, and the version that it was given."""

    async def equip(self, scope: RunScope) -> Any:
        """Make the dependencies of a run; None for an agent that takes none."""
        if self.dependencies is None:
            return None
        return await _call(self.dependencies, scope)

    def with_output(self, output_type: OutputSpec[Any] | None) -> RegisteredAgent:
        """Answer a run with another output; a text agent publishes one that is no text as its JSON text."""
        if output_type is None:
            return self
        output_type = without_requests(output_type)
        is_text = self.text_output and output_type is str
        return replace(self, text_output=is_text, output_text=OutputText(output_type))

    async def options_of(self, chosen: dict[str, Any], scope: RunScope) -> RunOptions:
        """Say what chosen options mean for a run.

        Raises:
            WrongOptions: they are not valid, or the agent takes none.
        """
        if self.options is not None:
            return await self.options.of_run(chosen, scope)
        if chosen:
            raise WrongOptions("The agent takes no options any more.")
        return AS_THE_AGENT_HAS_IT


async def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of an agent's author."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    made = await asyncio.to_thread(function, *arguments)  # It may wait: for a file, a server, a lock.
    return await made if inspect.isawaitable(made) else made


class UnservableAgents(WrongSettings):
    """Some of `AGENTS` cannot be served; the message is one sentence for each."""


def load(settings: Settings, openai_http: Callable[[], httpx2.AsyncClient] | None = None) -> dict[str, RegisteredAgent]:
    """Import the agents and give each its model, or stop with a sentence for each that cannot be served.

    `openai_http` makes the client for a `MODEL` of OpenAI's; without it, pydantic-ai does. OpenAI's SDK, which takes as
    long to import as everything else, is left alone where no model speaks with it.
    """
    find_agents_of_this_folder()
    offers: dict[str, RegisteredAgent] = {}
    problems: list[str] = []

    @cache
    def model_named(name: str) -> Model:
        return _model_named(name, openai_http)

    configured_model = cache(lambda: _configured_model(settings, model_named))
    for agent_type, path in settings.agents.items():
        try:
            with _noting_a_slow_import(agent_type, path):
                served = _import(path)
            _check_dependencies(served)
            check_waiting(served.agent)
            model = _model(served, settings, configured_model)
            offers[agent_type] = _offer(agent_type, served, model, settings, model_named)
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
    """The error of `MODEL`."""


def _import(path: str) -> ServedAgent:
    module, _, attribute = path.rpartition(":")
    try:
        if not module:
            return ServedAgent(agent=Agent[Any, Any].from_file(path))
        found = getattr(
            _module_of_file(module) if module.endswith(".py") else importlib.import_module(module), attribute
        )
    except BaseException as error:  # An agent's module may raise anything, also SystemExit.
        raise _Unservable(f"cannot be imported: {_said(error)}{_place(error)}") from error
    if isinstance(found, ServedAgent):
        return found
    if isinstance(found, AbstractAgent):
        return ServedAgent(agent=found)  # pyright: ignore[reportUnknownArgumentType]
    raise _Unservable(f"is neither a pydantic_ai.Agent nor a ServedAgent but of type {type(found).__name__}")


def _module_of_file(path: str) -> ModuleType:
    """Import a file that is named by its path; modules beside it can be imported by it, as if it were run."""
    file = Path(path).resolve()
    for module in tuple(sys.modules.values()):  # Several agents may live in one file.
        if getattr(module, "__file__", None) == str(file):
            return module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    name = f"file_{file.stem}" if file.stem in sys.modules or not file.stem.isidentifier() else file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def find_agents_of_this_folder() -> None:
    """Let agents be imported from the working folder, as `python -m` would; our own imports are made by then."""
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


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
                guard.where(*guard.frames_of(importing)),
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

    An agent that chooses by capabilities (`SelectModel`, `ResolveModelId`, a function that returns such) keeps its
    choice: a model that `agent.iter` is given would be used instead.
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
    """Import the modules of a configured model, so that processes that are forked need not; none is made."""
    importlib.import_module(_NEEDED_BY_ALL)
    name = parse_model_id(settings.model or "")[0] or ""
    with suppress(Exception):  # The code that makes it reports the error.
        importlib.import_module(infer_provider_class(name).__module__.replace(".providers.", ".models."))
        for module in _NEEDED_BY_OPENAI if name in _OPENAI else ():
            importlib.import_module(module)


def _model_named(name: str, openai_http: Callable[[], httpx2.AsyncClient] | None) -> Model:
    if openai_http is not None and parse_model_id(name)[0] in _OPENAI:
        from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

        return infer_model(name, lambda _: OpenAIProvider(http_client=openai_http()))
    return infer_model(name)


def _configured_model(settings: Settings, model_named: Callable[[str], Model]) -> Model:
    name = settings.model or ""
    try:
        return model_named(name)
    except Exception as error:  # As many kinds of errors as there are providers.
        raise _WrongModel(f"{name!r} cannot be made: {_said(error)}") from error


def _usage_limits(settings: Settings) -> UsageLimits:
    """Limit agents that bring no limits of their own."""
    return UsageLimits(
        request_limit=settings.max_requests or None,
        total_tokens_limit=settings.max_tokens or None,
        tool_calls_limit=settings.max_tool_calls or None,
        cost_limit=Decimal(repr(settings.max_cost_usd)) if settings.max_cost_usd else None,
    )


def _offer(
    agent_type: str,
    served: ServedAgent,
    model: tuple[Model | str | None, bool],
    settings: Settings,
    model_named: Callable[[str], Model],
) -> RegisteredAgent:
    agent = served.agent
    output_type = without_requests(agent.output_type)
    capabilities = {type(leaf) for leaf in capabilities_of(agent.root_capability)}
    try:
        schema = deepcopy(FILE_SCHEMA) if _is_file(output_type) else agent.output_json_schema(output_type)
        output_text = OutputText(output_type)
    except Exception as error:  # pydantic raises several kinds for a type without a schema.
        raise _Unservable(f"has an output that no JSON Schema describes: {_said(error)}") from error
    return RegisteredAgent(
        agent_type=agent_type,
        agent=agent,
        model=model[0],
        chooses_model=model[1],
        falls_back=ModelFallback in capabilities,
        is_plain=_of_every_agent() >= capabilities,
        description=served.description or agent.description or "",
        examples=_examples(served),
        output_schema=schema,
        text_output=output_type is str,
        output_text=output_text,
        tool_events=served.tool_events,
        reasoning=served.tool_events is ToolEvents.FULL if served.reasoning is None else served.reasoning,
        dependencies=served.dependencies,
        usage_limits=served.usage_limits or _usage_limits(settings),
        options=_options(served),
        model_named=model_named,
        attachments=_attachments(served),
        attachment_urls=served.attachment_urls,
        waiting=may_wait(agent) if served.waiting is None else served.waiting,
        checkpoints=served.checkpoints,
        version=_version(agent, served.version, schema),
    )


def _is_file(output_type: object) -> bool:
    return isinstance(output_type, type) and issubclass(output_type, BinaryContent)


def _options(served: ServedAgent) -> OfferedOptions | None:
    options = cast("object", served.options)  # As it is, and not as it is declared.
    if options is None and served.apply is None:
        return None
    if not isinstance(options, type) or not issubclass(options, BaseModel):
        raise _Unservable("has options that are no class of pydantic's BaseModel")
    if served.apply is None:
        raise _Unservable("has options, so a ServedAgent must bring apply, which says what they mean")
    if required := [name for name, field in options.model_fields.items() if field.is_required()]:
        raise _Unservable(f"has options without a default ({', '.join(required)}): callers may leave each out")
    try:
        schema = options.model_json_schema()
        options()
    except Exception as error:  # A field may have a default that is not valid, or a type that has no schema.
        raise _Unservable(f"has options that cannot be offered: {_said(error)}") from error
    return OfferedOptions(type=options, apply=served.apply, schema=_closed(schema))


def _closed(schema: Any) -> Any:
    """Refuse unknown fields in every object of a schema, so that no field is ignored."""
    if isinstance(schema, list):
        return [_closed(each) for each in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in cast("dict[str, Any]", schema).items()}
    if "properties" in closed and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _attachments(served: ServedAgent) -> tuple[str, ...]:
    given: object = served.attachments
    if not isinstance(given, list | tuple):
        raise _Unservable("has attachments that are no list of media types")
    for pattern in cast("Sequence[object]", given):
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            raise _Unservable(f"has attachments that name no media type, as image/* would: {pattern!r:.80}")
    if served.attachment_urls not in {"fetch", "pass"}:
        raise _Unservable(f"has attachment_urls that are neither fetch nor pass: {served.attachment_urls!r:.80}")
    return tuple(given)


def _examples(served: ServedAgent) -> tuple[str, ...]:
    given: object = served.examples
    if not isinstance(given, list | tuple):
        raise _Unservable("has examples that are no list of texts")
    examples = tuple(cast("Sequence[object]", given))
    if len(examples) > MOST_EXAMPLES:
        raise _Unservable(f"has {len(examples)} examples; at most {MOST_EXAMPLES} are shown")
    for example in examples:
        if not isinstance(example, str) or not 0 < len(example.strip()) <= len(example) <= LONGEST_EXAMPLE:
            raise _Unservable(f"has an example that is no text of 1 to {LONGEST_EXAMPLE} characters: {example!r:.80}")
    return cast("tuple[str, ...]", examples)


def _version(agent: Any, version: str, output_schema: dict[str, Any]) -> str:
    """Make a short text that changes with the output, the tools that are known at the start, and the given version."""
    tools = dict(_tools(agent.toolsets))
    said = to_json([version, output_schema, sorted(tools.items())], serialize_unknown=True)
    return hashlib.sha256(said).hexdigest()[:16]


def _tools(toolsets: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for toolset in toolsets:
        match toolset:
            case FunctionToolset():
                yield from ((name, tool.function_schema.json_schema) for name, tool in toolset.tools.items())
            case WrapperToolset():
                yield from _tools([toolset.wrapped])
            case CombinedToolset():
                yield from _tools(cast("Iterable[Any]", toolset.toolsets))
            case _:
                pass


def _said(error: BaseException) -> str:
    """Say an error in one line without its full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


def _place(error: BaseException) -> str:
    """Say which line of the agent's own code raised an error; nothing where none did."""
    ours = {__file__, importlib.__file__, guard.__file__}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename not in ours and not frame.filename.startswith("<"):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
