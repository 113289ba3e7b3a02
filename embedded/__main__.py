"""Run everything on one machine: `agent-relay run`, which is `make run` in a checkout."""

from agent_relay.shared.early_stop import exit_when_told

if __name__ == "__main__":
    exit_when_told()  # Before the imports that take long.

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from agent_relay.embedded.data_dir import DataDir
from agent_relay.embedded.environment import LaunchEnvironment
from agent_relay.embedded.supervisor import Supervisor

EXAMPLES = """\
examples:
  agent-relay run                                               a sample agent on a script, without a key
  agent-relay run --agent haiku=my_agents:haiku                 `haiku` of my_agents.py in this folder
  agent-relay run --agent haiku=./agents/poet.py:haiku --model test
  OPENAI_API_KEY=… agent-relay run --agent haiku=my_agents:haiku --model openai-chat:gpt-5

Lines of .env in this folder are read as environment variables; options count before both. Ctrl-C stops everything; the
next start finds all threads, runs and batches again.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Lock the data folder and run until told to stop; `words` are those of the command line."""
    parser = argparse.ArgumentParser(
        prog="agent-relay run",
        description="Start a private PostgreSQL and Redis, the API and a worker, and print what to paste next.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--agent",
        action="append",
        metavar="NAME=MODULE:ATTRIBUTE",
        help="serve this agent instead of those of AGENTS; also NAME=./file.py:ATTRIBUTE or NAME=./spec.yaml; repeat "
        "for more",
    )
    parser.add_argument("--model", help="model of agents that bring none, as pydantic-ai names it; `test` needs no key")
    parser.add_argument("--port", metavar="N", help="port of the API (default: 8000, or a free one)")
    parser.add_argument("--home", type=Path, default=Path(".local"), help="folder of the data (default: .local)")
    options = parser.parse_args(words)
    given = {"AGENTS": ",".join(options.agent or ()), "MODEL": options.model, "PORT": options.port}
    os.environ.update({name: value for name, value in given.items() if value})
    surroundings = LaunchEnvironment.read()
    with DataDir(options.home) as home:
        return Supervisor(home, surroundings).run()


if __name__ == "__main__":
    raise SystemExit(main())
