"""The batches page in a real browser: files as people have them, progress, a long table, cancel and retry."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from playwright.async_api import Page, expect

from tests.support.client import Client
from tests.support.pages import ENDED_BATCH, PAGE_AGENTS, beyond_the_edge, drop, submit
from tests.support.service import Running, Service
from tests.support.window import Window, browsing, check_accessibility


async def asked(url: str, user_id: str, batch_id: str) -> dict[str, str]:
    """The queries of a batch by their ids."""
    async with Client(url, user_id=user_id) as client:
        page = (await client.http.get("/runs", params={"batch_id": batch_id, "limit": 100})).json()
    return {run["custom_id"]: run["query"] for run in page["items"]}


# Files as people have them: what they hold, and what is asked.

FILES: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "a CSV": ("a.csv", b"id,question\n7,Hello\n8,World\n", {"7": "Hello", "8": "World"}),
    "of a spreadsheet of Western Europe": (
        "a.csv",
        "Nr;Frage\r\n1;Größe?\r\n2;„Ja“; \r\n3;Straße\r\n".encode("cp1252"),
        {"line-2": "Größe?", "line-4": "Straße"},
    ),
    "with a mark and a word on the delimiter": (
        "a.csv",
        "\ufeffsep=;\r\nquery;id\r\nZażółć;a\r\n".encode(),
        {"a": "Zażółć"},
    ),
    "in UTF-16, by tabs": ("a.txt", "query\tid\r\nŁódź 日本\tx\r\n".encode("utf-16"), {"x": "Łódź 日本"}),
    "in UTF-16 without a mark": (
        "a.csv",
        "query,id\nhello there,x\nand you,y\n".encode("utf-16-le"),
        {"x": "hello there", "y": "and you"},
    ),
    "with quotes, commas and lines in cells": (
        "a.csv",
        b'query,note\n"say ""hi"",\nthen go",x\nnext,y\n',
        {"line-2": 'say "hi",\nthen go', "line-4": "next"},
    ),
    "with blank lines": ("a.csv", b"query,b\n\nfirst,1\n\n\nsecond,2\n\n", {"line-3": "first", "line-6": "second"}),
    "with lines as old Macs end them": (
        "a.csv",
        b"query,b\rfirst,1\rsecond,2\r",
        {"line-2": "first", "line-3": "second"},
    ),
    "with one row": ("a.csv", b"id;query\nx;What, again?\n", {"x": "What, again?"}),
    "with one row by bars and blank lines": ("a.csv", b"\n\nid|query\n\nx|hello\n\n\n", {"x": "hello"}),
    "with one column": ("a.csv", b"query\nfirst\nsecond\n", {"line-2": "first", "line-3": "second"}),
    "JSON lines": (
        "a.jsonl",
        b'{"custom_id": "a", "query": "one"}\n\n{"query": "two \\u00fc", "custom_id": "b", "x": [1]}\n',
        {"a": "one", "b": "two ü"},
    ),
    "JSON lines by another name": (
        "data.txt",
        b'{"prompt": "one"}\r\n{"prompt": "two"}\r\n',
        {"line-1": "one", "line-2": "two"},
    ),
}


@pytest.mark.parametrize(("name", "content", "expected"), FILES.values(), ids=FILES)
async def test_a_file_is_read_as_people_have_it(
    window: Window, name: str, content: bytes, expected: dict[str, str]
) -> None:
    page = await window.tab("/batches")
    await drop(page, name, content)

    batch_id = await submit(page, "echo", str(len(expected)))

    await expect(page.locator(".batch[data-status=completed]")).to_be_visible()
    assert await asked(window.url, window.user_id, batch_id) == expected


async def test_faults_are_shown_by_line_and_left_out(window: Window) -> None:
    page = await window.tab("/batches")
    await drop(page, "a.csv", b'id,query\n1,fine\n2\n3,\n1,again\n4,"open\n')

    faults = page.locator(".faults li")
    await expect(faults).to_have_text(
        [
            "Line 3: It has 1 field, the first line has 2.",
            "Line 4: Its query is empty.",
            "Line 5: Another row has the id 1.",
            "Line 6: A quote is opened and never closed.",
        ]
    )
    await expect(page.get_by_text("4 rows with faults are left out")).to_be_visible()
    await check_accessibility(page)
    batch_id = await submit(page, "echo", "1")
    assert await asked(window.url, window.user_id, batch_id) == {"1": "fine"}


async def test_a_file_fits_a_phone(pages_api: Running) -> None:
    async with browsing(pages_api.url, viewport={"width": 375, "height": 720}) as window:
        await window.sign_in()
        page = await window.tab("/batches")
        await drop(page, "questions of all our customers.csv", b"id,question\n" + b"1,What is my balance?\n" * 30)
        await expect(page.get_by_text("29 rows with faults are left out")).to_be_visible()
        await check_accessibility(page)
        assert await beyond_the_edge(page) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "The file is empty."),
        (b" \n\n", "The file is empty."),
        (b"query,id\n", "The file has no rows below its header."),
        (b"PK\x03\x04 anything", "Export the sheet as CSV"),
    ],
)
async def test_a_file_that_is_no_table_says_what_to_do(window: Window, content: bytes, problem: str) -> None:
    page = await window.tab("/batches")
    await drop(page, "a.csv", content)

    await expect(page.get_by_role("alert")).to_contain_text(problem)


async def test_people_can_say_how_a_file_is_read(window: Window) -> None:
    page = await window.tab("/batches")
    await drop(page, "a.csv", "größe|a\nstraße|b\n".encode("cp1250"))
    await page.get_by_label("The first line names the columns").uncheck()
    await page.get_by_role("combobox", name="Encoding", exact=True).select_option("windows-1250")
    await page.get_by_role("combobox", name="Delimiter", exact=True).select_option("|")
    await page.get_by_role("combobox", name="Id of a row", exact=True).select_option("Column 2")

    batch_id = await submit(page, "echo", "2")

    assert await asked(window.url, window.user_id, batch_id) == {"a": "größe", "b": "straße"}


# A batch.


async def test_results_are_shown_filtered_opened_and_downloaded(window: Window) -> None:
    page = await window.tab("/batches")
    hostile = '<img src=x onerror="document.title=1">'
    rows = [{"id": "plain", "query": "hello"}, {"id": "formula", "query": "=1+1"}, {"id": "html", "query": hostile}]
    await drop(page, "rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    batch_id = await submit(page, "parrot", "3")
    await expect(page.locator(".batch[data-status=completed]")).to_be_visible()
    await expect(page.locator(".row")).to_have_count(3)
    assert await page.locator(".row img").count() == 0
    await check_accessibility(page)

    await page.get_by_label("Filter").fill("nothing of this")
    await expect(page.get_by_text("No result fits the filter.")).to_be_visible()
    await check_accessibility(page)
    await page.get_by_label("Filter").fill("HELLO")
    await expect(page.locator(".row .id")).to_have_text(["plain"])
    await page.get_by_label("Filter").fill("")
    await page.get_by_role("combobox", name="Status", exact=True).select_option("failed")
    await expect(page.locator(".row")).to_have_count(0)
    await page.get_by_role("combobox", name="Status", exact=True).select_option("")

    async with page.expect_download() as coming:
        await page.get_by_role("button", name="Download CSV").click()
    table = (await (await coming.value).path()).read_text("utf-8-sig")
    found = {row["custom_id"]: row for row in csv.DictReader(io.StringIO(table))}
    assert {name: row["output"] for name, row in found.items()} == {
        "plain": "hello",
        "formula": "'=1+1",
        "html": hostile,
    }
    assert {row["status"] for row in found.values()} == {"succeeded"}
    async with page.expect_download() as coming:
        await page.get_by_role("link", name="Download JSON lines").click()
    lines = [json.loads(line) for line in (await (await coming.value).path()).read_text().splitlines()]
    assert {line["custom_id"] for line in lines} == {"plain", "formula", "html"}

    await page.get_by_role("button", name="html").click()
    await expect(page.locator("dialog .output")).to_contain_text("<img src=x")
    await check_accessibility(page)
    await page.get_by_role("button", name="Open as a chat").click()
    await expect(page.locator("#query")).to_have_value(hostile)
    await expect(page.get_by_role("radio", name="parrot")).to_be_checked()
    await page.goto(f"{window.url}/batches?batch={batch_id}")
    await expect(page.locator(".row")).to_have_count(3)


async def test_fields_of_the_output_are_columns(window: Window) -> None:
    page = await window.tab("/batches")
    await drop(page, "rows.csv", b"id,query\na,Report!\n")
    await submit(page, "report", "1")
    await expect(page.locator(".batch[data-status=completed]")).to_be_visible()

    async with page.expect_download() as coming:
        await page.get_by_role("button", name="Download CSV").click()
    (row,) = csv.DictReader(io.StringIO((await (await coming.value).path()).read_text("utf-8-sig")))
    assert (row["urgent"], row["risk"], row["state"]) == ("true", "7", "open")
    assert json.loads(row["remarks"]) == ["Call them", "Wait until noon"]


async def test_what_failed_is_tried_again(window: Window) -> None:
    page = await window.tab("/batches")
    await drop(page, "rows.csv", b"query,b\none,1\ntwo,2\n")
    first = await submit(page, "breaks", "2")
    await expect(page.locator(".row .status")).to_have_text(["failed", "failed"])

    await page.get_by_role("button", name="Retry 2 failed").click()

    await expect(page.get_by_role("heading", name="(retry)")).to_be_visible()
    await expect(page.locator(".batch[data-status=completed] .row")).to_have_count(2)
    assert parse_qs(urlsplit(page.url).query)["batch"] != [first]


async def test_a_batch_is_cancelled(window: Window, tmp_path: Path) -> None:
    page = await window.tab("/batches")
    await drop(page, "rows.csv", f"query,b\n{tmp_path / 'never'},1\n".encode())
    await submit(page, "patient", "1")
    await expect(page.get_by_text("1 running")).to_be_visible()

    await page.get_by_role("button", name="Cancel").click()

    await expect(page.locator(".batch[data-status=cancelled]")).to_be_visible()


async def test_a_batch_that_is_refused_says_why(service: Service) -> None:
    api = service.api(MAX_BATCH_ITEMS="2")
    service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab("/batches")
        await drop(page, "rows.csv", b"query\na\nb\nc\n")
        await page.get_by_role("button", name="Submit 3 rows").click()

        await expect(page.get_by_role("alert")).to_contain_text("2")


MOST_HEAP_BYTES = 100 << 20
"""Of a tab that shows 20,000 results."""


async def heap_bytes(window: Window, page: Page) -> float:
    """What the scripts of a page hold."""
    session = await window.context.new_cdp_session(page)
    await session.send("HeapProfiler.collectGarbage")
    return cast("dict[str, float]", await session.send("Runtime.getHeapUsage"))["usedSize"]


async def test_of_a_long_result_only_what_is_shown_is_held(service: Service) -> None:
    service.environment["AGENTS"] = PAGE_AGENTS
    api = service.api()
    service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        values = {"user": window.user_id, "agent": "parrot", "total": 600, "sentences": 4000}
        with psycopg.connect(service.database_url, autocommit=True) as connection:
            row = connection.execute(ENDED_BATCH, values).fetchone()
        assert row is not None
        page = await window.tab(f"/batches?batch={row[0]}")
        await expect(page.get_by_text("600 results")).to_be_visible()

        assert await heap_bytes(window, page) < 20 << 20, "600 results of 100 KB are 60 MB"


@pytest.mark.parametrize(
    ("rows", "deaths"),
    [
        pytest.param(1_000, 1, marks=pytest.mark.timeout(400)),
        pytest.param(20_000, 4, marks=[pytest.mark.long, pytest.mark.timeout(2400)]),
    ],
)
async def test_the_table_ends_whole_whatever_dies(service: Service, rows: int, deaths: int) -> None:
    service.environment |= {"LEASE_SECONDS": "3", "BEAT_SECONDS": "0.5", "AGENTS": PAGE_AGENTS}
    api = service.api()
    worker = service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab("/batches")
        content = "id,query\n" + "".join(f"row-{number},hello {number}\n" for number in range(rows))
        await drop(page, "rows.csv", content.encode())
        batch_id = await submit(page, "echo", f"{rows:,}")
        await expect(page.locator(".row").first).to_be_visible()

        for death in range(deaths):
            shown = page.get_by_text(re.compile(r"^[\d,]+ results$"))
            await expect(shown).to_have_text(re.compile(rf"[\d,]{{{3 + (death > 0)},}} results"))
            worker.kill()
            worker = service.worker()
        api.kill()
        again = service.api(PORT=str(urlsplit(api.url).port))

        await expect(page.locator(".batch[data-status=completed]")).to_be_visible(timeout=60_000 + 80 * rows)
        await expect(page.get_by_text(f"{rows:,} results")).to_be_visible()
        table = page.locator(".results")
        assert await table.get_attribute("aria-rowcount") == str(rows)
        assert await page.locator(".row").count() < 100
        seen: set[str] = set()
        height: Any = await table.evaluate("element => element.scrollHeight")
        for top in (0, height // 2, height):
            await table.evaluate("(element, top) => { element.scrollTop = top }", top)
            await expect(page.locator(".row").first).to_have_attribute("aria-rowindex", re.compile(r"\d+"))
            await page.wait_for_timeout(200)
            seen.update(await page.locator(".row .id").all_inner_texts())
        assert len(seen) > 60
        assert await heap_bytes(window, page) < MOST_HEAP_BYTES
        async with Client(again.url, user_id=window.user_id) as client:
            counts = (await client.http.get(f"/batches/{batch_id}")).json()["counts"]
        assert counts["succeeded"] == rows
