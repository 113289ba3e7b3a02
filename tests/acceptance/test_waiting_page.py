"""What a run waits for, asked of a person in a real browser: approvals, questions, results from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Locator, Page, expect

from tests.support.client import Client
from tests.support.pages import PAGE_AGENTS, answer, drop, submit
from tests.support.service import Running, Service
from tests.support.waiting_agents import LEDGER
from tests.support.window import Window, ask, browsing, check_accessibility

LARGE = 12345678901234567891
"""An integer that a number of JavaScript cannot hold."""


async def asked(window: Window, *calls: tuple[str, dict[str, Any]]) -> Page:
    """Open a page whose run waits, because its agent calls these tools."""
    page = await window.tab()
    await ask(page, json.dumps([calls]), "asks")
    await expect(answer(page, "waiting").locator(".request")).to_have_count(len(calls))
    return page


def request(page: Page, tool: str) -> Locator:
    """What is shown of a tool's request."""
    return page.locator(".request").filter(has=page.locator(".asks code", has_text=re.compile(f"^{tool}$")))


async def test_an_approval_outlives_a_reload_and_every_process(service: Service, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    service.environment |= {"AGENTS": PAGE_AGENTS, LEDGER: str(ledger)}
    api, worker = service.api(), service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await asked(window, ("pay", {"amount": 3}))
        await expect(request(page, "pay")).to_contain_text("May it call pay")
        await expect(request(page, "pay").locator("pre")).to_contain_text('"amount": 3')
        await expect(answer(page, "waiting").locator(".step .state")).to_have_text("waits for an answer")
        await check_accessibility(page)
        worker.kill()
        api.kill()
        service.api(PORT=str(urlsplit(api.url).port))

        await page.reload()
        await expect(request(page, "pay").locator("pre")).to_contain_text('"amount": 3')
        assert ledger.read_text() == ""
        await request(page, "pay").get_by_role("button", name="Approve").press("Enter")
        await expect(request(page, "pay")).to_contain_text("Approved")
        await expect(request(page, "pay").get_by_role("button")).to_have_count(0)
        service.worker()

        await expect(answer(page)).to_contain_text("pay: paid 3")
        await expect(answer(page)).not_to_contain_text("Attempt 2")
        await page.reload()
        await expect(answer(page)).to_contain_text("pay: paid 3")
        await expect(request(page, "pay")).to_contain_text("Approved")
    assert ledger.read_text().split() == ["3"]


async def test_arguments_are_changed_before_they_are_approved(window: Window) -> None:
    page = await asked(window, ("pay", {"amount": LARGE}))
    pay = request(page, "pay")
    await expect(pay.locator("pre")).to_contain_text(str(LARGE))
    await pay.get_by_role("button", name="Edit arguments").click()
    field = pay.get_by_label("Arguments, as JSON")
    await expect(field).to_be_focused()
    await expect(field).to_have_value(f'{{\n  "amount": {LARGE}\n}}')
    await check_accessibility(page)

    approve = pay.get_by_role("button", name="Approve with these arguments")
    await field.fill('{"amount": ')
    await approve.click()
    await expect(pay.get_by_role("alert")).to_contain_text("The arguments are no JSON")
    await field.fill('{"amount": "much"}')
    await approve.click()
    await expect(pay.get_by_role("alert")).to_contain_text("args.amount")
    await field.fill(f'{{"amount": {LARGE + 1}}}')
    await approve.click()

    await expect(answer(page)).to_contain_text(f"pay: paid {LARGE + 1}")
    await expect(pay).to_contain_text("Approved with other arguments")
    await expect(pay).to_contain_text(str(LARGE + 1))


async def test_a_rejection_tells_the_agent_why(window: Window) -> None:
    page = await asked(window, ("pay", {"amount": 3}), ("refund", {"amount": 2}))
    await expect(request(page, "refund")).to_contain_text("Refund 2?")
    await request(page, "pay").get_by_role("button", name="Reject").click()
    await page.get_by_label("What the agent is told").fill("Not on Sundays.")
    await page.get_by_label("What the agent is told").press("Enter")
    await expect(request(page, "pay")).to_contain_text("Rejected")
    await expect(request(page, "refund").get_by_role("button", name="Approve")).to_be_enabled()
    await request(page, "refund").get_by_role("button", name="Reject").click()
    await request(page, "refund").get_by_role("button", name="Reject").click()

    await expect(answer(page)).to_contain_text("pay: Not on Sundays.")
    assert "paid" not in await answer(page).inner_text()
    await expect(request(page, "pay")).to_contain_text("Not on Sundays.")


OPTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an enumeration": ({"enum": ["red", "blue"]}, "blue", "choose: blue"),
    "a yes or no": ({"type": "boolean"}, "No", "choose: false"),
    "constants": ({"oneOf": [{"const": 1}, {"const": "<b>2</b>"}]}, "<b>2</b>", "choose: <b>2</b>"),
    "none or an enumeration": ({"anyOf": [{"enum": [7]}, {"type": "null"}]}, "7", "choose: 7"),
}


