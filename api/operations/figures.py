"""The figures of a span of time, in SQL, and the series that the plots are made of.

Figures are read from the rows, so no restart loses any. Those of a whole minute are stored as one small JSON document;
a plot of a day is made of 1,440 of them and touches no run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_relay.shared.database.tables import IS_UNFINISHED

MOST_GROUPS = 100
"""Combinations of agent, outcome and code in a span; the most frequent are kept."""
MOST_AGENTS = 7
"""Agents with a line of their own in a plot; the others share one."""
OTHERS = "others"
LONGEST_MESSAGE = 200
GROWTH = 1.2
"""Pick-up times are counted in classes, each this many times as wide as the one before; the first ends at 1 ms."""
LANES = ("interactive", "batch")
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_CLASS = f"floor(ln(greatest(extract(epoch FROM started_at - rung_at), 0.001) * 1000) / ln({GROWTH}))::int"


def _tokens(direction: str) -> str:
    """Sum the tokens of runs in SQL; a value that is not a number counts as 0."""
    field = f"usage -> '{direction}_tokens'"
    return f"coalesce(sum(CASE jsonb_typeof({field}) WHEN 'number' THEN ({field})::numeric END), 0)"


FLOW = f"""
    jsonb_build_object(
        'ended', coalesce((
            SELECT jsonb_agg(jsonb_build_array(agent_type, status, code, runs, tokens, run_id, message))
            FROM (
                SELECT agent_type, status, coalesce(error ->> 'code', '') AS code, count(*) AS runs,
                    {_tokens("input")} + {_tokens("output")} AS tokens,
                    (array_agg(id ORDER BY finished_at DESC) FILTER (WHERE status = 'failed'))[1] AS run_id,
                    (array_agg(left(error ->> 'message', {LONGEST_MESSAGE}) ORDER BY finished_at DESC)
                        FILTER (WHERE status = 'failed'))[1] AS message
                FROM runs WHERE finished_at >= {{since}} AND finished_at < {{until}}
                GROUP BY 1, 2, 3 ORDER BY runs DESC LIMIT {MOST_GROUPS}
            ) AS groups), '[]'),
        'picked_up', coalesce((
            SELECT jsonb_object_agg(lane, classes) FROM (
                SELECT lane, jsonb_object_agg(class, runs) AS classes FROM (
                    SELECT lane, {_CLASS} AS class, count(*) AS runs FROM (
                        SELECT lane, started_at, rung_at FROM runs WHERE finished_at >= {{since}}
                        UNION ALL
                        SELECT lane, started_at, rung_at FROM runs WHERE status = 'running'
                    ) AS begun
                    WHERE started_at >= {{since}} AND started_at < {{until}} AND rung_at <= started_at GROUP BY 1, 2
                ) AS counted GROUP BY lane
            ) AS lanes), '{{{{}}}}')
    )
"""  # noqa: S608  (constants)
"""Events of a span: runs that ended and runs that a worker began. The pick-up of a run that was enqueued again after
its first attempt is not known any more, and it is left out."""

STATE = f"""
    jsonb_build_object(
        'queues', coalesce((
            SELECT jsonb_agg(jsonb_build_array(pool, lane, status, runs, round(oldest::numeric, 1))) FROM (
                SELECT pool, lane, status, count(*) AS runs,
                    greatest(extract(epoch FROM now() - min(greatest(created_at, start_at))), 0) AS oldest
                FROM runs WHERE {IS_UNFINISHED} AND NOT starts_later GROUP BY pool, lane, status
            ) AS unfinished), '[]'),
        'streams', (SELECT coalesce(sum(streams), 0) FROM api_processes WHERE seen_at > now() - interval '15 seconds')
    )
"""  # noqa: S608  (a constant)
"""How much there is at this moment."""


@dataclass(frozen=True, slots=True)
class Window:
    """A plot's length, and how far apart its points are; both in seconds."""

    seconds: int
    step: int


WINDOWS = {"15m": Window(900, 60), "3h": Window(10_800, 120), "1d": Window(86_400, 900)}

Minute = tuple[int, Mapping[str, Any]]
"""When a minute began, in seconds since 1970, and its figures."""


