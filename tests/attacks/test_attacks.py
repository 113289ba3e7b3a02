"""Attacks, each for a few seconds: `make attack` is the long form, whose bounds are those of the promise.

The loop of the attacked process is measured in time of the processor, so that its bound holds on a machine that has
little. What a bystander waits for is compared with what it waits for at a process beside that nobody attacks, in the
same seconds: what is long on both is the machine's doing.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from tests.attacks.arena import MIB, Arena, Report, arena, p99
from tests.attacks.attacker import ATTACKS
from tests.support.service import serving

SHORT: dict[str, tuple[int, float]] = {
    "requests": (1500, 20),
    "slow": (1000, 6),
    "trailers": (12, 3),
    "bombs": (4, 5),
    "readers": (10, 10),
    "uploads": (20, 4),
    "metrics": (100, 3),
    "wrong_keys": (100, 3),
    "unknown_paths": (100, 3),
    "floods": (30, 3),
    "one_user": (50, 3),
}
"""Of each attack: how many requests, connections or clients, and for how many seconds at the most."""
LONGEST_STALL_SECONDS = 0.1
STALLS_BESIDE = 10
"""A turn may be longer by so many times the longest of the process beside: the machine is that slow just now."""
LONGEST_HEALTH_SECONDS = 1.0
MOST_MEMORY = 64 * MIB
MOST_WAITS = 30
"""The attacked process has one core, and many ask it at once: a call waits its turn behind so many others."""


@pytest.fixture
async def made(new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path: Path) -> AsyncGenerator[Arena]:
    """An arena of the test's own."""
    with serving(new_database(), new_redis(), tmp_path, {"REQUEST_SECONDS": "2"}) as service, arena(service) as made:
        yield made


@pytest.mark.parametrize("name", SHORT)
async def test_an_attack_spoils_nothing(made: Arena, name: str) -> None:
    seed = random.randrange(1 << 30)
    amount, seconds = SHORT[name]
    report = await made.attack(name, seed=seed, amount=amount, seconds=seconds)
    print(f"seed={seed} {report}")
    _check(report)


def _check(report: Report) -> None:
    assert sum(report.told["counts"].values()), "it attacked"
    assert report.unintended == []
    assert report.attacked.refused == [], "a bystander is served"
    assert report.attacked.accepted
    assert max(report.attacked.health) <= LONGEST_HEALTH_SECONDS + 2 * max(report.idle.health + report.beside.accepted)
    assert report.memory_after <= MOST_MEMORY
    assert report.stall <= LONGEST_STALL_SECONDS + STALLS_BESIDE * report.stall_beside
    assert p99(report.attacked.accepted) <= MOST_WAITS * max(
        p99(report.beside.accepted), max(report.beside.accepted) / 2
    )


def test_every_attack_has_a_short_form() -> None:
    assert SHORT.keys() == ATTACKS.keys()
