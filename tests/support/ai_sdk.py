"""Chats of the real AI SDK (npm: `ai`, `@ai-sdk/react`), in a process of Node: see `tests/javascript/driver.mjs`."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.support.eventually import eventually
from tests.support.node import FOLDER, NODE, install
from tests.support.service import KEYS

State = dict[str, Any]
Part = dict[str, Any]


@dataclass
class Page:
    """A chat as a page has it."""

    name: str
    clients: Clients
    states: list[State] = field(default_factory=list[State])
    """Each that it had: `status`, `error` and `messages`."""
    data: list[Part] = field(default_factory=list[Part])
    """Data parts that came, transient ones too."""
    finished: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """How each response ended."""
    did: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Commands that were carried out."""

    def do(self, verb: str, **arguments: Any) -> None:
        """Have it do something, and do not wait."""
        self.clients.tell({"do": verb, "name": self.name, **arguments})

    def send(self, text: str, **options: Any) -> None:
        """Send a message, and wait until its response has ended."""
        self.do("send", message={"text": text, **options})
        self.responded()

    def responded(self, times: int = 1) -> None:
        """Wait until so many more commands are carried out; none may have failed."""
        until = len([each for each in self.did if each.get("counted")]) + times
        eventually(lambda: len(self.did) >= until or self.clients.is_dead())
        assert not self.clients.is_dead(), self.clients.last_words()
        for each in self.did:
            each["counted"] = True
            assert "failed" not in each, each

    @property
    def now(self) -> State:
        """Its state."""
        return self.states[-1]

    @property
    def parts(self) -> list[Part]:
        """The parts of its last message, but for the marks between steps."""
        return visible(self.now)

    def text(self) -> str:
        """The text of its last message."""
        return text_in(self.now)


def visible(state: State) -> list[Part]:
    """List the parts of the last message, but for the marks between steps."""
    parts: list[Part] = state["messages"][-1]["parts"] if state["messages"] else []
    return [part for part in parts if part["type"] != "step-start"]


def text_in(state: State) -> str:
    """Put together the text of the last message, if it is an answer."""
    if not state["messages"] or state["messages"][-1]["role"] != "assistant":
        return ""
    return "".join(part["text"] for part in visible(state) if part["type"] == "text")


class Clients:
    """A process of Node's that has chats."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._pages: dict[str, Page] = {}
        self._names = count()
        self._broken = False
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def open(
        self,
        url: str,
        chat: str,
        *,
        user_id: str,
        tenant: str = "acme",
        body: dict[str, Any] | None = None,
        **more: Any,
    ) -> Page:
        """Open a page with a chat."""
        page = self._page()
        page.do("open", id=chat, url=url, headers=_headers(tenant, user_id), body=body or {}, **more)
        page.responded()
        return page

    def read(self, url: str, chat: str, text: str, *, user_id: str, **body: Any) -> Page:
        """Ask without a page: each state is that of the one message."""
        page = self._page()
        page.do("read", url=url, headers=_headers("acme", user_id), body={"chat": chat, "text": text, **body})
        return page

    def tell(self, command: dict[str, Any]) -> None:
        """Write a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._broken

    def last_words(self) -> str:
        """What it wrote to say why."""
        return "" if self._process.stderr is None else self._process.stderr.read()

    def _page(self) -> Page:
        page = Page(f"page-{next(self._names)}", self)
        self._pages[page.name] = page
        return page

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            page = self._pages[told.pop("chat")]
            if "status" in told:
                page.states.append(told)
            elif "data" in told:
                page.data.append(told["data"])
            elif "finished" in told:
                page.finished.append(told["finished"])
            else:
                page.did.append(told)
        self._broken = True


def _headers(tenant: str, user_id: str) -> dict[str, str]:
    return {"X-API-Key": KEYS[tenant], "X-User-ID": user_id}


@contextmanager
def chatting() -> Generator[Clients]:
    """Have a process of Node's for chats."""
    install()
    with subprocess.Popen(
        [NODE, "driver.mjs"],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        clients = Clients(process)
        yield clients
        process.kill()
        clients.reading.join()
