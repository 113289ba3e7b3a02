"""A real MCP server, started as an MCP server is: with a file for the ids of its processes, and a port or none.

Without a port it speaks over its standard streams.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("processes")


@server.tool()
def process() -> str:
    """Say which process this is."""
    return str(os.getpid())


@server.tool()
def crash() -> str:
    """End this process."""
    os._exit(3)


@server.tool()
def refuse() -> str:
    """Refuse, as a tool does that was asked for something wrong."""
    raise ValueError("refused")


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a") as ids:
        ids.write(f"{os.getpid()}\n")
    if len(sys.argv) > 2:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run("stdio")