@pytest.mark.parametrize(("schema", "choice", "said"), OPTIONS.values(), ids=OPTIONS)
async def test_a_question_with_choices_has_a_button_for_each(
    window: Window, schema: dict[str, Any], choice: str, said: str
) -> None:
    page = await asked(window, ("choose", {"question": "Which?", "schema": schema}))
    await expect(request(page, "choose")).to_contain_text("Which?")

    await request(page, "choose").get_by_role("button", name=choice, exact=True).click()

    await expect(answer(page)).to_contain_text(said)


TYPED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "a text that looks like a number": ({"type": "string"}, "007", "007"),
    "a text or nothing, that looks like a number": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "42", "42"),
    "a number": ({"type": "number"}, "1.5", 1.5),
    "an object": ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
    "a large integer": ({"type": "integer"}, str(LARGE), LARGE),
}


@pytest.mark.parametrize(("schema", "typed", "result"), TYPED.values(), ids=TYPED)
async def test_an_answer_is_typed_as_its_schema_says(
    window: Window, pages_api: Running, schema: dict[str, Any], typed: str, result: Any
) -> None:
    page = await asked(window, ("choose", {"question": "What?", "schema": schema}))
    field = request(page, "choose").get_by_label("Answer", exact=False).and_(page.locator("textarea"))
    await expect(request(page, "choose").get_by_role("button", name="Answer")).to_be_disabled()
    await field.fill(typed)
    await field.press("Enter")

    await expect(answer(page)).to_contain_text("choose:")
    async with Client(pages_api.url, user_id=window.user_id) as client:
        (run,) = (await client.http.get("/runs")).json()["items"]
    assert run["requests"][0]["answer"] == {"result": result}


async def test_one_of_many_choices_is_taken_from_a_list(window: Window) -> None:
    days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    page = await asked(window, ("choose", {"question": "When?", "schema": {"type": "string", "enum": days}}))

    await request(page, "choose").get_by_label("Answer").select_option("Sat")
    await check_accessibility(page)
    await request(page, "choose").get_by_role("button", name="Answer").click()

    await expect(answer(page)).to_contain_text("choose: Sat")


async def test_a_result_from_outside_is_given_or_its_failure(window: Window) -> None:
    page = await asked(window, ("elsewhere", {"what": "box"}), ("measure", {}))
    field = request(page, "elsewhere").get_by_label("Result, as JSON or text")
    await field.fill("heavy")
    await field.press("Enter")
    await expect(request(page, "elsewhere").get_by_role("alert")).to_contain_text("result")
    await field.fill('{"weight": 1.5}')
    await field.press("Enter")
    await expect(request(page, "elsewhere")).to_contain_text('"weight": 1.5')
    await request(page, "measure").get_by_role("button", name="Report an error").click()
    await request(page, "measure").get_by_label("What went wrong").fill("It is gone.")
    await request(page, "measure").get_by_role("button", name="Report this error").click()

    await expect(answer(page)).to_contain_text('elsewhere: {"weight":1.5}')
    await expect(answer(page)).to_contain_text("It is gone.")


