"""`agent-relay`: every command of the service, and of its callers. Each is imported when it is asked for.

`python -m agent_relay` is the same.
"""

import sys
from collections.abc import Callable
from importlib import import_module

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "on one machine": {
        "run": ("agent_relay.embedded.__main__", "run everything: private PostgreSQL and Redis, the API and a worker"),
    },
    "in production, on the servers that DATABASE_URL and REDIS_URL name": {
        "migrate": ("agent_relay.shared.migrations.__main__", "create the tables, or bring them up to date"),
        "api": ("agent_relay.api.__main__", "serve the HTTP API"),
        "worker": ("agent_relay.worker.__main__", "answer runs with your agents"),
        "key": ("agent_relay.shared.key_format", "print a new API key and its pair for API_KEYS"),
        "keys": ("agent_relay.api.keys", "create, list, rotate and revoke API keys in the database"),
        "dead-letters": ("agent_relay.worker.__main__", "list failed runs that can be asked again"),
        "requeue": ("agent_relay.worker.__main__", "ask some of them again"),
    },
    "as a caller of a service": {
        "ask": ("agent_relay.client.__main__", "ask one question and show the answer while it grows"),
        "chat": ("agent_relay.client.__main__", "have a conversation"),
        "submit": ("agent_relay.client.__main__", "ask about each row of a file, write the answers to another"),
        "follow": ("agent_relay.client.__main__", "show the answer of a run"),
        "answer": ("agent_relay.client.__main__", "answer what a run waits for"),
        "steer": ("agent_relay.client.__main__", "tell a run something while it is under way"),
        "schedules": ("agent_relay.client.__main__", "have queries asked again and again"),
        "cancel": ("agent_relay.client.__main__", "cancel a run or a batch"),
        "agents": ("agent_relay.client.__main__", "list the agents"),
        "threads": ("agent_relay.client.__main__", "list your conversations"),
    },
}

FIRST_STEPS = """\
first steps, in the folder of your agent:
  agent-relay run                                    serves a sample agent, and prints what to paste
  agent-relay run --agent haiku=my_agents:haiku      serves `haiku` of my_agents.py
  agent-relay ask "Write one about rain" --agent haiku    in a second terminal

`agent-relay COMMAND --help` says more. Settings are environment variables, or lines of .env in this folder.
"""


def main() -> int:
    """Run the command that the command line names; returns the exit status."""
    words = sys.argv[1:]
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_help())  # noqa: T201
        return 0
    if words[0] in {"-V", "--version"}:
        from agent_relay.shared import VERSION  # noqa: PLC0415

        print(f"agent-relay {VERSION}")  # noqa: T201
        return 0
    module = next((group[words[0]][0] for group in COMMANDS.values() if words[0] in group), None)
    if module is None:
        names = ", ".join(name for group in COMMANDS.values() for name in group)
        print(f"agent-relay: there is no command {words[0]!r}; the commands are {names}.", file=sys.stderr)  # noqa: T201
        return 2
    _handle_early_signals(module)
    try:
        run: Callable[[list[str]], int | None] = import_module(module).main
    except ModuleNotFoundError as error:
        if not (extra := _extra_of(module)) or (error.name or "").startswith("agent_relay"):
            raise
        print(  # noqa: T201
            f"agent-relay {words[0]} needs the package {error.name}: pip install 'agent-relay[{extra}]'",
            file=sys.stderr,
        )
        return 2
    own = [words[0]] if module == "agent_relay.client.__main__" or words[0] in {"dead-letters", "requeue"} else []
    return run([*own, *words[1:]]) or 0


def _handle_early_signals(module: str) -> None:
    """Let the command end at once on a signal that comes while it is imported, which takes seconds."""
    if module == "agent_relay.client.__main__":
        from agent_relay.client.interrupts import leave_at_once  # noqa: PLC0415

        leave_at_once()
    else:
        from agent_relay.shared.early_stop import exit_when_told  # noqa: PLC0415

        exit_when_told(1 if module.endswith("migrations.__main__") else 0)


def _extra_of(module: str) -> str:
    return {"client": "client", "embedded": "embedded"}.get(module.split(".")[1], "")


def _help() -> str:
    lines = ["usage: agent-relay COMMAND …", "", "Serve pydantic-ai agents over HTTP."]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:13} {about}" for name, (_, about) in group.items())]
    return "\n".join([*lines, "", FIRST_STEPS])


if __name__ == "__main__":
    sys.exit(main())
