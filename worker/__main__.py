"""`python -m worker`: answer runs until told to stop. Start as many as you like, on as many machines.

`--processes N` starts N of them under a small parent, which restarts what dies: then a dead process costs its runs a
moment and the attempt, and only a dead machine costs the lease. `dead-letters` and `requeue` are for operators.
"""
# ruff: noqa: E402

from __future__ import annotations

from shared.stopping import exit_when_told

if __name__ == "__main__":
    exit_when_told()  # Before the imports that take long.

from shared.versions import refuse_old_pydantic_ai, refuse_old_servers

refuse_old_pydantic_ai()  # Before anything imports it.

import argparse
from uuid import UUID

import uvloop

from shared import logs
from shared.clock import new_id
from shared.failures import DEAD, FailureCode
from shared.settings import read
from shared.start import check
from worker import dead_letters, parent
from worker.process import work


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Answer runs until told to stop.")
    parser.add_argument("--processes", type=int, metavar="N", help="start N workers and restart those that die")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="for operators, instead")
    show = verbs.add_parser("dead-letters", help="list the failed runs that can be asked again")
    again = verbs.add_parser("requeue", help="have some of them asked again, as new runs")
    which = again.add_mutually_exclusive_group(required=True)
    which.add_argument("run_ids", type=UUID, nargs="*", default=[], metavar="RUN_ID", help="these")
    which.add_argument("--all", action="store_true", help="all that are dead now")
    again.add_argument("--deadline", type=float, metavar="SECONDS", help="time they have; else as much as before")
    for verb in (show, again):
        codes = sorted(DEAD)
        verb.add_argument("--code", type=FailureCode, choices=codes, help="only those that failed for this reason")
    return parser


def main() -> None:
    """Do what the command line says."""
    parser = _parser()
    arguments = parser.parse_args()
    settings = read()
    logs.configure(settings)
    missing = check(settings, needs_redis=arguments.verb != "dead-letters")
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
            uvloop.run(refuse_old_servers(settings))
            if arguments.processes:
                parent.keep(settings, arguments.processes)
            else:
                work(settings, new_id(), metrics_ports=[settings.metrics_port] if settings.metrics_port else [])


if __name__ == "__main__":
    main()
