"""API and worker processes that say when a run was committed and when its claim returned, by a clock they share.

`python -m benchmarks.stamped api`, or `worker`. They are the product's own; a line is written after each of the two.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from api import __main__ as api
from api import asking
from tests.service import Running
from worker import __main__ as worker
from worker import job

_accept, _claim, _claim_many = asking.accept, job.claim, job.claim_many


def _stamp(what: str, run_id: UUID) -> None:
    print(f"stamped.{what} {run_id} {time.monotonic_ns()}", flush=True)


async def accept(*arguments: Any, **options: Any) -> Any:
    """Store a run, and say when it was."""
    accepted = await _accept(*arguments, **options)
    _stamp("committed", accepted.run.id)
    return accepted


async def claim(*arguments: Any, **options: Any) -> Any:
    """Claim a run, and say when it was."""
    claimed = await _claim(*arguments, **options)
    if claimed is not None:
        _stamp("claimed", claimed.run_id)
    return claimed


async def claim_many(*arguments: Any, **options: Any) -> Any:
    """Claim runs, and say when they were."""
    claimed = await _claim_many(*arguments, **options)
    for run_id in claimed:
        _stamp("claimed", run_id)
    return claimed


def stamps(processes: Iterable[Running], what: str) -> dict[str, int]:
    """Read what processes said, nanoseconds by run."""
    lines = (
        line
        for running in processes
        for line in re.findall(rf"^stamped\.{what} (\S+) (\d+)$", running.log.read_text(), re.MULTILINE)
    )
    return {run_id: int(nanoseconds) for run_id, nanoseconds in lines}


if __name__ == "__main__":
    asking.accept, job.claim, job.claim_many = accept, claim, claim_many
    {"api": api, "worker": worker}[sys.argv.pop(1)].main()
