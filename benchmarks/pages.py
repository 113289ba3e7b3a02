"""What the pages cost: script, the first paint, a table of 20,000 results, and an operations page that is open.

5,000 runs are in progress on 100 workers, and a day of minutes is recorded. Words after it choose: `pages`, `results`,
`operations`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, LiteralString
from uuid import UUID

import httpx
import psycopg
import uvloop
from playwright.async_api import Page, expect

from agent_relay.shared.tasks import stop
from benchmarks.crowded import SLOTS, WORKERS, crowd
from benchmarks.rounds import Spread, table
from benchmarks.stage import Stage, stage
from tests.support.pages import ENDED_BATCH
from tests.support.service import OPERATOR_KEY, Running
from tests.support.window import Window, browsing

ROUNDS = 5
RESULTS = 20_000
WATCH_SECONDS = 60.0
FRAME_MS = 1000 / 60

_MINUTES: LiteralString = """
    INSERT INTO service_minutes
    SELECT date_trunc('minute', now()) - make_interval(mins => ago), jsonb_build_object(
        'ended', (SELECT jsonb_agg(jsonb_build_array('agent-' || agent, status, '', 10 + ago % 7, 900, NULL, NULL))
                  FROM generate_series(1, 10) AS agent, unnest(ARRAY['succeeded', 'cancelled']) AS status),
        'picked_up', jsonb_build_object('interactive', jsonb_build_object('8', 40, '12', 20, '30', 1)),
        'queues', '[["default", "interactive", "queued", 12, 1.5], ["default", "batch", "queued", 900, 60]]'::jsonb,
        'streams', 40)
    FROM generate_series(2, 1440) AS ago
"""

_SCROLL = """
    async ({ seconds, box }) => {
        const element = document.querySelector(box);
        const times = [];
        const began = performance.now();
        await new Promise((resolve) => {
            const frame = (at) => {
                times.push(at);
                const share = (performance.now() - began) / (seconds * 1000);
                element.scrollTop = (element.scrollHeight - element.clientHeight) * share;
                if (performance.now() - began < seconds * 1000) requestAnimationFrame(frame);
                else resolve();
            };
            requestAnimationFrame(frame);
        });
        return times.slice(1).map((at, index) => at - times[index]);
    }
