"""One soak: a house, clients, a vandal; then quiet, and a look at everything that was seen.

`python -m tests.faults.soak --seconds 600 --seed 7` runs one and says what it found.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.faults.faults import Vandal, schedule
from tests.faults.history import Breakage, History
from tests.faults.house import House
from tests.faults.invariants import Violation, check
from tests.faults.load import Load
from tests.faults.timeline import timeline
from tests.faults.witnesses import (
    Scales,
    feel_the_pulse,
    let_time_pass,
    listen,
    record_changes,
    testify,
    unsettled_runs,
)

LEASE_SECONDS = 5
POOL_SIZE = 10
ENVIRONMENT = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "BEAT_SECONDS": "1",
    "DRAIN_SECONDS": "1",
    "WORKER_SLOTS": "10",
    "SUSPECTS_AT_ONCE": "2",
    "DATABASE_POOL_SIZE": str(POOL_SIZE),
}
QUIET_SECONDS = 120
WEIGH_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak is made of; the same plan breaks and asks the same."""

    seed: int
    seconds: float
    runs_a_second: float
    guests_a_second: float
    errands_a_second: float
    look_back_at: int
    """How many runs are read again in the end."""


async def soak(plan: Plan, folder: Path) -> History:
    """Do it; returns everything that happened."""
    print(f"seed {plan.seed}, {plan.seconds:g} seconds; logs in {folder}", flush=True)  # noqa: T201
    history = History(lease_seconds=LEASE_SECONDS)
    house = House(plan.seed, folder, history, ENVIRONMENT)
    async with house.living():
        record_changes(house.database_url)
        load, scales = Load(plan.seed, history, house.api_urls), Scales(house)
        watching = [
            asyncio.create_task(watch)
            for watch in (listen(house), feel_the_pulse(house), _weigh(scales), load.answer())
        ]
        try:
            await load.plan()
            ticking = asyncio.create_task(let_time_pass(house, plan.seed, plan.errands_a_second))
            watching.append(ticking)
            async with asyncio.TaskGroup() as together:
                together.create_task(load.send_on_errands(plan.seconds, plan.errands_a_second))
                together.create_task(load.run(plan.seconds, plan.runs_a_second))
                together.create_task(load.receive(plan.seconds, plan.guests_a_second))
                together.create_task(Vandal(house, LEASE_SECONDS).run(schedule(plan.seed, plan.seconds)))
            ticking.cancel()
            await load.settle()
            await _quiet(house)
            await load.look_back(plan.look_back_at)
            await scales.compare(POOL_SIZE)
            house.read_the_logs()
            await testify(house)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await load.close()
    return history


async def _weigh(scales: Scales) -> None:
    while True:
        await asyncio.to_thread(scales.weigh)
        await asyncio.sleep(WEIGH_SECONDS)


async def _quiet(house: House) -> None:
    """Wait until no run is under way; one that never ends is found by its invariant."""
    end = time.monotonic() + QUIET_SECONDS
    while await asyncio.to_thread(unsettled_runs, house.database_url) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    await asyncio.sleep(1)


def summary(history: History) -> str:
    """Say what was done and what came of it."""
    ends = Counter(row["error"]["code"] if row["error"] else row["status"] for row in history.rows.values())
    broken = Counter(str(broken.kind) for broken in history.broken)
    failpoints = Counter(broken.what for broken in history.broken if broken.what.startswith("at "))
    guests = Counter(history.rows[run_id]["query"].split()[0] for run_id in history.guests)
    attempts = Counter(row["attempt"] for row in history.rows.values())
    crashes = Counter(row["crashes"] for row in history.rows.values())
    events = sum(len(reader.events) for reader in history.readers)
    pieces = sum(len(reader.pieces) for reader in history.readers)
    gaps = sum(event["event"] == "gap" for reader in history.readers for event in reader.events)
    return "\n".join(
        [
            f"{len(history.rows)} runs of {len(history.asked)} queries: {_listed(ends)}",
            f"{len(history.guests)} of them of guests, which did {len(guests)} things: {_listed(guests)}",
            f"{len(history.errands)} of them errands: {_done(history)}",
            f"attempts: {_listed(attempts)}; crashes: {_listed(crashes)}",
            f"broken: {_listed(broken)}",
            f"of these, at failpoints: {_listed(failpoints)}",
            f"{len(history.readers)} readers in {pieces} connections were told {events} events, {gaps} of them gaps",
            f"PostgreSQL itself was slow {len(history.slow)} times",
            *recoveries(history),
        ]
    )


def _done(history: History) -> str:
    """Say what errands came to."""
    told = [row for row in history.messages_into_runs if row["place"] <= history.taken_in[row["run_id"]]]
    answered = [row for row in history.requests if row["answer"] is not None]
    ticked = [row for row in history.rows.values() if row["schedule_id"] is not None]
    begun = Counter((line.run_id, line.call_id) for line in history.ledger if line.what == "begun")
    again = sum(times - 1 for times in begun.values())
    return (
        f"{len(begun)} calls, {again} of them made again; {len(history.steps)} steps stored; {len(answered)} answers "
        f"of {len(history.given)} calls; {len(history.sent)} messages sent, {len(told)} taken in; {len(ticked)} ticks"
    )


def recoveries(history: History) -> list[str]:
    """Say how long it took from each kill to the next attempt of what the killed process held."""
    seconds: dict[str, list[float]] = {}
    for changes in history.changes_of.values():
        for number, change in enumerate(changes):
            if change.before is None or change.before["status"] != "running":
                continue
            if change.row["crashes"] == change.before["crashes"] or change.row["status"] != "queued":
                continue
            pid = history.workers.get(change.before["worker_id"])
            killed = [broken for broken in history.breakages(Breakage.KILLED, until=change.at) if pid in broken.pids]
            claimed = next((later for later in changes[number:] if later.row["status"] == "running"), None)
            if killed and claimed:
                seconds.setdefault(killed[-1].what, []).append(claimed.at - killed[-1].at)
    return [
        f"from the kill of {what} to the next attempt: {len(took)} runs, "
        f"median {statistics.median(took):.1f} s, longest {max(took):.1f} s"
        for what, took in sorted(seconds.items())
    ]


def report(history: History, violations: list[Violation], most: int = 5) -> str:
    """Say what was violated, with the story of each run that it happened to."""
    lines = [f"{len(violations)} violations: {_listed(Counter(violation.invariant for violation in violations))}"]
    lines += [str(violation) for violation in violations]
    for run_id in list(dict.fromkeys(violation.run_id for violation in violations if violation.run_id))[:most]:
        lines += ["", timeline(history, run_id)]
    return "\n".join(lines)


def _listed(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items(), key=str)) or "none"


def main() -> int:
    """Run one by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Shake the house.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--rate", type=float, default=2.5, help="runs a second")
    parser.add_argument("--guests", type=float, default=0.5, help="runs of guests a second")
    parser.add_argument("--errands", type=float, default=0.5, help="runs a second that call tools and wait")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    plan = Plan(chosen.seed, chosen.seconds, chosen.rate, chosen.guests, chosen.errands, 200)
    history = asyncio.run(soak(plan, folder))
    (folder / "history.pickle").write_bytes(pickle.dumps(history))
    violations = check(history)
    print(f"{summary(history)}\n{report(history, violations)}")  # noqa: T201
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
