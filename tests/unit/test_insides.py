"""The insides of libraries that are used here are as they were when that was written, and a bound keeps others out.

Where one fails after an upgrade: read what the library does now, mend the file that is named, and raise the bound.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import ROOT

BOUNDED = {
    "arq",
    "fastapi",
    "genai-prices",
    "httpcore2",
    "httptools",
    "httpx2",
    "openai",
    "psycopg",
    "pydantic-ai-slim",
    "redis",
    "sqlalchemy",
    "starlette",
    "uvicorn",
}

PARAMETERS = {
    # worker/queue/consumer.py
    "arq.worker:Worker.run_job": ["self", "job_id", "score"],
    "arq.worker:Worker.finish_job": [
        "self",
        "job_id",
        "finish",
        "result_data",
        "result_timeout_s",
        "keep_result_forever",
        "incr_score",
        "keep_in_progress",
    ],
    "arq.worker:Worker.finish_failed_job": ["self", "job_id", "result_data"],
    # worker/models/duplex_http.py
    "httpcore2:AsyncConnectionPool.__init__": [
        "ssl_context",
        "max_connections",
        "max_keepalive_connections",
        "network_backend",
    ],
    "httpcore2:AnyIOBackend.connect_tcp": ["self", "host", "port", "timeout", "local_address", "socket_options"],
    # worker/models/openai_client.py
    "openai:DefaultAioHttpClient._init_transport": ["verify"],
    "openai:DefaultAioHttpClient._init_proxy_transport": ["proxy"],
    "openai._vendor.httpx_aiohttp.transport:AiohttpTransport.get_client": ["self"],
    # shared/database/hang_detector.py, engine.py, fair_pool.py
    "psycopg:AsyncConnection.wait": ["self", "gen", "interval", "timeout"],
    "psycopg:AsyncConnection.cancel_safe": ["self", "timeout"],
    "psycopg:AsyncConnection._exec_command": ["self", "command", "result_format"],
    "sqlalchemy.exc:DBAPIError.instance": [
        "statement",
        "params",
        "orig",
        "dbapi_base_err",
        "hide_parameters",
        "connection_invalidated",
        "dialect",
    ],
    "sqlalchemy.util:greenlet_spawn": ["fn", "args", "kwargs"],
    "sqlalchemy.util:await_only": ["awaitable"],
    "sqlalchemy.util.queue:QueueCommon.get": ["self", "block", "timeout"],
    "sqlalchemy.util.queue:QueueCommon.put": ["self", "item", "block", "timeout"],
    # worker/models/merging.py, worker/deferred_tools.py, worker/output_text.py
    "pydantic_ai.models:StreamedResponse._get_event_iterator": ["self"],
    "pydantic_ai.models:StreamedResponse.__aiter__": ["self"],
    "pydantic_ai._output:types_from_output_spec": ["output_spec"],
    # shared/redis.py, api/streaming/subscriptions.py
    "redis._parsers:_AsyncHiredisParser.__init__": ["self", "socket_read_size"],
    "redis._parsers:_AsyncHiredisParser.parse_error": ["response"],
    "redis.asyncio.connection:AbstractConnection.read_response": ["self", "disconnect_on_error"],
    # api/server/http_protocol.py
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._start_asgi_task": ["self", "cycle", "app"],
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._unset_keepalive_if_required": ["self"],
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_response_complete": ["self"],
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send": ["self", "message"],
    # api/__main__.py
    "uvicorn:Server.startup": ["self", "sockets"],
    "uvicorn:Server._log_started_message": ["self", "listeners"],
    "uvicorn:Server.handle_exit": ["self", "sig", "frame"],
}
"""Methods that are called or overridden here, and the parameters that are given to them."""

MENTIONED = {
    # What is read or set of an object: words of the source that makes it.
    "arq.worker:Worker": ["allow_pick_jobs", "self.tasks", "self.pool", "job_key_prefix", "retry_key_prefix"],
    "httpx2:AsyncHTTPTransport": ["self._pool"],
    "pydantic_ai.models:StreamedResponse": ["_event_iterator", "final_result_event"],
    # worker/execution/answer.py
    "pydantic_ai._agent_graph": ["output_schema", "tool_manager"],
    "pydantic_ai._tool_execution": ["self.ctx.deps.output_schema.allows_deferred_tools"],
    # worker/execution/entered_agents.py
    "pydantic_ai.mcp:MCPToolset": [
        "_invalidate_tools_cache",
        "_invalidate_resources_cache",
        "_invalidate_prompts_cache",
        "await exit_stack.enter_async_context(self.client)",
    ],
    "psycopg:AsyncConnection": ["self.lock", "self.pgconn"],
    "redis.asyncio.connection:ConnectionPool": [
        "_available_connections",
        "_in_use_connections",
        "connection_kwargs",
    ],
    "sqlalchemy.pool:AsyncAdaptedQueuePool": ["_queue_class"],
    "starlette.requests:Request": ["self._body", "self._json"],
    "fastapi.routing": ["fastapi_inner_astack", "dependant", "body_field"],
    "fastapi.dependencies.models": ["query_params", "header_params", "dependencies"],
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": [
        "self.cycle",
        "self.parser",
        "self.headers",
        "self.url",
        "self.pipeline",
        "self.scope",
        "self.flow",
        "self.transport",
        "self.client",
    ],
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": [
        "self.scope",
        "chunked_encoding",
        "expected_content_length",
        "more_body",
        "keep_alive",
        "response_complete",
        "waiting_for_100_continue",
    ],
}


def found(name: str) -> Any:
    """Find `module:attribute.attribute`, or a module."""
    module, _, path = name.partition(":")
    inside = importlib.import_module(module)
    for attribute in filter(None, path.split(".")):
        inside = getattr(inside, attribute)
    return inside


def source_of(inside: Any) -> str:
    """Read the files that a module, or the methods of a class and of those that it is made of, stand in."""
    if not isinstance(inside, type):
        return inspect.getsource(inside)
    members = [member for kind in inside.__mro__ for member in vars(kind).values()]
    files = {member.__code__.co_filename for member in members if inspect.isfunction(member)}
    return "".join(Path(file).read_text() for file in files if Path(file).is_file())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_method_takes_what_is_given_to_it(name: str) -> None:
    parameters = list(inspect.signature(found(name)).parameters)

    assert [parameter for parameter in PARAMETERS[name] if parameter not in parameters] == []


@pytest.mark.parametrize("name", MENTIONED)
def test_an_object_has_what_is_read_of_it(name: str) -> None:
    source = source_of(found(name))

    assert [word for word in MENTIONED[name] if not re.search(rf"{re.escape(word)}(?!\w)", source)] == []


@pytest.mark.parametrize("module", ["genai_prices.data", "openai.resources.chat.chat"])
def test_a_module_that_is_imported_by_its_name_is_there(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def test_each_of_these_libraries_has_an_upper_bound() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounded = {re.split(r"[\[<>=]", requirement)[0] for requirement in needed if "<" in requirement}

    assert bounded == BOUNDED
