"""`agent-relay worker`: answer runs until stopped. Start any number, on any number of machines.

`--processes N` starts N of them under a small parent, which restarts dead ones: then a dead process costs its runs a
moment and the attempt, and only a dead machine costs the lease. `dead-letters` and `requeue` are for operators.
"""
# ruff: noqa: E402

from __future__ import annotations

from agent_relay.shared.early_stop import exit_when_told

if __name__ == "__main__":
    exit_when_told()  # Before the imports that take long.

from agent_relay.shared.minimum_versions import refuse_old_pydantic_ai, refuse_old_servers

refuse_old_pydantic_ai()  # Before anything imports it.

import argparse
import asyncio
import math
import os
from collections.abc import Sequence
from uuid import UUID

import uvloop

from agent_relay.shared import logs
from agent_relay.shared.clock import new_id
from agent_relay.shared.failure_codes import DEAD, FailureCode
from agent_relay.shared.plain_numbers import argument, decimal_number, whole_number
from agent_relay.shared.settings import read
from agent_relay.shared.startup_checks import check
from agent_relay.worker import dead_letters
from agent_relay.worker.process import work, work_in_processes

MOST_PROCESSES = 1_000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agent-relay worker",
        description="Answer runs until told to stop. Settings are environment variables or lines of .env: "
        "DATABASE_URL, REDIS_URL, AGENTS, MODEL and more. Start as many as you like, on as many machines.",
    )
    parser.add_argument(
        "--agent",
        action="append",
        metavar="NAME=MODULE:ATTRIBUTE",
        help="serve this agent instead of those of AGENTS; also NAME=./file.py:ATTRIBUTE or NAME=./spec.yaml; repeat "
        "for more",
    )
    parser.add_argument(
        "--processes",
        type=argument(whole_number, 1, MOST_PROCESSES),
        metavar="N",
        help="start N workers and restart those that die",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="for operators, instead")
    show = verbs.add_parser(
        "dead-letters", prog="agent-relay dead-letters", help="list the failed runs that can be asked again"
    )
    again = verbs.add_parser("requeue", prog="agent-relay requeue", help="have some of them asked again, as new runs")
    which = again.add_mutually_exclusive_group(required=True)
    which.add_argument("run_ids", type=UUID, nargs="*", default=[], metavar="RUN_ID", help="these")
    which.add_argument("--all", action="store_true", help="all that are dead now")
    again.add_argument(
        "--deadline",
        type=argument(decimal_number, 0, math.inf),
        metavar="SECONDS",
        help="time they have; else as much as before",
    )
    for verb in (show, again):
        codes = sorted(DEAD)
        verb.add_argument("--code", type=FailureCode, choices=codes, help="only those that failed for this reason")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Execute a command line; `words` are its words, without the command's name."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.agent:
        os.environ["AGENTS"] = ",".join(arguments.agent)
    settings = read()
    logs.configure(settings)
    missing = check(settings, needs_redis=arguments.verb != "dead-letters", runs_agents=arguments.verb is None)
    if missing and arguments.verb:
        raise SystemExit(missing)
    longest = settings.max_run_deadline_seconds
    match arguments.verb:
        case "dead-letters":
            uvloop.run(dead_letters.show(settings, arguments.code))
        case "requeue" if arguments.deadline is not None and not 0 < arguments.deadline <= longest:
            parser.error(f"--deadline must be above 0 and at most {longest:g}")
        case "requeue" if arguments.all:
            uvloop.run(dead_letters.requeue_all(settings, arguments.code, arguments.deadline))
        case "requeue" if arguments.code:
            parser.error("--code goes with --all")
        case "requeue":
            uvloop.run(dead_letters.requeue_some(settings, arguments.run_ids, arguments.deadline))
        case _:
            asyncio.run(refuse_old_servers(settings))  # uvloop leaves threads behind, beside which no process may fork.
            if arguments.processes:
                work_in_processes(settings, arguments.processes)
            else:
                work(settings, new_id(), metrics_ports=[settings.metrics_port] if settings.metrics_port else [])


if __name__ == "__main__":
    main()
