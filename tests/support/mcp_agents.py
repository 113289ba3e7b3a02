"""Agents whose tools are those of MCP servers: a query names the tool, the answer is what it returned."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent, ModelMessage, ToolReturnPart, UserPromptPart
from pydantic_ai.capabilities import MCP
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay import RunScope, ServedAgent
from tests.support.service import ROOT

IDS = os.environ["MCP_IDS"]
URL = f"http://127.0.0.1:{os.environ.get('MCP_PORT', '1')}/mcp"


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        yield f"{last.outcome}: {last.content}"
    elif isinstance(last, UserPromptPart):
        yield {0: DeltaToolCall(name=str(last.content), json_args="{}", tool_call_id="call")}


def _toolset(*command: str) -> MCPToolset[Any]:
    return MCPToolset(StdioTransport(sys.executable, [*command], env=dict(os.environ), cwd=str(ROOT)), init_timeout=30)


_model = FunctionModel(stream_function=_stream, model_name="calls what the query names")
over_pipes = Agent(_model, toolsets=[_toolset("-m", "tests.support.mcp_server", IDS)])


def _dies_once(scope: RunScope) -> None:
    if scope.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


suspect = ServedAgent(agent=over_pipes, dependencies=_dies_once)
over_http = Agent(_model, capabilities=[MCP[Any](url=URL, native=False)])
without_server = Agent(_model, toolsets=[_toolset("-c", "raise SystemExit(5)")])
silent_server = Agent(_model, toolsets=[_toolset("-c", "import time; time.sleep(600)")])