@dataclass(slots=True)
class Sums:
    """Figures of one minute or more, added up."""

    minutes: int = 0
    seen: int = 0
    """Minutes in which a process looked at the queues."""
    ended: Counter[str] = field(default_factory=Counter[str])
    """Runs by status."""
    agents: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict[str, Counter[str]](Counter[str]))
    """Runs by agent and status."""
    tokens: float = 0
    classes: defaultdict[str, Counter[int]] = field(
        default_factory=lambda: defaultdict[str, Counter[int]](Counter[int])
    )
    """Pick-ups by lane and class."""
    queued: Counter[str] = field(default_factory=Counter[str])
    oldest: Counter[str] = field(default_factory=Counter[str])
    streams: int = 0
    failed: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict[tuple[str, str], dict[str, Any]])

    def add(self, figures: Mapping[str, Any]) -> None:
        """Add the figures of a minute, which is later than those before."""
        self.minutes += 1
        for agent, status, code, runs, tokens, run_id, message in figures["ended"]:
            self.ended[status] += runs
            self.agents[agent][status] += runs
            self.tokens += tokens
            if status == "failed":
                group = self.failed.setdefault((code, agent), {"code": code, "agent": agent, "runs": 0})
                group |= {"runs": group["runs"] + runs, "run_id": run_id, "message": message}
        for lane, classes in figures["picked_up"].items():
            for number, runs in classes.items():
                self.classes[lane][int(number)] += runs
        if "queues" in figures:
            self._see(figures)

    def _see(self, figures: Mapping[str, Any]) -> None:
        """Keep the maximum of a gauge."""
        self.seen += 1
        queued, oldest = Counter[str](), Counter[str]()
        for _, lane, status, runs, age in figures["queues"]:
            if status == "queued":
                queued[lane] += runs
                oldest[lane] = max(oldest[lane], age)
        self.queued |= queued
        self.oldest |= oldest
        self.streams = max(self.streams, figures["streams"])

    def pick_up(self, lane: str) -> dict[str, float | None]:
        """Tell the seconds until a worker began, by percentile."""
        return {name: percentile(self.classes[lane], share) for name, share in PERCENTILES.items()}

    def failures(self) -> list[dict[str, Any]]:
        """List the failed runs by code and agent, the most frequent first; `run_id` and `message` are of the last."""
        return sorted(self.failed.values(), key=lambda group: -group["runs"])


def series(minutes: Sequence[Minute], window: Window, until: int) -> dict[str, Any]:
    """Make the columns of the plots of a window that ends at `until`, in seconds since 1970.

    Each has a value for each point, null if it is not known. Runs are per minute, tokens per second, times in seconds;
    queues, ages and streams are the maximum of each step.
    """
    last = until - until % window.step
    first = last - window.seconds + window.step
    steps = {at: Sums() for at in range(first, last + 1, window.step)}
    whole = Sums()
    for minute, figures in minutes:
        if (step := minute - minute % window.step) in steps:
            steps[step].add(figures)
            whole.add(figures)

    def column(value: Callable[[Sums], Any]) -> list[Any]:
        return [value(sums) if sums.minutes else None for sums in steps.values()]

    def seen(value: Callable[[Sums], Any]) -> list[Any]:
        return [value(sums) if sums.seen else None for sums in steps.values()]

    totals = Counter({agent: counts.total() for agent, counts in whole.agents.items()})
    lines = [agent for agent, _ in totals.most_common(MOST_AGENTS)]
    agents = {
        agent: column(lambda sums, agent=agent: round(sums.agents[agent].total() / sums.minutes, 2)) for agent in lines
    }
    if len(totals) > MOST_AGENTS:
        agents[OTHERS] = column(lambda sums: round(_besides(lines, sums) / sums.minutes, 2))
    return {
        "at": list(steps),
        "ended": {
            status: column(lambda sums, status=status: round(sums.ended[status] / sums.minutes, 2))
            for status in ("succeeded", "failed", "cancelled")
        },
        "agents": agents,
        "tokens": column(lambda sums: round(sums.tokens / (60 * sums.minutes), 2)),
        "pick_up": {
            name: column(lambda sums, share=share: percentile(sums.classes["interactive"], share))
            for name, share in PERCENTILES.items()
        },
        "queued": {lane: seen(lambda sums, lane=lane: sums.queued[lane]) for lane in LANES},
        "oldest": {lane: seen(lambda sums, lane=lane: sums.oldest[lane]) for lane in LANES},
        "streams": seen(lambda sums: sums.streams),
        "failures": whole.failures(),
    }


def last_minute(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up what happened in the last minute, as the page shows it beside the plots."""
    sums = Sums()
    sums.add(figures)
    return {
        "ended": sums.ended,
        "agents": sums.agents,
        "tokens": round(sums.tokens / 60, 2),
        "pick_up": {lane: sums.pick_up(lane) for lane in LANES},
        "failures": sums.failures(),
    }


def percentile(classes: Mapping[int, int], share: float) -> float | None:
    """Tell the seconds that this share of the pick-ups took at most, within a tenth; None where there were none."""
    total = sum(classes.values())
    seen = 0
    for number in sorted(classes):
        seen += classes[number]
        if seen >= share * total:
            return round(GROWTH ** (number + 0.5) / 1000, 4)
    return None


def _besides(lines: Sequence[str], sums: Sums) -> int:
    return sums.ended.total() - sum(sums.agents[agent].total() for agent in lines)
