"""The lines that a newcomer pastes into another terminal."""

import re
import shlex
import sys
from pathlib import Path
from shutil import which

SAMPLE = "bank_support"


def agent_to_ask(agents: str | None) -> str:
    """Return the name of an agent that a worker serves with these `AGENTS`: the sample if it is among them."""
    names = [pair.partition("=")[0] for pair in re.split(r"[,\s]+", agents or "") if pair]
    return SAMPLE if SAMPLE in names or not names else names[0]


def lines_to_paste(port: int, api_key: str, user_id: str, agent_type: str = SAMPLE) -> str:
    """Return a sentence and the lines: who is calling, a thread, a question, and the same question streamed."""
    curl = 'curl -s -H "X-API-Key: $API_KEY" -H "X-User-ID: $USER_ID" -H "Content-Type: application/json"'
    first_id = """python3 -c 'import json,sys; print(json.load(sys.stdin)["id"])'"""
    question = "What is my balance?" if agent_type == SAMPLE else "Hello! What can you do?"
    query = f"""-d '{{"thread_id": "'"$THREAD_ID"'", "query": "{question}"}}'"""
    return f"""
In another terminal, in this folder: {_command()} ask "{question}" --agent {agent_type}
Or paste into another terminal, once `ready` is printed:

export BASE_URL=http://127.0.0.1:{port}/api/v1
export API_KEY={api_key}
export USER_ID={user_id}
export THREAD_ID=$({curl} "$BASE_URL/threads" -d '{{"agent_type": "{agent_type}"}}' | {first_id})
{curl} "$BASE_URL/agent/query" {query}; echo
{curl.replace("-s", "-sN", 1)} "$BASE_URL/agent/stream" {query}
"""


def _command() -> str:
    """Return what starts `agent-relay` in a shell here, whether or not its environment is activated."""
    beside = Path(sys.executable).with_name("agent-relay")
    if which("agent-relay") or not beside.exists():
        return "agent-relay"
    return shlex.quote(str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside))
