"""The first ten minutes of a stranger: open the link that `agent-relay run` prints, ask, and break things meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from playwright.async_api import Page, expect

from tests.acceptance.test_make_run import running
from tests.support.eventually import eventually
from tests.support.pages import answer
from tests.support.window import ask, browsing


def link_in(output: Path) -> re.Match[str] | None:
    """The link that the launcher says to open."""
    return re.search(r"Open (http://\S+?)(/sign-in#code=\S+)", output.read_text())


def operations_in(output: Path) -> tuple[str, Path]:
    """The page for operators and the file of its key, as the launcher says them."""
    line = r"^Operations are at (http://\S+/ops); sign in with the key in (.+)\.$"
    found = re.search(line, output.read_text(), re.MULTILINE)
    assert found is not None
    return found[1], Path(found[2])


async def picture(page: Page, folder: Path, name: str) -> None:
    """Keep what is seen, in pytest's folder of the test."""
    path = folder / f"{name}.png"
    await page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size > 5_000


@pytest.fixture
def home() -> Iterator[Path]:
    """A place for the data that the servers' account can enter."""
    with TemporaryDirectory(prefix="agent-relay home ", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_the_printed_link_leads_to_an_answer_whatever_dies(home: Path, tmp_path: Path) -> None:
    environment = {
        "AGENTS": "patient=tests.support.agents:patient",
        "LEASE_SECONDS": "3",
        "BEAT_SECONDS": "0.5",
    }
    may_end = tmp_path / "may-end"
    with running(home, **environment) as (launcher, output):
        eventually(lambda: link_in(output) is not None)
        link = link_in(output)
        assert link is not None
        async with browsing(link[1]) as window:
            page = await window.tab(link[2])
            await expect(page.get_by_role("heading", name="Whom do you want to ask?")).to_be_visible()
            await picture(page, tmp_path, "1-signed-in")
            await ask(page, str(may_end), "patient")
            await expect(answer(page, "running")).to_contain_text("Well")
            await picture(page, tmp_path, "2-grows")

            await page.reload()
            await expect(answer(page, "running")).to_contain_text("Well")
            await picture(page, tmp_path, "3-after-a-reload")

            for child in psutil.Process(launcher.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # It died with the one before.
                    if any("agent_relay.worker" in word for word in child.cmdline()):
                        child.kill()
            await expect(answer(page, "running")).to_contain_text("Attempt 2")
            await picture(page, tmp_path, "4-after-the-death-of-its-worker")

            may_end.touch()
            await expect(answer(page)).to_contain_text("Well, at last.")
            await picture(page, tmp_path, "5-ended")

            address, key = operations_in(output)
            await page.goto(address)
            await page.get_by_label("Key of an operator").fill(key.read_text().strip())
            await page.get_by_role("button", name="Sign in").click()
            await expect(page.locator("main.ops[data-ready=true]")).to_be_visible()
            await picture(page, tmp_path, "6-operations")
