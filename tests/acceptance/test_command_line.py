"""The command-line client against the real service, also while connections, the service or the client itself break."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncGenerator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest
import trustme

from tests.faults.link import Link
from tests.support.client import Client
from tests.support.command import Terminal, batches_of, lines_of, outputs_of
from tests.support.service import Running, Service

MANY = 200
ENOUGH = 9


def rows(count: int, query: str = "hello") -> str:
    """Write rows that say which they are."""
    return "".join(json.dumps({"custom_id": f"row-{n}", "query": f"{query} {n}"}) + "\n" for n in range(count))


def echoes(count: int) -> dict[str, str]:
    """What an echo makes of them."""
    return {f"row-{n}": f"You said: hello {n}" for n in range(count)}


@pytest.fixture
async def terminal(shared_api: Running, client: Client, tmp_path: Path) -> AsyncGenerator[Terminal]:
    """A terminal of the user."""
    async with Terminal(shared_api.url, client.user_id, tmp_path) as terminal:
        yield terminal


@pytest.fixture
async def link(shared_api: Running, terminal: Terminal) -> AsyncGenerator[Link]:
    """What lies between the terminal and the service."""
    link = Link(httpx.URL(shared_api.url).port or 80)
    await link.open()
    terminal.url = f"http://127.0.0.1:{link.port}"
    yield link
    await link.close()


async def test_an_answer_is_all_that_standard_output_gets(terminal: Terminal) -> None:
    text = await terminal.run("ask", "hello there", "--agent", "echo")
    form = await terminal.run("ask", "hello there", "--agent", "form")

    assert (text.status, text.answer, text.told) == (0, "You said: hello there\n", "")
    assert json.loads(form.answer) == {"title": "A form", "pages": 12, "tags": ["one", "two"]}
    assert (form.status, form.told) == (0, "")


async def test_a_conversation_goes_on(terminal: Terminal, client: Client) -> None:
    thread_id = await client.thread("echo")
    await terminal.run("ask", "one", "--thread", thread_id)
    await terminal.run("ask", "two", "--thread", thread_id)

    assert [message["content"] for message in await client.messages(thread_id)][::2] == ["one", "two"]


async def test_scripts_get_the_whole_run(terminal: Terminal, client: Client) -> None:
    ended = await terminal.run("ask", "hello", "--agent", "echo", "--json")
    run = json.loads(ended.answer)

    assert run == await client.read(run["id"])
    assert run["output"] == "You said: hello"


async def test_why_a_run_failed_is_told(terminal: Terminal) -> None:
    ended = await terminal.run("ask", "hello", "--agent", "breaks")

    assert (ended.status, ended.answer) == (1, "")
    assert "failed" in ended.told
    assert "agent_error" in ended.told


async def test_a_refusal_says_what_is_wrong_where(terminal: Terminal) -> None:
    ended = await terminal.run("ask", "hello", "--agent", "nobody")

    assert (ended.status, ended.answer) == (3, "")
    assert "422 Unprocessable" in ended.told
    assert "/agent_type: No worker has registered an agent" in ended.told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"AGENT_RELAY_URL": ""}, "AGENT_RELAY_URL"),
        ({"AGENT_RELAY_URL": "relay.example.com"}, "URL"),
        ({"AGENT_RELAY_API_KEY": ""}, "AGENT_RELAY_API_KEY"),
        ({"AGENT_RELAY_API_KEY": "secret\n"}, "API key"),
        ({"AGENT_RELAY_USER_ID": "mé"}, "printable ASCII"),
    ],
)
async def test_who_calls_whom_must_be_said(terminal: Terminal, changes: dict[str, str], said: str) -> None:
    terminal.environment |= changes
    ended = await terminal.run("ask", "hello", "--agent", "echo")

    assert ended.status == 2
    assert said in ended.told
    assert "secret" not in ended.told
    assert "Traceback" not in ended.told


async def test_a_wrong_address_is_not_tried_for_ever(terminal: Terminal) -> None:
    terminal.url = "http://127.0.0.1:1"
    ended = await terminal.run("ask", "hello", "--agent", "echo", "--patience", "1")

    assert ended.status == 3
    assert "127.0.0.1:1 is out of reach" in ended.told


async def test_an_answer_survives_its_connections(terminal: Terminal, client: Client, link: Link) -> None:
    link.lose_reply(b"POST /api/v1/runs")
    command = await terminal.begin("ask", "6 s", "--agent", "slow")
    await command.until(lambda: link.lost_replies)
    cuts = 0
    while cuts < 3 and command.process.returncode is None:
        await asyncio.sleep(0.1)
        cuts += bool(link.cut())
    ended = await command.ended()

    assert cuts
    assert (ended.status, ended.answer) == (0, "".join(f"tick {n} " for n in range(1, 121)) + "\n")
    assert len((await client.http.get("/runs")).json()["items"]) == 1


async def test_an_answer_survives_the_api(service: Service, tmp_path: Path) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client, Terminal(api.url, client.user_id, tmp_path) as terminal:
        command = await terminal.begin("ask", "3 s", "--agent", "slow", "--json")
        await _running(client)
        api.kill()
        await _started_again(service, api)
        ended = await command.ended()

    assert ended.status == 0
    assert json.loads(ended.answer)["output"] == "".join(f"tick {n} " for n in range(1, 61))
    assert "out of reach" in ended.told
    assert "answers again" in ended.told


async def _started_again(service: Service, api: Running) -> None:
    await asyncio.to_thread(service.api, PORT=str(httpx.URL(api.url).port))


async def _running(client: Client) -> None:
    while not (await client.http.get("/runs", params={"status": "running"})).json()["items"]:
        pass


async def test_ctrl_c_leaves_the_run_alone_and_says_how_to_go_on(terminal: Terminal, client: Client) -> None:
    command = await terminal.begin("ask", "30 s", "--agent", "slow")
    await _running(client)
    await asyncio.sleep(0.2)
    ended = await command.interrupt()
    said = re.findall(r"agent-relay (\w+ .*)", ended.told)

    assert (ended.status, ended.answer) == (130, "")
    follow, cancel = said
    following = await terminal.begin(*follow.split())
    assert (await terminal.run(*cancel.split())).answer == "The run is cancelled.\n"
    followed = await following.ended()
    assert followed.status == 1
    assert "cancelled" in followed.told


class Stub(BaseHTTPRequestHandler):
    """A service that is busy, then full, then accepts; and a stream that is cut in the middle of a line."""

    asked: list[tuple[str, str]]

    def do_POST(self) -> None:
        """Accept the third."""
        self.rfile.read(int(self.headers["content-length"]))
        self.asked.append(("POST", self.headers["idempotency-key"]))
        status = {1: 429, 2: 503}.get(len(self.asked), 202)
        self._answer(status, json.dumps({"title": "Later", "id": "the-run"}), **{"Retry-After": "1"})

    def do_GET(self) -> None:
        """Tell half, then the rest."""
        after = parse_qs(urlsplit(self.path).query).get("after", [""])[0]
        self.asked.append(("GET", after))
        told = [
            '{"id": "1", "event": "text_delta", "token": "One"}',
            '{"id": "2", "event": "text_delta", "token": "Two"}',
        ]
        if after:
            told = [told[1], '{"id": "3", "event": "gap"}', '{"id": "4", "event": "done", "status": "succeeded"}']
        text = "\n\n".join(told) + "\n"
        self._answer(200 if len(self.asked) < ENOUGH else 404, text if after else text[:-10])

    def _answer(self, status: int, body: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  (named so by the class)
        """Say nothing."""


async def test_later_is_waited_for_and_a_stream_without_its_end_resumed(terminal: Terminal) -> None:
    Stub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as stub:
        Thread(target=stub.serve_forever, daemon=True).start()
        terminal.url = f"http://127.0.0.1:{stub.server_port}"
        ended = await terminal.run("ask", "hello", "--agent", "echo", "--patience", "0.1")
        stub.shutdown()

    assert (ended.status, ended.answer) == (0, "Two\n")
    posts, gets = Stub.asked[:3], Stub.asked[3:]
    assert len(set(posts)) == 1
    assert gets == [("GET", ""), ("GET", "1")]
    assert "429" in ended.told
    assert "503" in ended.told


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "Https"])
async def test_certificates_are_checked_however_the_scheme_is_written(terminal: Terminal, scheme: str) -> None:
    Stub.asked = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as stub:
        stub.socket = context.wrap_socket(stub.socket, server_side=True)
        Thread(target=stub.serve_forever, daemon=True).start()
        terminal.url = f"{scheme}://127.0.0.1:{stub.server_port}"
        ended = await terminal.run("ask", "hello", "--agent", "echo", "--patience", "0.1")
        stub.shutdown()

    assert ended.status != 0
    assert "certificate" in ended.told.lower()
    assert Stub.asked == []  # And so nobody has the key.


class Full(BaseHTTPRequestHandler):
    """A service that has no room for the batch, whenever it is asked."""

    def do_POST(self) -> None:
        """Say so."""
        for _ in iter(lambda: self.rfile.readline().strip(), b"0"):
            pass  # The body comes in chunks, the last of which is empty.
        said = json.dumps({"title": "Too Many Requests", "detail": "More runs would be unfinished than may, 5."})
        self.send_response(429)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  (named so by the class)
        """Say nothing."""


async def test_a_service_that_stays_full_is_waited_for_as_long_as_one_likes(terminal: Terminal) -> None:
    submit = "submit", terminal.file("rows.jsonl", rows(3)), "--agent", "echo"
    service = terminal.url
    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as full:
        Thread(target=full.serve_forever, daemon=True).start()
        terminal.url = f"http://127.0.0.1:{full.server_port}"
        given_up = await terminal.run(*submit, "--wait", "0.5")
        full.shutdown()
    terminal.url = service
    later = await terminal.run(*submit)

    assert given_up.status == 3
    assert "429: More runs would be unfinished than may, 5; waiting until it lets me." in given_up.told
    assert "gave up" in given_up.told
    assert (later.status, outputs_of(terminal.folder / "rows.results.jsonl")) == (0, echoes(3))


async def test_a_terminal_shows_the_answer_growing_and_obeys_none_of_it(terminal: Terminal) -> None:
    shown = await asyncio.to_thread(terminal.show, "ask", "--agent", "echo", "red \x1b[31m alert \x1b]0;title\x07")

    assert "You said: red \N{REPLACEMENT CHARACTER}[31m alert" in shown
    assert "\x1b[31m" not in shown
    assert "\x07" not in shown
    assert shown.count("You said:") > 1  # While it grew, and as the answer.


async def test_each_row_is_asked_about_and_its_result_written(terminal: Terminal, client: Client) -> None:
    asked = terminal.file(
        "rows.jsonl",
        '\N{ZERO WIDTH NO-BREAK SPACE}{"query": "first"}\n\n{ "query" : "third", "metadata": {"a": 1.50}}\r\n'
        '{"custom_id": "mine", "query": "fourth"}',
    )
    ended = await terminal.run("submit", asked, "--agent", "echo", "--max-running", "2", "--deadline", "60.5")
    output = terminal.folder / "rows.results.jsonl"

    assert (ended.status, ended.answer) == (0, f"{output}: 3 results, 3 succeeded\n")
    assert outputs_of(output) == {"1": "You said: first", "3": "You said: third", "mine": "You said: fourth"}
    (batch,) = await batches_of(client)
    assert batch["id"] in ended.told
    run = await client.read(next(line["run_id"] for line in lines_of(output) if line["custom_id"] == "3"))
    assert run["metadata"] == {"a": 1.5}


async def test_what_is_done_is_not_done_again(terminal: Terminal, client: Client) -> None:
    submit = "submit", terminal.file("rows.jsonl", rows(20)), "--agent", "echo", "--output", terminal.folder / "out"
    first = await terminal.run(*submit)
    whole = (terminal.folder / "out").read_bytes()
    terminal.url = "http://127.0.0.1:1"
    again = await terminal.run(*submit)

    assert (again.status, again.answer) == (first.status, first.answer) == (0, first.answer)
    assert (terminal.folder / "out").read_bytes() == whole
    assert len(await batches_of(client)) == 1


async def test_some_rows_that_failed_are_told_by_the_status(terminal: Terminal) -> None:
    asked = terminal.file("rows.jsonl", '{"query": "good"}\n{"query": "0.0"}\n')
    ended = await terminal.run("submit", asked, "--agent", "slow")

    assert ended.status == 1
    assert "2 results, 1 succeeded, 1 failed" in ended.answer


async def test_csv_is_asked_by_the_row(terminal: Terminal) -> None:
    content = '\N{ZERO WIDTH NO-BREAK SPACE}key,question\nq1,"Two\nlines, and ""quotes"""\n\nq2,é\n'
    asked = terminal.file("rows.csv", content)
    named = await terminal.run(
        "submit",
        asked,
        "--agent",
        "echo",
        "--column",
        "question",
        "--id-column",
        "key",
        "--output",
        terminal.folder / "a",
    )
    counted = await terminal.run("submit", asked, "--agent", "echo", "--column", "question")

    assert (named.status, counted.status) == (0, 0)
    assert outputs_of(terminal.folder / "a") == {"q1": 'You said: Two lines, and "quotes"', "q2": "You said: é"}
    assert outputs_of(terminal.folder / "rows.results.jsonl").keys() == {"1", "2"}


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("id,question\n1,a\n", [], "--column"),
        ("id,question\n1,a\n", ["--column", "query"], "no column 'query'. Its columns: id, question."),
        ("id,question\n1,a\n", ["--column", "question", "--id-column", "key"], "no column 'key'"),
        ("a,a\n1,2\n", ["--column", "a"], "more than one column 'a'"),
        ("id,question\n1,a\n2\n", ["--column", "question"], "row 2: 1 values for 2 columns"),
        ('id,question\n1,"a\n', ["--column", "question"], "not CSV"),
        ("id,question\n", ["--column", "question"], "no rows"),
        ("", ["--column", "question"], "no column"),
    ],
)
async def test_csv_that_cannot_be_read_is_not_sent(
    terminal: Terminal, content: str, options: list[str], said: str
) -> None:
    asked = terminal.file("rows.csv", content)
    terminal.url = "http://127.0.0.1:1"
    ended = await terminal.run("submit", asked, "--agent", "echo", *options)

    assert ended.status == 2
    assert said in ended.told
    assert terminal.files() == ["rows.csv"]