async def test_what_another_client_answers_is_shown(window: Window, pages_api: Running) -> None:
    page = await asked(window, ("pay", {"amount": 3}), ("ask", {"question": "Who?"}))
    second = await window.tab(f"/?{urlsplit(page.url).query}")
    await expect(request(second, "ask")).to_contain_text("Who?")
    async with Client(pages_api.url, user_id=window.user_id) as client:
        (run,) = (await client.http.get("/runs")).json()["items"]
        first = {"request_id": run["requests"][0]["request_id"], "approve": True}
        assert (await client.http.post(f"/runs/{run['id']}/answers", json={"answers": [first]})).status_code == 202

    await expect(request(page, "pay")).to_contain_text("Approved")
    field = request(second, "ask").get_by_label("Answer", exact=True)
    await field.fill("Ann")
    await field.press("Enter")
    for each in (page, second):
        await expect(answer(each)).to_contain_text("ask: Ann")


async def test_a_run_that_waits_is_stopped(window: Window) -> None:
    page = await asked(window, ("pay", {"amount": 3}))
    await answer(page, "waiting").get_by_role("button", name="Stop").click()

    await expect(answer(page, "cancelled")).to_contain_text("Not answered.")
    await expect(request(page, "pay").get_by_role("button")).to_have_count(0)


HOSTILE = {
    "an element": '<img src=x onerror="document.title=1"><script>document.title=1</script>',
    "a link that is a script": "[click](javascript:document.title=1) <a href='javascript:document.title=1'>x</a>",
    "an image of another host": "![tracking](https://evil.example/pixel.png)",
    "a frame": '<iframe src="https://evil.example"></iframe><svg onload=alert(1)>',
    "200 KB without a blank": "x" * 200_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_request_stays_text(window: Window, text: str) -> None:
    page = await asked(window, ("ask", {"question": text}), ("elsewhere", {"what": text, text[:900]: 1}))

    for tool in ("ask", "elsewhere"):
        await expect(request(page, tool).locator("pre").first).to_contain_text(text[:8])
    assert await page.locator(".request").locator("img, script, iframe, svg, a, [onerror], [onload]").count() == 0
    assert "agent-relay" in await page.title()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


MARKS = {
    "turned around": ("to \u202eecila", "to \\u202eecila"),
    "hidden": ("pay\u200bment \U000e0041\U000e0042", "pay\\u200bment \\udb40\\udc41\\udb40\\udc42"),
    "isolated": ("\u2067x\u2069", "\\u2067x\\u2069"),
    "a line in a line": ("a\u2028b\u0085c", "a\\u2028b\\u0085c"),
}


@pytest.mark.parametrize(("text", "shown"), MARKS.values(), ids=MARKS)
async def test_marks_that_disguise_a_text_are_written_out(window: Window, text: str, shown: str) -> None:
    page = await asked(window, ("ask", {"question": text}), ("elsewhere", {"what": text}))

    await expect(request(page, "ask").locator("pre").first).to_have_text(shown)
    await expect(request(page, "elsewhere").locator("pre").first).to_contain_text(f'"what": "{shown}"')


async def test_the_runs_of_a_batch_that_wait_are_answered_beside_it(window: Window) -> None:
    page = await window.tab("/batches")
    rows = [{"id": name, "query": json.dumps([[["pay", {"amount": 3}]]])} for name in ("a", "b")]
    await drop(page, "rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    await submit(page, "asks", "2")
    await page.get_by_text("2 runs wait for answers").click()
    await check_accessibility(page)

    for _ in rows:
        await page.get_by_role("button", name="Approve", exact=True).first.click()

    await expect(page.locator(".batch[data-status=completed]")).to_be_visible()
    await expect(page.locator(".row .status")).to_have_text(["succeeded", "succeeded"])
