"""`python -m tests.attacks [NAME …]`: attack a service in full, print what came of it, and see to the bounds."""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.shared.migrations.upgrade import upgrade
from benchmarks.rounds import table
from tests.attacks.arena import MIB, Arena, Report, arena, p99
from tests.support.service import serving

FULL: dict[str, tuple[int, float, int]] = {
    "requests": (25_000, 300, 4),
    "slow": (1000, 20, 3),
    "trailers": (24, 10, 3),
    "bombs": (8, 20, 3),
    "readers": (100, 20, 3),
    "uploads": (20, 10, 3),
    "metrics": (100, 10, 3),
    "wrong_keys": (100, 10, 3),
    "unknown_paths": (100, 10, 3),
    "floods": (50, 10, 3),
    "one_user": (100, 60, 2),
}
"""Of each attack: how many requests, connections or clients, for how many seconds at the most, and how often."""
IDLE_SECONDS = 10
LONGEST_STALL_SECONDS = 0.1
LONGEST_HEALTH_SECONDS = 1.0
MOST_MEMORY = 64 * MIB
MOST_WAITS = 5
"""A bystander's p99 under attack, in units of what it waits for without."""
MOST_WAITS_BESIDE_ONE_USER = 3


@contextmanager
def _arena(stacks: Path | None) -> Generator[Arena]:
    with PostgresServer() as postgres, RedisServer() as redis, TemporaryDirectory() as folder:
        postgres.ensure_database()
        upgrade(postgres.url().replace("postgresql://", "postgresql+psycopg://"))
        with serving(postgres.url(), redis.url(), Path(folder)) as service, arena(service, stacks) as made:
            yield made


async def main(names: list[str], seed: int, stacks: Path | None) -> bool:
    """Attack; returns whether all bounds hold."""
    missed = False
    with _arena(stacks) as made:
        rows: list[list[object]] = []
        for name in names:
            amount, seconds, rounds = FULL[name]
            report = await made.attack(
                name, seed=seed, amount=amount, seconds=seconds, rounds=rounds, idle_seconds=IDLE_SECONDS
            )
            rows.append(_row(report))
            print(name, report.told, report.attacked.refused[:3], flush=True)
            for sentence in _missed(report):
                missed = True
                print(f"MISSED: {name}: {sentence}", flush=True)
    table(
        f"Attacks, seed {seed}; a bystander's waits are p99 under attack / between attacks",
        [
            "attack",
            "seconds",
            "answers",
            "stall, CPU ms",
            "clock ms",
            "beside, CPU ms",
            "memory peak, MiB",
            "after, MiB",
            "disk, MiB",
            "refused",
            "health, worst ms",
            "accepted, ms",
            "beside, ms",
            "ratio",
            "picked up, ms",
            "ratio",
        ],
        rows,
    )
    return not missed


def _missed(report: Report) -> Generator[str]:
    """Say which bounds do not hold."""
    most = MOST_WAITS_BESIDE_ONE_USER if report.name == "one_user" else MOST_WAITS
    for what, value, bound in (
        ("stall, s", report.stall, LONGEST_STALL_SECONDS),
        ("health, s", max(report.attacked.health, default=math.inf), LONGEST_HEALTH_SECONDS),
        ("memory after, bytes", report.memory_after, MOST_MEMORY),
        ("accepted, p99 ratio", p99(report.attacked.accepted) / _usual(report), most),
        ("picked up, p99 ratio", p99(report.attacked.picked_up) / p99(report.idle.picked_up), most),
    ):
        if value > bound:
            yield f"{what}: {value:.3g}, and may be {bound:g}"
    yield from (f"an answer: {line}" for line in report.unintended)
    yield from (f"refused: {line}" for line in report.attacked.refused[:3])


def _usual(report: Report) -> float:
    """Say what the bystander's p99 is without an attack: between attacks or, meanwhile, at the process beside.

    An attacker, a worker and two servers on one machine take time from all processes, the one beside included.
    """
    return max(p99(report.idle.accepted), p99(report.beside.accepted))


def _row(report: Report) -> list[object]:
    answers = dict(report.told["counts"])
    return [
        report.name,
        f"{report.told['seconds']:.0f}",
        ", ".join(f"{name}: {count:,}" for name, count in sorted(answers.items())),
        f"{report.stall * 1000:.0f}",
        f"{report.stall_wall * 1000:.0f}",
        f"{report.stall_beside * 1000:.0f}",
        f"{report.memory_peak / MIB:.0f}",
        f"{report.memory_after / MIB:.0f}",
        f"{report.disk_peak / MIB:.0f}",
        len(report.attacked.refused),
        f"{max(report.attacked.health, default=0) * 1000:.0f}",
        f"{p99(report.attacked.accepted) * 1000:.0f} / {p99(report.idle.accepted) * 1000:.0f}",
        f"{p99(report.beside.accepted) * 1000:.0f}",
        f"{p99(report.attacked.accepted) / _usual(report):.1f}",
        f"{p99(report.attacked.picked_up) * 1000:.0f} / {p99(report.idle.picked_up) * 1000:.0f}",
        f"{p99(report.attacked.picked_up) / p99(report.idle.picked_up):.1f}",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(FULL))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--stacks", type=Path, help="a file for the stacks of turns of the loop that take long")
    asked = parser.parse_args()
    sys.exit(0 if asyncio.run(main(asked.names, asked.seed, asked.stacks)) else 1)
