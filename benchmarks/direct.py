"""The same agents, streamed from the request itself by one FastAPI process: no queue, no log, no second process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI
from fastapi.responses import StreamingResponse
from pydantic_ai import Agent
from pydantic_ai.messages import FinalResultEvent
from pydantic_core import to_json

from benchmarks import agents

app = FastAPI()


@app.post("/stream")
async def stream(query: Annotated[str, Body()], agent_type: Annotated[str, Body()]) -> StreamingResponse:
    """Answer with every partial, whole, in a line of its own."""
    return StreamingResponse(_answer(getattr(agents, agent_type), query), media_type="application/x-ndjson")


async def _answer(agent: Agent[None, agents.Advice], query: str) -> AsyncIterator[bytes]:
    yield to_json({"event": "message_created"}) + b"\n"
    async with agent.iter(query) as run:
        async for node in run:
            if not Agent.is_model_request_node(node):
                continue
            async with node.stream(run.ctx) as answer:
                writing = False
                async for event in answer:
                    writing = writing or isinstance(event, FinalResultEvent)
                    if writing:
                        partial = await answer.validate_response_output(answer.response, allow_partial=True)
                        yield to_json({"event": "text_delta", "token": to_json(partial).decode()}) + b"\n"


def serve(application: FastAPI) -> None:
    """Serve on a free port, which is printed."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(application, loop="uvloop", http="httptools", log_level="error")).run([listener])


if __name__ == "__main__":
    serve(app)
