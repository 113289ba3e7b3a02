"""The soak: everything that can be broken is broken while clients ask; afterwards everything must be as if nothing had.

The seed is printed; `SEED=… make test-faults` breaks and asks the same again.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.guests import MISDEEDS, misdeed_of
from tests.faults.history import Breakage
from tests.faults.invariants import check
from tests.faults.soak import Plan, report, soak, summary

SEED = int(os.environ.get("SEED", random.randrange(1_000_000)))
SHORT = Plan(SEED, seconds=20, runs_a_second=2.2, guests_a_second=0.6, errands_a_second=0.15, look_back_at=40)
LONG = Plan(SEED, seconds=600, runs_a_second=2.5, guests_a_second=0.5, errands_a_second=0.6, look_back_at=300)


@pytest.mark.timeout(400)
async def test_nothing_is_lost_whatever_dies(tmp_path: Path) -> None:
    history = await soak(SHORT, tmp_path)
    violations = check(history)

    print(summary(history))  # noqa: T201
    assert not violations, report(history, violations)
    assert history.guests
    assert history.errands
    assert {broken.kind for broken in history.broken} == set(Breakage)


@pytest.mark.long
@pytest.mark.timeout(1500)
async def test_nothing_is_lost_in_ten_minutes(tmp_path: Path) -> None:
    history = await soak(LONG, tmp_path)
    violations = check(history)
    broken = Counter(broken.kind for broken in history.broken)

    print(summary(history))  # noqa: T201
    assert not violations, report(history, violations)
    assert len(history.rows) - len(history.guests) >= 1000
    assert {misdeed_of(history.rows[run_id]["query"]).name for run_id in history.guests} == set(MISDEEDS)
    assert broken[Breakage.KILLED] >= 50
    assert broken[Breakage.FROZEN] >= 50
    assert min(broken[kind] for kind in Breakage) >= 1
