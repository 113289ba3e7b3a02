"""When a cron expression says something is to happen, also where clocks go forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_relay.api.schedules.cron import COUNT, HORIZON, WrongCron, next_times, zones

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)  # A Saturday.


def told(cron: str, timezone: str = "UTC", after: datetime = NOON) -> list[str]:
    """Say the next times as a person there would read them."""
    return [f"{time.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M}" for time in next_times(cron, timezone, after)]


@pytest.mark.parametrize(
    ("cron", "first", "second"),
    [
        ("* * * * *", "2026-11-28 12:01", "2026-11-28 12:02"),
        ("*/15 * * * *", "2026-11-28 12:15", "2026-11-28 12:30"),
        ("0 8 * * MON-FRI", "2026-11-30 08:00", "2026-12-01 08:00"),
        ("0 8 * * 7", "2026-11-29 08:00", "2026-12-06 08:00"),
        ("0 0 13 * FRI", "2026-12-04 00:00", "2026-12-11 00:00"),
        ("0 0 L * *", "2026-11-30 00:00", "2026-12-31 00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00", "2032-02-29 00:00"),
        ("0 0 31 * *", "2026-12-31 00:00", "2027-01-31 00:00"),
        ("@hourly", "2026-11-28 13:00", "2026-11-28 14:00"),
        (" @DAILY ", "2026-11-29 00:00", "2026-11-30 00:00"),
        ("@weekly", "2026-11-29 00:00", "2026-12-06 00:00"),
        ("@yearly", "2027-01-01 00:00", "2028-01-01 00:00"),
        ("0 12 * * *", "2026-11-29 12:00", "2026-11-30 12:00"),
    ],
)
def test_the_next_times_are_later_than_now(cron: str, first: str, second: str) -> None:
    assert told(cron)[:2] == [first, second]


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 30 2 *",
        "0 0 31 4,6,9,11 *",
        "0 0 * 2 MON#5",
        "",
        "* * * *",
        "0 * * * * *",
        "@reboot",
        "@every 5m",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "a * * * *",
        "1,, * * * *",
        "-1 * * * *",
        "1.5 * * * *",
        "٣ * * * *",
        f"{'9' * 150} * * * *",
        "H * * * *",
    ],
)
def test_what_never_comes_or_is_no_expression_is_refused(cron: str) -> None:
    with pytest.raises(WrongCron):
        next_times(cron, "UTC", NOON)


def test_a_time_that_does_not_exist_comes_right_after_the_gap() -> None:
    spring = datetime(2027, 3, 27, 12, tzinfo=UTC)  # On the 28th, 02:00 to 03:00 is left out.

    assert told("30 2 * * *", "Europe/Berlin", spring)[:2] == ["2027-03-28 03:00", "2027-03-29 02:30"]


def test_a_time_that_exists_twice_comes_once() -> None:
    autumn = datetime(2026, 10, 24, 12, tzinfo=UTC)  # On the 25th, 02:00 to 03:00 comes twice.
    between = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10 for the second time.

    assert told("30 2 * * *", "Europe/Berlin", autumn)[:2] == ["2026-10-25 02:30", "2026-10-26 02:30"]
    assert next_times("30 2 * * *", "Europe/Berlin", autumn)[0] == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert told("30 2 * * *", "Europe/Berlin", between)[0] == "2026-10-26 02:30"


def test_what_goes_by_the_hour_goes_on_in_real_time() -> None:
    spring, autumn = datetime(2027, 3, 28, 0, 30, tzinfo=UTC), datetime(2026, 10, 24, 23, 30, tzinfo=UTC)

    for after in (spring, autumn):
        times = next_times("0 * * * *", "Europe/Berlin", after)
        assert [(time - after).total_seconds() for time in times] == [1800, 5400, 9000, 12_600, 16_200]


def test_several_times_in_a_gap_are_one() -> None:
    spring = datetime(2027, 3, 27, 22, tzinfo=UTC)

    assert told("0,20,40 2,3 * * *", "Europe/Berlin", spring)[:3] == [
        "2027-03-28 03:00", "2027-03-28 03:20", "2027-03-28 03:40",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("timezone", "first"),
    [
        ("Asia/Kolkata", datetime(2026, 11, 29, 2, 30, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 28, 13, tzinfo=UTC)),
        ("Pacific/Chatham", datetime(2026, 11, 28, 18, 15, tzinfo=UTC)),
        ("Pacific/Kiritimati", datetime(2026, 11, 28, 18, tzinfo=UTC)),
    ],
)
def test_eight_o_clock_is_meant_there(timezone: str, first: datetime) -> None:
    assert next_times("0 8 * * *", timezone, NOON)[0] == first


def test_a_zone_is_one_of_the_iana() -> None:
    assert {"UTC", "Europe/Berlin", "Asia/Calcutta", "Etc/GMT+12"} <= zones()
    assert zones().isdisjoint({"", "localtime", "posixrules", "Factory/..", "europe/berlin", "../etc/passwd", "CEST"})


@given(
    st.text("0123456789*,-/LW#MONJANFE @", max_size=30)
    | st.tuples(*(st.text("0123456789*,-/L#W", min_size=1, max_size=5) for _ in range(5))).map(" ".join),
    st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    st.integers(0, 1500).map(lambda days: NOON + timedelta(days=days, seconds=days * 977)),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_given_the_times_grow_or_it_is_refused(cron: str, timezone: str, after: datetime) -> None:
    try:
        times = next_times(cron, timezone, after)
    except WrongCron:
        return
    assert 1 <= len(times) <= COUNT
    assert sorted(set(times)) == times
    assert after < times[0]
    assert times[-1] <= after + HORIZON