async def test_a_refused_batch_names_its_lines_and_leaves_nothing(terminal: Terminal, client: Client) -> None:
    asked = terminal.file(
        "rows.jsonl", '\n{"query": "good"}\n{"query": ""}\n\nnot JSON\n{"custom_id": "2", "query": "x"}'
    )
    refused = await terminal.run("submit", asked, "--agent", "echo")

    assert refused.status == 3
    assert "rows.jsonl, line 3, /query: String should have at least 1 character" in refused.told
    assert "rows.jsonl, line 5: " in refused.told
    assert "rows.jsonl, line 6: Another item has this custom_id" in refused.told.replace(", /custom_id", "")
    assert terminal.files() == ["rows.jsonl"]
    assert await batches_of(client) == []

    terminal.file("rows.jsonl", rows(3))
    assert (await terminal.run("submit", asked, "--agent", "echo")).status == 0


async def test_a_wrong_key_can_be_put_right(terminal: Terminal) -> None:
    submit = "submit", terminal.file("rows.jsonl", rows(3)), "--agent", "echo"
    refused = await terminal.run(*submit, "--key", "wrong")

    assert refused.status == 3
    assert "401" in refused.told
    assert (await terminal.run(*submit)).status == 0


async def test_an_option_that_is_refused_is_named(terminal: Terminal) -> None:
    submit = "submit", terminal.file("rows.jsonl", rows(1)), "--agent", "echo", "--webhook", "https://10.0.0.1/"
    refused = await terminal.run(*submit)

    assert refused.status == 3
    assert "?webhook_url: The address is not public" in refused.told