"""

_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def store(on: Stage, statement: LiteralString, values: dict[str, Any] | None = None) -> Any:
    """Change the database; returns the first column of the first row."""
    with psycopg.connect(on.postgres.url(), autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        row = cursor.fetchone() if cursor.description else None
        connection.execute("VACUUM ANALYZE")
        return row and row[0]


async def operate(page: Page) -> None:
    """Sign in as an operator."""
    await page.get_by_label("Key of an operator").fill(OPERATOR_KEY)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("main.ops[data-ready=true]")).to_be_visible()


@asynccontextmanager
async def signed_in(api: Running, *, operator: bool) -> AsyncGenerator[Window]:
    """Open a browser with an empty cache that is signed in."""
    async with browsing(api.url) as window:
        if operator:
            await operate(page := await window.tab("/ops"))
            await page.close()
        else:
            await window.sign_in()
        yield window


async def painted(api: Running, path: str) -> tuple[int, float, float]:
    """Open a page anew; returns the compressed bytes of its scripts, ms to its first paint, and until it shows data."""
    async with httpx.AsyncClient(base_url=api.url) as http:
        html = (await http.get(path)).text
        names = [piece.split('"')[0] for piece in html.split('="./')[1:] if piece.split('"')[0].endswith(".js")]
        bytes_ = sum([int((await http.head(f"/{name}")).headers["content-length"]) for name in names])
    async with signed_in(api, operator=path == "/ops") as window:
        context = await window.context.browser.new_context(storage_state=await window.context.storage_state())  # pyright: ignore[reportOptionalMemberAccess]
        page = await context.new_page()
        began = time.perf_counter()
        await page.goto(api.url + path)
        ready = {"/": ".agents", "/batches": ".drop", "/ops": "main.ops[data-ready=true]", "/sign-in": "main, .agents"}
        await page.locator(ready[path]).first.wait_for()
        shown = (time.perf_counter() - began) * 1000
        paint = await (await page.wait_for_function(_PAINT)).json_value()  # Data may be there before it is painted.
        return bytes_, paint, shown


async def pages(_: Stage, api: Running) -> None:
    """Measure each page."""
    rows: list[list[Any]] = []
    for path in ("/", "/batches", "/ops"):
        figures = [await painted(api, path) for _ in range(ROUNDS)]
        sizes, paints, shown = zip(*figures, strict=True)
        rows.append([f"`{path}`", f"{sizes[0] / 1000:.1f}", Spread.of(paints), Spread.of(shown), "at most 150; 1,000"])
    heads = ["", "script, compressed kB", "first paint, ms", "data shown, ms", "target"]
    table(f"Pages in a browser with an empty cache, {ROUNDS} rounds", heads, rows)


async def results(on: Stage, api: Running) -> None:
    """Scroll through the results of a batch, from its beginning to its end."""
    rows: list[list[Any]] = []
    async with signed_in(api, operator=False) as window:
        values = {"user": window.user_id, "agent": "words", "total": RESULTS, "sentences": 20}
        batch_id: UUID = store(on, ENDED_BATCH, values)
        page = await window.tab(f"/batches?batch={batch_id}")
        metrics = await window.context.new_cdp_session(page)
        await expect(page.locator(".results")).to_have_attribute("aria-rowcount", str(RESULTS))
        await metrics.send("HeapProfiler.collectGarbage")
        for seconds in (5, 20):
            before = await _metrics(metrics)
            frames: list[float] = await page.evaluate(_SCROLL, {"seconds": seconds, "box": ".results"})
            late = sum(frame > 1.5 * FRAME_MS for frame in frames)
            share = f"{100 * late / len(frames):.1f}"
            rate = f"{len(frames) / seconds:.1f}"
            after = await _metrics(metrics)
            work = [f"{1000 * (after[name] - before[name]) / len(frames):.1f}" for name in _WORK]
            how = f"{seconds} s from the first to the last"
            rows.append([how, rate, f"{statistics.median(frames):.1f}", share, *work])
        await metrics.send("HeapProfiler.collectGarbage")
        heap = (await _metrics(metrics))["JSHeapUsedSize"]
        elements = await page.locator(".results .row").count()
    work = ["all", "script", "style", "layout"]
    heads = ["", "frames a second", "median, ms", "later than 25 ms, %", *(f"{each}, ms a frame" for each in work)]
    table(f"Scrolling {RESULTS:,} results", heads, rows)
    print(f"JavaScript heap {heap / 1e6:.1f} MB; {elements} rows are elements.")


_WORK = ("TaskDuration", "ScriptDuration", "RecalcStyleDuration", "LayoutDuration")
"""What the main thread of a page does, in seconds."""


async def _metrics(session: Any) -> dict[str, float]:
    await session.send("Performance.enable")
    found = (await session.send("Performance.getMetrics"))["metrics"]
    return {each["name"]: each["value"] for each in found}


async def operations(on: Stage, api: Running) -> None:
    """Watch, with 5,000 runs in progress on 100 workers and with none."""
    rows: list[list[Any]] = []
    for runs in (0, WORKERS * SLOTS):
        if runs:
            await crowd(on)
        alone = await _cost(on, api)
        ticks: list[int] = []
        watched = await _cost(on, api, ticks)
        cpu = (watched[0] - alone[0]) / WATCH_SECONDS
        queries = (watched[1] - alone[1]) / max(len(ticks), 1)
        first, *later = ticks
        rows.append(
            [
                f"{runs:,}",
                f"{len(ticks)}",
                f"{first / 1000:.1f}",
                f"{statistics.median(later) / 1000:.1f}",
                f"{queries:.1f}",
                f"{100 * cpu:.2f}",
                "at most 0.5",
            ]
        )
    heads = [
        "runs in progress",
        f"ticks in {WATCH_SECONDS:g} s",
        "first, kB",
        "a tick, kB",
        "queries a tick",
        "CPU, %",
        "",
    ]
    table("An operations page that is open, and what the service spends on it", heads, rows)


async def _cost(on: Stage, api: Running, ticks: list[int] | None = None) -> tuple[float, int]:
    """Count the CPU seconds and the transactions of a while; with `ticks`, a page watches, and their bytes go there."""
    watching = None
    if ticks is not None:
        watching = asyncio.create_task(_watch(api, ticks, opened := asyncio.Event()))
        await opened.wait()  # Opening it is not what is measured.
    before = on.cpu_seconds(api), await _transactions(on)
    await asyncio.sleep(WATCH_SECONDS)
    spent = on.cpu_seconds(api) - before[0], await _transactions(on) - before[1]
    if watching is not None:
        await stop([watching])
    return spent


async def _watch(api: Running, ticks: list[int], opened: asyncio.Event) -> None:
    headers = {"X-API-Key": OPERATOR_KEY}
    got = b""
    size = 0
    async with (
        httpx.AsyncClient(base_url=api.url, headers=headers, timeout=60) as http,
        http.stream("GET", "/console/operations") as response,
    ):
        async for chunk in response.aiter_raw():
            got += chunk
            while b"\n\n" in got:
                event, _, got = got.partition(b"\n\n")
                size += len(event) + 2
                if event.startswith(b"event: now"):
                    ticks.append(size)
                    opened.set()
                    size = 0


async def _transactions(on: Stage) -> int:
    await asyncio.sleep(1.1)  # Until sessions have told what they did.
    with psycopg.connect(on.postgres.url()) as connection:
        row = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row
    return row[0]


async def main(chosen: list[str]) -> None:
    """Measure what is chosen, or all."""
    parts = {"pages": pages, "results": results, "operations": operations}
    with stage() as on:
        on.register_agents()
        store(on, _MINUTES)
        api = on.service.api()
        for name, part in parts.items():
            if not chosen or name in chosen:
                await part(on, api)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
