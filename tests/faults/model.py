"""The model of the script: a server of chat completions that answers what the query asks for, at the pace it asks for.

`python -m tests.faults.model` prints its port. `GET /heard` tells each request: who asked, when, and which queries and
answers of the thread were told to the model.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncGenerator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.faults.script import Query, filled_form, told_text

_TOKEN = re.compile(r"\S+\s*|\s+")
_heard: list[dict[str, Any]] = []


async def complete(request: Request) -> StreamingResponse | JSONResponse:
    """Answer as the script says; the models `refuses-400` and `refuses-401` refuse with that status."""
    body = await request.json()
    if (name := str(body["model"])).startswith("refuses-"):
        return JSONResponse({"error": {"message": "It is refused.", "code": "refused"}}, int(name[len("refuses-") :]))
    messages: list[dict[str, Any]] = body["messages"]
    who = str(messages[0]["content"])
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    earlier = [str(message["content"]) for message in messages[1:last] if message["role"] == "user"]
    _heard.append({"who": who, "at": time.time(), "earlier": [Query.parse(text).nonce for text in earlier]})
    return StreamingResponse(
        _events(who, Query.parse(str(messages[last]["content"])), body, looked_up=len(messages) > last + 1),
        media_type="text/event-stream",
    )


async def heard(_request: Request) -> JSONResponse:
    """Tell what was asked."""
    return JSONResponse(_heard)


async def _events(who: str, query: Query, body: dict[str, Any], *, looked_up: bool) -> AsyncGenerator[str]:
    tools = [tool["function"]["name"] for tool in body.get("tools", [])]
    if not tools:
        yield _delta({"role": "assistant", "content": ""})
        for token in _TOKEN.findall(told_text(who, query)):
            await asyncio.sleep(query.pace_seconds)
            yield _delta({"content": token})
    else:
        name = next(name for name in tools if name.startswith("final_result") == looked_up)
        arguments = filled_form(who, query) if looked_up else {"topic": query.nonce}
        call = {"index": 0, "id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": ""}}
        yield _delta({"role": "assistant", "content": None, "tool_calls": [call]})
        for token in _TOKEN.findall(json.dumps(arguments, ensure_ascii=False)):
            await asyncio.sleep(query.pace_seconds)
            yield _delta({"tool_calls": [{"index": 0, "function": {"arguments": token}}]})
    yield _chunk([{"index": 0, "delta": {}, "finish_reason": "tool_calls" if tools else "stop"}])
    yield _chunk([], usage={"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30})
    yield "data: [DONE]\n\n"


def _delta(delta: dict[str, Any]) -> str:
    return _chunk([{"index": 0, "delta": delta, "finish_reason": None}])


def _chunk(choices: list[dict[str, Any]], **more: Any) -> str:
    chunk = {"id": "script", "object": "chat.completion.chunk", "created": 1, "model": "script", "choices": choices}
    return f"data: {json.dumps(chunk | more)}\n\n"


def main() -> None:
    """Serve until killed, once the port is printed."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1000)
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/heard", heard)])
    uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off")).run(sockets=[listener])


if __name__ == "__main__":
    main()
