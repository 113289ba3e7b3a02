"""The chat page in a real browser: answers grow, outlive what dies under them, and stay text."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from playwright.async_api import Route, expect
from redis import Redis

from tests.support import fake_openai
from tests.support.client import Client
from tests.support.pages import answer, beyond_the_edge
from tests.support.service import KEYS, Running, Service
from tests.support.thinking_agents import Thinking
from tests.support.window import Window, ask, browsing, check_accessibility

DONE = re.compile(r"^done · [\d.,]+ m?s$")
TOKENS = re.compile(r"^([\d.,]+ m?s · )?[\d,]+ tokens in, [\d,]+ out$")

# What is asked grows, and is there again.


async def test_an_answer_outlives_a_reload_and_its_worker(service: Service, tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    service.environment["LEASE_SECONDS"] = "3"
    service.environment["BEAT_SECONDS"] = "0.5"
    api = service.api()
    worker = service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab()
        await ask(page, str(may_end), "patient")
        await expect(answer(page, "running")).to_contain_text("Well")

        await page.reload()
        await expect(answer(page, "running")).to_contain_text("Well")
        worker.kill()
        service.worker()
        await expect(answer(page, "running")).to_contain_text("Attempt 2")
        may_end.touch()

        await expect(answer(page)).to_contain_text("Well, at last.")
        await expect(answer(page)).to_contain_text("2 attempts")
        await page.reload()
        await expect(answer(page)).to_contain_text("Well, at last.")
        await expect(page.locator("article")).to_have_count(1)


async def test_an_answer_outlives_its_api_process(service: Service, tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    api = service.api()
    service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab()
        await ask(page, str(may_end), "patient")
        await expect(answer(page, "running")).to_contain_text("Well")

        api.kill()
        await expect(answer(page, "running")).to_contain_text("The connection was lost.")
        may_end.touch()
        service.api(PORT=str(urlsplit(api.url).port))

        await expect(answer(page)).to_contain_text("Well, at last.")


async def test_a_query_is_sent_once_though_the_api_is_away(service: Service) -> None:
    api = service.api()
    service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab()
        await expect(page.get_by_role("radio", name="echo")).to_be_visible()
        api.kill()
        await ask(page, "hello", "echo")
        await expect(answer(page, "pending")).to_contain_text("It is sent again until it arrives")
        again = service.api(PORT=str(urlsplit(api.url).port))

        await expect(answer(page)).to_contain_text("You said: hello")
        async with Client(again.url, user_id=window.user_id) as client:
            assert len((await client.http.get("/runs")).json()["items"]) == 1


async def test_an_answer_outlives_a_lost_network(window: Window, tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    page = await window.tab()
    await ask(page, str(may_end), "patient")
    await expect(answer(page, "running")).to_contain_text("Well")

    await window.context.set_offline(True)
    await expect(answer(page, "running")).to_contain_text("This device is offline.")
    may_end.touch()
    await window.context.set_offline(False)

    await expect(answer(page)).to_contain_text("Well, at last.")


async def test_two_tabs_show_the_same(window: Window, tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    first = await window.tab()
    await ask(first, str(may_end), "patient")
    await expect(answer(first, "running")).to_contain_text("Well")
    second = await window.tab(f"/?{urlsplit(first.url).query}")
    await expect(answer(second, "running")).to_contain_text("Well")

    may_end.touch()
    await expect(answer(first)).to_contain_text("Well, at last.")
    await expect(answer(second)).to_contain_text("Well, at last.")
    await ask(second, str(may_end))
    await expect(first.locator("article")).to_have_count(2)
    await expect(answer(first)).to_contain_text("Well, at last.")


async def test_a_run_of_another_device_appears(window: Window, pages_api: Running) -> None:
    async with Client(pages_api.url, user_id=window.user_id) as client:
        thread_id = await client.thread("echo")
        page = await window.tab(f"/?thread={thread_id}")
        await expect(page.get_by_text("This thread has no messages yet.")).to_be_visible()

        await client.run("from afar", thread_id=thread_id)

    await expect(answer(page)).to_contain_text("You said: from afar")


# Messages into a run.


async def test_messages_into_a_run_stand_with_its_query(window: Window, pages_api: Running, tmp_path: Path) -> None:
    page = await window.tab()
    may_end = tmp_path / "may-end"
    await ask(page, str(may_end), "patient")
    await expect(answer(page, "running")).to_contain_text("Well")
    run_id = await page.locator("article").get_attribute("data-run")
    queries = page.locator("article .query")
    async with Client(pages_api.url, user_id=window.user_id) as client:
        for query in ("Be quick.", "<b>Now!</b>"):
            assert (await client.http.post(f"/runs/{run_id}/messages", json={"query": query})).status_code == 202

    await expect(queries).to_have_text([str(may_end), "Be quick.", "<b>Now!</b>"])
    await page.reload()
    await expect(queries).to_have_text([str(may_end), "Be quick.", "<b>Now!</b>"])
    await expect(page.locator("article")).to_have_count(1)
    may_end.touch()


async def test_a_message_is_sent_into_the_run_under_way_and_seen_in_every_tab(window: Window) -> None:
    page = await window.tab()
    query = json.dumps([[["pay", {"amount": 1}]]])
    await expect(page.get_by_role("button", name="Add to run")).to_have_count(0)
    await ask(page, query, "asks")
    await expect(answer(page, "waiting")).to_contain_text("The run waits")
    tab = await window.tab(f"/?{urlsplit(page.url).query}")
    await expect(answer(tab, "waiting")).to_contain_text("The run waits")
    async with browsing(window.url) as other:
        other.user_id = window.user_id
        await other.sign_in()
        device = await other.tab(f"/?{urlsplit(page.url).query}")
        await expect(answer(device, "waiting")).to_contain_text("The run waits")

        await page.locator("#query").fill("[]")
        await check_accessibility(page)
        await page.locator("#query").press("Control+Enter")
        for each in (page, tab, device):
            await expect(each.locator("article .query")).to_have_text([query, "[]"])
            await expect(each.locator("article .added")).to_contain_text("with its next request to the model")
        await expect(page.locator("#query")).to_be_focused()
        await check_accessibility(page)
        await tab.get_by_role("button", name="Approve", exact=True).click()

        for each in (page, tab, device):
            await expect(answer(each)).to_contain_text("paid 1")
            await expect(each.locator("article .added")).not_to_contain_text("next request")
            await expect(each.locator("article .query")).to_have_text([query, "[]"])
            await expect(each.get_by_role("button", name="Add to run")).to_have_count(0)


async def test_a_message_that_the_agent_did_not_get_is_asked_next(window: Window, tmp_path: Path) -> None:
    page = await window.tab()
    may_end = tmp_path / "may-end"
    await ask(page, str(may_end), "patient")
    await expect(answer(page, "running")).to_contain_text("Well")
    tab = await window.tab(f"/?{urlsplit(page.url).query}")
    await page.locator("#query").fill(str(may_end))
    await page.get_by_role("button", name="Add to run").click()
    for each in (page, tab):
        await expect(each.locator("article .added")).to_have_count(1)

    may_end.touch()

    for each in (page, tab):
        await expect(each.locator("article[data-status=succeeded] .query")).to_have_text([str(may_end)] * 2)
        await expect(each.locator("article")).to_have_count(2)
        await expect(each.locator("article .added")).to_have_count(0)


async def test_a_message_into_a_run_arrives_once_though_answers_are_lost(window: Window, tmp_path: Path) -> None:
    async def lose(route: Route) -> None:
        assert (await route.fetch()).status == 202
        await route.abort()

    page = await window.tab()
    may_end = tmp_path / "may-end"
    await ask(page, str(may_end), "patient")
    await expect(answer(page, "running")).to_contain_text("Well")
    await page.route("**/runs/*/messages", lose)
    await page.locator("#query").fill("Be quick.")
    await page.get_by_role("button", name="Add to run").click()
    await expect(answer(page, "pending")).to_contain_text("It is sent again until it arrives")
    await page.reload()
    await expect(page.locator("article[data-status=running] .added")).to_contain_text("Be quick.")
    await expect(answer(page, "pending")).to_contain_text("It is sent again until it arrives")
    await page.unroute("**/runs/*/messages", lose)

    await expect(page.locator("article[data-status=pending]")).to_have_count(0)
    await expect(page.locator("article .query")).to_have_text([str(may_end), "Be quick."])
    await page.reload()
    await expect(page.locator("article .query")).to_have_text([str(may_end), "Be quick."])
    may_end.touch()


async def test_a_query_is_asked_after_the_run_under_way(window: Window, tmp_path: Path) -> None:
    page = await window.tab()
    may_end = tmp_path / "may-end"
    await ask(page, str(may_end), "patient")
    await expect(answer(page, "running")).to_contain_text("Well")
    await page.locator("#query").fill(str(may_end))
    await page.get_by_role("button", name="Ask next").click()
    await expect(page.locator("article[data-status=queued] .query")).to_have_text([str(may_end)])

    may_end.touch()

    await expect(page.locator("article[data-status=succeeded] .query")).to_have_text([str(may_end)] * 2)


# What an answer looks like.


async def test_a_structured_answer_is_shown_by_its_schema_while_it_grows(window: Window) -> None:
    page = await window.tab()
    await ask(page, "Report!", "report")

    await expect(answer(page, "running").locator("strong", has_text="late")).to_be_visible()
    shown = answer(page)
    await expect(shown.locator(".field > dd > .badge.yes")).to_have_text("Yes")
    await expect(shown.locator(".badge.level")).to_have_text("7 of 10")
    await expect(shown.locator(".badge", has_text="open")).to_be_visible()
    assert await shown.locator("table th").all_inner_texts() == ["Name", "Pieces", "Ready"]
    assert await shown.locator("table tbody tr").count() == 2
    await expect(shown.locator("li", has_text="Wait until noon")).to_be_visible()
    await shown.locator("summary").first.click()
    await expect(shown.get_by_text("Łódź")).to_be_visible()
    await shown.get_by_role("button", name="JSON").click()
    await expect(shown.locator("pre")).to_contain_text('"pieces": 12')
    await check_accessibility(page)


async def test_an_example_is_asked_with_a_click(window: Window) -> None:
    page = await window.tab()
    await page.locator('[value="bank_support"]').check()
    await page.get_by_role("button", name="I lost my card!").click()

    await expect(answer(page).locator(".badge").first).to_be_visible()
    await expect(page.locator("article .query")).to_have_text("I lost my card!")


async def test_a_tool_call_is_a_step_to_unfold_also_later(window: Window) -> None:
    page = await window.tab()
    await ask(page, "What is my balance?", "bank_support")

    await expect(answer(page).locator(".usage")).to_contain_text("Model requests")
    step = answer(page).locator(".step", has_text="customer_balance")
    await expect(step.locator(".state")).to_have_text(DONE)
    await step.locator("summary").click()
    await expect(step).to_contain_text("include_pending")
    await page.reload()
    await answer(page).get_by_role("button", name="Steps").press("Enter")
    await expect(step.locator(".state")).to_have_text(DONE)
    await step.locator("summary").press("Enter")
    await expect(step).to_contain_text("$1")
    model = answer(page).locator(".step", has=page.locator(".name", has_text="Model"))
    await expect(model.locator(".state")).to_have_text([TOKENS, TOKENS])
    await check_accessibility(page)
    await answer(page).get_by_role("button", name="Steps").click()
    await expect(answer(page).locator(".step")).to_have_count(0)


async def test_a_step_keeps_its_time_over_a_reload(window: Window) -> None:
    page = await window.tab()
    await ask(page, json.dumps([[["look", {}]], [["pay", {"amount": 1}]]]), "asks")
    states = page.locator(".step .state")
    for _ in range(2):
        await expect(states).to_have_text([DONE, "waits for an answer"])
        await page.reload()


async def test_the_steps_of_a_run_are_shown_once_its_event_log_is_gone(service: Service) -> None:
    api = service.api()
    service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab()
        await ask(page, "What is my balance?", "bank_support")
        await expect(answer(page)).to_be_visible()
        with Redis.from_url(service.redis_url) as redis:
            redis.flushdb()

        await page.reload()
        await answer(page).get_by_role("button", name="Steps").click()
        step = answer(page).locator(".step", has_text="customer_balance")
        await expect(step.locator(".state")).to_have_text(DONE)
        await step.locator("summary").click()
        await expect(step).to_contain_text("include_pending")


async def test_an_answer_says_what_all_its_attempts_used_and_cost(service: Service) -> None:
    service.environment |= {"LEASE_SECONDS": "3", "BEAT_SECONDS": "0.5"}
    with fake_openai.running() as provider:
        of_model = {"MODEL": "openai-chat:gpt-4o-mini", "OPENAI_BASE_URL": provider}
        api = service.api()
        service.worker(**of_model, FAILPOINTS="step_stored=kill@1")
        async with browsing(api.url) as window:
            await window.sign_in()
            page = await window.tab()
            await ask(page, "What is my balance?", "bank_support")
            service.worker(**of_model)

            usage = answer(page).locator(".usage")
            facts: dict[str, str] = {}
            for _ in range(2):
                await expect(usage.locator("summary")).to_have_text(
                    re.compile(r"^It took [\d.,]+ m?s · 60 tokens · \$0\.0000264 · 2 attempts$")
                )
                await expect(usage.locator("dl")).to_be_hidden()
                await usage.locator("summary").press("Enter")
                await expect(usage.locator("dl")).to_be_visible()
                facts = dict(zip(*[await usage.locator(each).all_inner_texts() for each in ("dt", "dd")], strict=True))
                await check_accessibility(page)
                await page.reload()
    assert facts["Model requests"] == "2"
    assert facts["Tokens read"] == "20, of these 8 out of the cache"
    assert (facts["Tokens written"], facts["Tool calls"], facts["Cost"]) == ("40", "1", "$0.0000264")
    assert "gpt-4o-mini" in facts["Model"]


async def test_a_failure_says_why_and_is_asked_again(window: Window) -> None:
    page = await window.tab()
    await ask(page, "hello", "breaks")

    await expect(answer(page, "failed")).to_contain_text("agent_error")
    await page.reload()
    await expect(answer(page, "failed")).to_contain_text("agent_error")
    first = await page.locator("article").get_attribute("data-run")
    await answer(page, "failed").get_by_role("button", name="Ask again").click()
    await expect(page.locator(f"article[data-status=failed]:not([data-run='{first}'])")).to_have_count(1)
    await expect(page.locator("article")).to_have_count(1)


async def test_what_is_asked_again_takes_its_own_place(window: Window, pages_api: Running) -> None:
    page = await window.tab()
    for number, query in enumerate(("one", "two", "three"), 1):
        await ask(page, query, "echo" if number == 1 else None)
        await expect(page.locator("article[data-status=succeeded]")).to_have_count(number)
    runs = await page.locator("article").evaluate_all("all => all.map((each) => each.dataset.run)")

    await answer(page).get_by_role("button", name="Ask again").click()
    await expect(page.locator(f"article[data-status=succeeded]:not([data-run='{runs[2]}'])")).to_have_count(3)
    await answer(page, turn=0).get_by_role("button", name="Ask again").click()
    await expect(page.get_by_role("dialog")).to_contain_text(
        "The 2 queries after it, with their answers, are taken out"
    )
    await page.get_by_role("button", name="Keep them").click()
    await page.reload()
    await expect(page.locator("article[data-status=succeeded] .query")).to_have_text(["one", "two", "three"])
    await answer(page, turn=0).get_by_role("button", name="Ask again").click()
    await page.get_by_role("dialog").get_by_role("button", name="Ask again").press("Enter")

    await expect(page.locator("article[data-status=succeeded] .query")).to_have_text(["one"])
    await expect(answer(page)).to_contain_text("You said: one")
    async with Client(pages_api.url, user_id=window.user_id) as client:
        thread_id = urlsplit(page.url).query.removeprefix("thread=")
        messages = (await client.http.get(f"/threads/{thread_id}/messages")).json()["items"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_a_stop_has_a_receipt(window: Window, tmp_path: Path) -> None:
    page = await window.tab()
    await ask(page, str(tmp_path / "never"), "patient")
    await expect(answer(page, "running")).to_contain_text("Well")

    await answer(page, "running").get_by_role("button", name="Stop").click()

    await expect(answer(page, "cancelled")).to_contain_text(re.compile(r"Stopped after \d+\.\d s\. What was written"))
    await expect(answer(page, "cancelled")).to_contain_text("Well")
    await page.reload()
    await expect(answer(page, "cancelled")).to_contain_text("Well")


async def test_who_waits_is_told_for_what(service: Service) -> None:
    api = service.api()
    service.worker().terminate()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab()
        await ask(page, "first", "echo")
        await expect(answer(page, "queued")).to_contain_text("Next in the queue")
        await expect(answer(page, "queued")).to_contain_text("No worker serves this agent now")
        await page.get_by_role("link", name="New thread").click()
        await ask(page, "second", "echo")
        await expect(answer(page, "queued")).to_contain_text("1 run is before it in the queue")

        service.worker()

        await expect(answer(page)).to_contain_text("You said: second")


@pytest.mark.parametrize("kind", ["curl", "Python"])
async def test_a_query_as_code_runs(window: Window, kind: str) -> None:
    page = await window.tab()
    await ask(page, 'it\'s "quoted" $HOME `x` \\ ünï', "parrot")
    await answer(page).get_by_role("button", name="Code").click()
    await page.get_by_role("radio", name=kind).check()
    await check_accessibility(page)
    code = await page.locator("dialog pre").inner_text()

    command = ["bash", "-c", code] if kind == "curl" else ["python3", "-c", code]
    environment = {"API_KEY": KEYS["acme"], "USER_ID": str(uuid4()), "PATH": "/usr/bin:/bin:/usr/local/bin"}
    ran = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, timeout=60, check=True)

    assert "ünï" in ran.stdout.decode()
    assert "$HOME `x`" in ran.stdout.decode()


# Threads.


async def test_threads_are_found_opened_and_deleted_by_keyboard(window: Window) -> None:
    page = await window.tab()
    for query in ("about apples", "about pears"):
        await ask(page, query, "echo")
        await expect(answer(page)).to_contain_text(query)
        await page.get_by_role("link", name="New thread").click()
    titles = page.locator(".threads .title")
    await expect(titles).to_have_text(["about pears", "about apples"])

    await page.get_by_label("Search threads").fill("APPLES")
    await expect(titles).to_have_text(["about apples"])
    await page.get_by_label("Search threads").fill("")
    await page.locator(".threads a").first.focus()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(answer(page)).to_contain_text("about apples")
    await page.locator(".threads a").nth(1).focus()
    await page.keyboard.press("Delete")
    await check_accessibility(page)
    await page.get_by_role("button", name="Keep it").press("Enter")
    await expect(titles).to_have_count(2)
    await page.locator(".threads a").nth(1).focus()
    await page.keyboard.press("Delete")
    await page.get_by_role("button", name="Delete", exact=True).press("Enter")

    await expect(titles).to_have_text(["about pears"])
    await expect(page.get_by_role("heading", name="Whom do you want to ask?")).to_be_visible()
    await page.go_back()
    await expect(page.get_by_text("This thread is not there any more.")).to_be_visible()


async def test_threads_are_renamed_by_keyboard(window: Window) -> None:
    page = await window.tab()
    other = await window.tab()
    await ask(page, "about apples " + "\U0001f34e" * 200, "echo")
    title = page.locator(".threads .title")
    await expect(title).to_have_text("about apples " + "\U0001f34e" * 67)
    await page.locator(".threads a").focus()
    await page.keyboard.press("F2")
    await check_accessibility(page)
    await page.keyboard.press("Control+a")
    await page.keyboard.type("<b>Fruit</b>")
    await page.keyboard.press("Enter")
    await expect(title).to_have_text("<b>Fruit</b>")
    await expect(page).to_have_title("<b>Fruit</b> · agent-relay")
    await expect(other.locator(".threads .title")).to_have_text("<b>Fruit</b>")

    await page.get_by_role("button", name="Rename").click()
    await page.get_by_label("Title").fill("never")
    await page.keyboard.press("Escape")
    await expect(title).to_have_text("<b>Fruit</b>")
    await page.get_by_role("button", name="Rename").click()
    await page.get_by_label("Title").fill(" ")
    await page.get_by_label("Title").press("Enter")
    await expect(title).to_have_text(re.compile("^echo, "))
    await page.reload()
    await expect(title).to_have_text(re.compile("^echo, "))


async def test_threads_are_found_by_what_was_said_in_them(window: Window) -> None:
    page = await window.tab()
    for query in ("first", "second"):
        await ask(page, query, "echo")
        await expect(answer(page)).to_contain_text(query)
        await page.get_by_role("link", name="New thread").click()
    titles = page.locator(".threads .title")
    search = page.get_by_label("Search threads")

    await search.fill("you SAID: sec")
    await expect(titles).to_have_text(["second"])
    await search.fill("100%_\\ &q=first")
    await expect(page.get_by_text("No thread has this text.")).to_be_visible()
    await search.fill("")
    await expect(titles).to_have_text(["second", "first"])


# What is hostile stays text.

HOSTILE = {
    "an element": '<img src=x onerror="document.title=1"> <script>document.title=1</script>',
    "an image of another host": "![tracking](https://evil.example/pixel.png) ![](//evil.example/a.png)",
    "an image in a link": "[![a](https://evil.example/p.png)](javascript:document.title=1)",
    "a link that is a script": "[click](javascript:document.title=1) <javascript:alert(1)> [a](JaVaScRiPt:alert(1))",
    "a link that is a document": "[click](data:text/html,<script>1</script>) [b](vbscript:x) [c](blob:x)",
    "a reference that is a script": "[click][1]\n\n[1]: javascript:document.title=1",
    "an entity in a link": "[x](&#106;avascript:alert(1)) [y](java\nscript:alert(1))",
    "a style": "<style>*{display:none}</style><link rel=stylesheet href=https://evil.example/x.css>",
    "a frame": '<iframe src="https://evil.example"></iframe><object data=x></object><svg onload=alert(1)>',
    "a refresh": '<meta http-equiv=refresh content="0;url=https://evil.example">',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_text_does_nothing(window: Window, text: str) -> None:
    page = await window.tab()
    await ask(page, f"{text}\n\nend of it", "parrot")

    await expect(answer(page).locator(".markdown")).to_contain_text("end of it")
    inside = answer(page).locator("img, script, style, iframe, object, svg, link, meta, [onerror], [onload]")
    assert await inside.count() == 0
    links = await answer(page).locator(".markdown a").evaluate_all("links => links.map((link) => link.href)")
    assert [link for link in links if not re.match(r"https?://|mailto:", link)] == []
    assert "agent-relay" in await page.title()


async def test_marks_that_turn_text_around_turn_nothing_else(window: Window) -> None:
    page = await window.tab()
    await ask(page, "\u202eevil \u2067txet\u2066", "parrot")

    await expect(answer(page).locator(".markdown")).to_contain_text("evil")
    styles = (
        "element => [...element.querySelectorAll('.query, .answer')].map((each) => getComputedStyle(each).unicodeBidi)"
    )
    assert await page.locator("article").evaluate(styles) == ["isolate", "isolate"]


LONG = {
    "200 KB without a blank": ("parrot", "x" * 200_000),
    "90 KB without a blank": ("parrot", "x" * 90_000),
    "90 KB of brackets": ("parrot", "[" * 90_000),
    "90 KB of emphasis": ("parrot", "*a _b" * 18_000),
    "10,000 list items": ("parrot", "\n".join(f"- item {number}" for number in range(10_000))),
    "20,000 lines": ("parrot", "\n\n".join(["line"] * 15_000)),
    "10,000 items of an output": ("items", "10000"),
}


@pytest.mark.parametrize(("agent", "text"), LONG.values(), ids=LONG)
async def test_what_is_long_keeps_the_page_quick(window: Window, pages_api: Running, agent: str, text: str) -> None:
    async with Client(pages_api.url, user_id=window.user_id) as client:
        thread_id = await client.thread(agent)
        page = await window.tab(f"/?thread={thread_id}")
        await expect(page.get_by_text("This thread has no messages yet.")).to_be_visible()
        await client.run(text, thread_id=thread_id)
    await page.evaluate(
        "window.longest = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries())"
        " window.longest = Math.max(window.longest, entry.duration); }).observe({type: 'longtask'})"
    )

    await expect(answer(page)).to_be_visible()
    await expect(page.get_by_role("button", name="Ask again")).to_be_visible()
    assert await page.evaluate("document.querySelectorAll('*').length") < 40_000
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("window.longest") < 5_000, "a test machine under load has long tasks, but no hang"


# Everybody can use it.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
async def test_everybody_can_use_it(pages_api: Running, tmp_path: Path, scheme: str, width: int) -> None:
    async with browsing(pages_api.url, color_scheme=scheme, viewport={"width": width, "height": 720}) as window:
        sign_in = await window.tab("/sign-in")
        await expect(sign_in.get_by_label("API key")).to_be_visible()
        await check_accessibility(sign_in)
        await window.sign_in()
        page = await window.tab()
        await expect(page.get_by_role("radio", name="report")).to_be_visible()
        await check_accessibility(page)
        await ask(page, "Report!", "report")
        await expect(answer(page).locator(".usage")).to_contain_text("tokens")
        await check_accessibility(page)
        if width < 700:
            await page.get_by_role("button", name="Threads").click()
            await expect(page.locator(".threads a")).to_be_visible()
            await check_accessibility(page)
        assert await beyond_the_edge(page) == []
        page = await window.tab()
        await ask(page, str(tmp_path / "never"), "patient")
        await expect(page.get_by_role("button", name="Add to run")).to_be_visible()
        await check_accessibility(page)
        assert await beyond_the_edge(page) == []


# Who asks.


async def test_a_key_is_exchanged_and_not_kept(pages_api: Running) -> None:
    async with browsing(pages_api.url) as window:
        page = await window.tab("/?thread=0198c5a4-7c9e-7000-8000-000000000000")
        await page.get_by_label("API key").fill("wrong")
        await page.get_by_label("API key").press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("This key is not valid.")
        await page.get_by_label("API key").fill(KEYS["acme"])
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_text("This thread is not there any more.")).to_be_visible()
        kept = await page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert KEYS["acme"] not in kept
        assert "agent_relay_session" not in kept
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        await page.goto(window.url)
        await expect(page.get_by_label("API key")).to_be_visible()


async def test_a_used_link_says_so(pages_api: Running) -> None:
    async with browsing(pages_api.url) as window:
        page = await window.tab("/sign-in#code=used-before")

        await expect(page.get_by_role("alert")).to_contain_text("This link was used before, or has expired.")


async def test_it_lies_behind_a_prefix(service: Service) -> None:
    api = service.api(ROOT_PATH="/relay")
    service.worker()
    async with browsing(f"{api.url}/relay") as window:
        page = await window.tab("/sign-in")
        await page.get_by_label("API key").fill(KEYS["acme"])
        await page.get_by_role("button", name="Sign in").click()
        await ask(page, "hello", "echo")
        await expect(answer(page)).to_contain_text("You said: hello")
        await page.reload()
        await expect(answer(page)).to_contain_text("You said: hello")
        assert urlsplit(page.url).path == "/relay/"


async def test_what_the_model_thinks_is_shown_folded_while_it_does(service: Service, tmp_path: Path) -> None:
    served = {"AGENTS": "thinks=tests.support.thinking_agents:thinks"}
    api = service.api(**served)
    service.worker(**served)
    plan = Thinking(tmp_path, calls=1, thoughts=100)
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab()
        await ask(page, plan.query, "thinks")
        thoughts = answer(page, "running").locator("details.thoughts")
        await expect(thoughts).to_contain_text("thinking")
        await expect(thoughts.get_by_text("0.0 0.1")).to_be_hidden()
        await thoughts.locator("summary").click()
        await expect(thoughts.get_by_text("0.0 0.1")).to_be_visible()
        await expect(thoughts.get_by_text("1.0 1.1")).to_be_visible()
        await check_accessibility(page)

        await expect(answer(page)).to_contain_text("It is so.")
