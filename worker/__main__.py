"""`python -m worker`: answer runs until told to stop. Start as many as you like, on as many machines.

`--processes N` starts N of them under a small parent, which restarts what dies: then a dead process costs a second, and
only a dead machine costs the lease.
"""

from __future__ import annotations

import argparse
from uuid import UUID

import uvloop

from shared import logs
from shared.clock import new_id
from shared.settings import read
from worker.app import serve
from worker.parent import Parent


async def keep(processes: int) -> None:
    """Run a parent inside the loop."""
    await Parent(settings, processes).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker", description="Answer runs until told to stop.")
    parser.add_argument("--processes", type=int, metavar="N", help="start N workers and restart those that die")
    parser.add_argument("--id", type=UUID, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=UUID, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = read()
    logs.configure(settings)
    uvloop.run(
        keep(arguments.processes) if arguments.processes else serve(settings, arguments.id or new_id(), arguments.run)
    )
