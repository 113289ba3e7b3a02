"""The times of a cron expression, in a time zone. Daylight saving time is treated as in Debian's cron.

A job at certain hours and minutes whose time is left out when clocks go forward comes right after the gap; one whose
time exists twice when they go back comes the first time only. One with `*` in its minutes or hours goes by real time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

FIELDS = 5
LONGEST = 200
"""Characters of an expression."""
COUNT = 5
"""The number of times that are computed ahead."""
HORIZON = timedelta(days=8 * 366)
"""February 29 comes again within eight years, however century years fall."""

_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class WrongCron(ValueError):
    """It is no cron expression, or it has no time that ever comes."""


@cache
def zones() -> frozenset[str]:
    """Name all time zones."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())


def next_times(cron: str, timezone: str, after: datetime) -> list[datetime]:
    """Say when the next ticks are: at least one, at most `COUNT`, in UTC, each later than the one before.

    Raises:
        WrongCron: it is no cron expression, or none of its times comes within eight years.
    """
    expression = _NAMES.get(cron.strip().lower(), cron)
    if len(expression.split()) != FIELDS:
        raise WrongCron(
            "A cron expression has five fields: minute, hour, day of month, month, day of week. Or give "
            + ", ".join(_NAMES)
        )
    try:
        times = _later(CronSim(expression, after.astimezone(ZoneInfo(timezone))), after)
    except (CronSimError, ValueError) as error:
        raise WrongCron(f"{error}." if isinstance(error, CronSimError) else "A number is too long.") from None
    found = [time for time, _ in zip(times, range(COUNT), strict=False)]
    if not found:
        raise WrongCron("It says no time that comes within eight years.")
    return found


def _later(times: Iterator[datetime], after: datetime) -> Iterator[datetime]:
    """Leave out times that are not later than the one before: clocks that go back or forward make such."""
    end = after + HORIZON
    for local in times:
        time = local.astimezone(UTC)
        if time > end:
            return
        if time > after:
            yield time
            after = time