async def test_other_rows_or_an_output_of_something_else_are_left_alone(terminal: Terminal, client: Client) -> None:
    output = terminal.folder / "out"
    submit = "submit", terminal.folder / "rows.jsonl", "--agent", "echo", "--output", output
    terminal.file("rows.jsonl", rows(3))
    output.write_text("precious")
    not_ours = await terminal.run(*submit)
    kept = output.read_text()
    output.unlink()
    await terminal.run(*submit)
    terminal.file("rows.jsonl", rows(4))
    other_rows = await terminal.run(*submit)
    other_options = await terminal.run(*submit, "--max-running", "1")

    assert (not_ours.status, kept) == (2, "precious")
    assert other_rows.status == other_options.status == 2
    assert "the rows changed" in other_rows.told
    assert "the options and the rows changed" in other_options.told
    assert outputs_of(output) == echoes(3)
    assert len(await batches_of(client)) == 1


async def test_a_submission_whose_reply_was_lost_is_one_batch(terminal: Terminal, client: Client, link: Link) -> None:
    link.lose_reply(b"POST /api/v1/batches")
    ended = await terminal.run("submit", terminal.file("rows.jsonl", rows(20)), "--agent", "echo")

    assert link.lost_replies
    assert ended.status == 0
    assert outputs_of(terminal.folder / "rows.results.jsonl") == echoes(20)
    assert len(await batches_of(client)) == 1


