"""`python -m worker`: answer runs until told to stop. Start as many as you like, on as many machines.

`--processes N` starts N of them under a small parent, which restarts what dies: then a dead process costs a second, and
only a dead machine costs the lease.
"""

from __future__ import annotations

import argparse
from uuid import UUID

from shared.clock import new_id
from shared.settings import read
from worker import parent
from worker.process import work

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker", description="Answer runs until told to stop.")
    parser.add_argument("--processes", type=int, metavar="N", help="start N workers and restart those that die")
    parser.add_argument("--id", type=UUID, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.processes:
        parent.keep(read(), arguments.processes)
    else:
        work(read(), arguments.id or new_id())
