"""A fake of OpenAI's chat completions that costs little: it calls the output tool, and is asked for tokens and a pace.

`tests/support/fake_openai.py` knows all the troubles of a provider; this one knows none, and keeps up.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any

import uvloop

from benchmarks.agents import arguments_of, asked, pauses

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_FUNCTION = {"name": "final_result", "arguments": ""}
_CALL = {"index": 0, "id": "call_1", "type": "function", "function": _FUNCTION}


def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """Write one event of a completion, as a chunk of HTTP."""
    said = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": "any", "choices": choices}
    data = f"data: {json.dumps(said | more)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def delta(said: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """Write what a model says next."""
    return chunk([{"index": 0, "delta": said, "finish_reason": finish_reason}])


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request after the other on a connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            assert length
            body = json.loads(await reader.readexactly(int(length[1])))
            user = next(message for message in reversed(body["messages"]) if message["role"] == "user")
            await complete(writer, *asked(user["content"]))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def complete(writer: asyncio.StreamWriter, count: int, pace: float) -> None:
    """Stream a completion, a token a write."""
    clock = pauses(pace)
    writer.write(HEAD + delta({"role": "assistant", "content": None, "tool_calls": [_CALL]}))
    for token in arguments_of(count):
        await anext(clock)
        writer.write(delta({"tool_calls": [{"index": 0, "function": {"arguments": token}}]}))
        await writer.drain()
    usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": count + 10}
    writer.write(delta({}, "tool_calls") + chunk([], usage=usage) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()


async def main() -> None:
    """Serve on a free port, which is printed."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(answer, sock=listener)
    print(listener.getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