async def test_a_client_that_died_before_it_knew_submits_once(terminal: Terminal, client: Client, link: Link) -> None:
    for _ in range(100):
        link.lose_reply(b"POST /api/v1/batches")
    submit = "submit", terminal.file("rows.jsonl", rows(20)), "--agent", "echo"
    command = await terminal.begin(*submit)
    await command.until(lambda: link.lost_replies)
    await command.kill()
    link.forgive()
    ended = await terminal.run(*submit)

    assert ended.status == 0
    assert outputs_of(terminal.folder / "rows.results.jsonl") == echoes(20)
    assert len(await batches_of(client)) == 1


async def test_results_are_whole_when_the_api_and_the_client_were_killed(service: Service, tmp_path: Path) -> None:
    api, worker = service.api(), service.worker()
    output = tmp_path / "rows.results.jsonl"

    def written() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    async with Client(api.url) as client, Terminal(api.url, client.user_id, tmp_path) as terminal:
        asked = terminal.file("rows.jsonl", rows(MANY, "0.1 s"))
        submit = "submit", asked, "--agent", "slow", "--max-running", "10"
        first = await terminal.begin(*submit)
        await first.until(lambda: written() > 0)
        api.kill()
        before = written()
        await first.until(lambda: _ended(service) > before)
        await asyncio.to_thread(worker.terminate)
        await _started_again(service, api)
        await first.until(lambda: written() > before)
        await first.kill()
        assert written() < MANY
        with output.open("ab") as file:
            file.write(b'{"cursor":999,"custom_id":"torn')
        await asyncio.to_thread(service.worker)
        ended = await terminal.run(*submit)
        (batch,) = await batches_of(client)

    assert ended.status == 0, ended.told
    assert outputs_of(output) == {f"row-{n}": "tick 1 tick 2 " for n in range(MANY)}
    assert batch["counts"]["succeeded"] == MANY


def _ended(service: Service) -> int:
    """Count the results that there are, whoever knows of them."""
    with psycopg.connect(service.database_url) as connection:
        row = connection.execute("SELECT sum(succeeded) FROM batches").fetchone()
    return row[0] if row else 0


async def test_ctrl_c_leaves_the_batch_alone_and_says_how_to_cancel(terminal: Terminal, client: Client) -> None:
    submit = "submit", terminal.file("rows.jsonl", rows(5, "30 s")), "--agent", "slow"
    command = await terminal.begin(*submit)
    await _running(client)
    meanwhile = await terminal.run(*submit)
    ended = await command.interrupt()

    assert meanwhile.status == 2
    assert "Another submit writes" in meanwhile.told
    assert ended.status == 130
    assert "0 of 5 results" in ended.told
    (cancel,) = re.findall(r"agent-relay (cancel .*)", ended.told)
    assert (await terminal.run(*cancel.split())).answer.startswith("The batch is cancel")
    rest = await terminal.run(*submit)
    assert (rest.status, rest.answer.split(": ")[1]) == (1, "5 results, 5 cancelled\n")


async def test_results_that_somebody_removed_come_again(terminal: Terminal) -> None:
    submit = "submit", terminal.file("rows.jsonl", rows(20)), "--agent", "echo"
    output = terminal.folder / "rows.results.jsonl"
    await terminal.run(*submit)
    first, _, *rest = output.read_text().splitlines(keepends=True)
    output.write_text(first + "".join(rest))
    lacking = await terminal.run(*submit)
    output.write_text(first + "garbage\n" + "".join(rest))
    garbled = await terminal.run(*submit)
    healed = outputs_of(output)
    output.unlink()
    removed = await terminal.run(*submit)

    assert lacking.status == 2
    assert "are missing" in lacking.told
    assert garbled.status == removed.status == 0
    assert healed == outputs_of(output) == echoes(20)


ONLY = """
import re, runpy, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.match(r"[\\w.-]+", name)[0].lower().replace("_", "-")

needed, wanted = set(), ["httpx", "rich"]
while wanted:
    name = plain(wanted.pop())
    try:
        wanted += [line for line in requires(name) or [] if name not in needed and "extra ==" not in line]
        needed.add(name)
    except PackageNotFoundError:
        pass  # It is for another Python.
makers = packages_distributions()

class Blocker:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        ours = name == "agent_relay" or name.startswith("agent_relay.client")
        theirs = needed & {plain(maker) for maker in makers.get(root, [])}
        if not (ours or theirs or root in sys.stdlib_module_names or root.startswith("_sysconfigdata")):
            raise ModuleNotFoundError(f"{name} is not for the client", name=name)

sys.meta_path.insert(0, Blocker())
runpy.run_module("agent_relay.client", run_name="__main__", alter_sys=True)
"""


async def test_it_needs_nothing_but_httpx_and_rich(terminal: Terminal) -> None:
    terminal.module = ("-c", ONLY)
    asked = await terminal.run("ask", "hello", "--agent", "echo")
    submitted = await terminal.run("submit", terminal.file("rows.jsonl", rows(3)), "--agent", "echo")
    terminal.module = ("-c", ONLY.replace("agent_relay.client", "agent_relay.api.app"))
    server = await terminal.run()

    assert (asked.status, asked.answer) == (0, "You said: hello\n"), asked.told
    assert submitted.status == 0
    assert "is not for the client" in server.told


# Schedules.


async def test_schedules_are_made_listed_paused_resumed_and_deleted(terminal: Terminal, client: Client) -> None:
    thread_id = await client.thread("echo")
    none = await terminal.run("schedules", "list")
    long = "hello " * 20
    made = await terminal.run(
        "schedules", "create", "0 8 * * MON-FRI", long, "--agent", "echo", "--timezone", "Asia/Tokyo"
    )
    other = await terminal.run(
        "schedules", "create", "@daily", "hi", "--thread", thread_id, "--strategy", "reject", "--paused", "--json"
    )
    schedule_id = made.answer.split()[0]
    listed = await terminal.run("schedules", "list")
    as_json = await terminal.run("schedules", "list", "--json")
    paused = await terminal.run("schedules", "pause", schedule_id)
    resumed = await terminal.run("schedules", "resume", schedule_id)
    deleted = await terminal.run("schedules", "delete", schedule_id)
    again = await terminal.run("schedules", "delete", schedule_id)
    left = (await client.http.get("/schedules")).json()["items"]

    assert (none.status, none.answer) == (0, "")
    assert "schedules create --help" in none.told
    for told in (made, resumed):
        assert told.status == 0, told.told
        assert "  next 2" in told.answer
        assert "0 8 * * MON-FRI (Asia/Tokyo)  echo  hello hello" in told.answer
    assert "…" in made.answer
    assert paused.answer.startswith(f"{schedule_id}  paused  ")
    second = json.loads(other.answer)
    assert (second["thread_id"], second["multitask_strategy"], second["paused"]) == (thread_id, "reject", True)
    assert [line.split()[0] for line in listed.answer.splitlines()] == [second["id"], schedule_id]
    assert [each["query"] for each in json.loads(as_json.answer)] == ["hi", long]
    assert (deleted.status, deleted.answer) == (0, "The schedule is deleted.\n")
    assert (again.status, again.answer) == (3, "")
    assert [each["id"] for each in left] == [second["id"]]


async def test_what_is_wrong_with_a_schedule_is_said(terminal: Terminal) -> None:
    cron = await terminal.run("schedules", "create", "0 0 30 2 *", "hello", "--agent", "echo")
    zone = await terminal.run("schedules", "create", "@daily", "hello", "--agent", "echo", "--timezone", "Mars")
    strategy = await terminal.run("schedules", "create", "@daily", "hello", "--agent", "echo", "--strategy", "reject")
    target = await terminal.run("schedules", "create", "@daily", "hello")
    action = await terminal.run("schedules")
    taught = await terminal.run("schedules", "create", "--help")

    assert [each.status for each in (cron, zone, strategy, target, action)] == [3, 3, 3, 2, 2]
    assert "/cron: " in cron.told
    assert "/timezone: " in zone.told
    assert "thread" in strategy.told
    assert "--agent --thread" in target.told
    assert "action" in action.told
    for word in ("@daily", "--timezone NAME", "MON-FRI", "AGENT_RELAY_URL"):
        assert word in taught.answer
