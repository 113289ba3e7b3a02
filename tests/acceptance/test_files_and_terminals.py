"""The command-line client with files, pipes, terminals and environments as they really are."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import json
import os
import pty
import resource
import signal
import ssl
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path
from threading import Thread
from uuid import uuid4

import httpx
import pytest
import trustme

from agent_relay.client.__main__ import main
from agent_relay.client.input_rows import Rows, csv_rows, json_lines
from agent_relay.client.input_source import Source
from agent_relay.client.results_table import harmless
from tests.support.client import Client
from tests.support.command import Terminal, batches_of, lines_of, outputs_of
from tests.support.eventually import soon
from tests.support.service import ROOT, Running

QUESTIONS = "ticket;question;team\n1;Größe?;Süd\n2;Straße, bitte;Nord\n"
FORM = {"title": "A form", "pages": 12, "tags": ["one", "two"]}


@pytest.fixture
async def terminal(shared_api: Running, client: Client, tmp_path: Path) -> AsyncGenerator[Terminal]:
    """A terminal of the user."""
    async with Terminal(shared_api.url, client.user_id, tmp_path) as terminal:
        yield terminal


def shell(terminal: Terminal, line: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of Bash, in which `relay` is the client."""
    relay = f'relay() {{ "{sys.executable}" -m agent_relay.client "$@"; }}; set -o pipefail\n'
    environment = terminal.surroundings() | {"PYTHONPATH": str(ROOT)}
    folder = cwd or terminal.folder
    return subprocess.run(
        ["bash", "-c", relay + line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


async def in_shell(terminal: Terminal, line: str) -> subprocess.CompletedProcess[str]:
    """Do the same beside this loop."""
    ended = await asyncio.to_thread(shell, terminal, line)
    assert "Traceback" not in ended.stderr
    return ended


Reading = Callable[..., Rows]

NO_NUMBERS = [
    ("threads --limit 0", "argument --limit: must be 1 or more, not '0'"),
    ("threads --limit=-3", "argument --limit: must be 1 or more, not '-3'"),
    ("agents --patience nan", "argument --patience: must be 0 seconds or more, not 'nan'"),
    ("agents --wait inf", "argument --wait: must be 0 seconds or more, not 'inf'"),
    ("agents --patience=-1", "argument --patience: must be 0 seconds or more, not '-1'"),
    ("agents --patience soon", "argument --patience: must be 0 seconds or more, not 'soon'"),
    ("submit rows.jsonl --agent echo --max-running 0", "argument --max-running: must be 1 or more, not '0'"),
    ("submit rows.jsonl --agent echo --deadline nan", "argument --deadline: must be 0 seconds or more, not 'nan'"),
    ("agents --url http://127.0.0.1:99999", "The URL must look like http://127.0.0.1:8000"),
]
INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}" and "agent_relay.client" in sys.modules:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
"""Ctrl-C is pressed as the client imports that module."""


@pytest.fixture
def rows_of(tmp_path: Path) -> Generator[Reading]:
    """Read files of rows."""
    with ExitStack() as sources:

        def rows_of(content: bytes, name: str, **options: str) -> Rows:
            path = tmp_path / name
            path.write_bytes(content)
            source = sources.enter_context(closing(Source.read(path, options.get("encoding"))))
            if name.endswith(".csv"):
                return csv_rows(source, "question", options.get("id_column"), options.get("delimiter"))
            return json_lines(source)

        yield rows_of


def items(rows: Rows) -> list[dict[str, object]]:
    """Read what would be sent."""
    return [json.loads(line) for _, line in rows.read()]


# What is read.


@pytest.mark.parametrize(
    "line",
    [
        """relay submit <(printf '{"query": "one"}\\n{"query": "two"}\\n') --agent echo""",
        """printf '{"query": "one"}\\n{"query": "two"}' | relay submit - --agent echo""",
        """printf '{"query": "one"}\\r{"query": "two"}\\r' | relay submit /dev/stdin --agent echo""",
        """printf 'question\\none\\ntwo\\n' | relay submit - --agent echo --column question""",
        """mkfifo pipe; printf '{"query": "one"}\\n{"query": "two"}\\n' > pipe & relay submit pipe --agent echo""",
        """echo '{"query": "one"}' > f; echo '{"query": "two"}' >> f; relay submit /dev/stdin --agent echo < f""",
        """echo '{"query": "one"}' > f; echo '{"query": "two"}' >> f; relay submit - --agent echo < f""",
    ],
)
async def test_a_pipe_is_read_once_and_sent(terminal: Terminal, line: str) -> None:
    ended = await in_shell(terminal, line)
    again = await in_shell(terminal, line)

    assert ended.returncode == again.returncode == 0, ended.stderr
    assert ended.stdout == again.stdout == "rows.results.jsonl: 2 results, 2 succeeded\n"
    assert outputs_of(terminal.folder / "rows.results.jsonl") == {"1": "You said: one", "2": "You said: two"}


async def test_another_pipe_is_not_taken_for_the_first(terminal: Terminal, client: Client) -> None:
    await in_shell(terminal, """echo '{"query": "one"}' | relay submit - --agent echo""")
    other = await in_shell(terminal, """echo '{"query": "two"}' | relay submit - --agent echo""")

    assert other.returncode == 2
    assert "the rows changed" in other.stderr
    assert len(await batches_of(client)) == 1


class Slow(BaseHTTPRequestHandler):
    """A service that asks to be asked later until the test has changed the file."""

    changes: list[Callable[[], object]]
    bodies: list[bytes]

    def do_POST(self) -> None:
        """Take the second."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        Slow.bodies.append(body)
        for change in Slow.changes:
            change()
        first = len(Slow.bodies) == 1
        said = json.dumps({"title": "Later"} if first else {"id": "the-batch"}).encode()
        self._answer(503 if first else 202, said)

    def do_GET(self) -> None:
        """Tell a result for each."""
        results = [
            {"cursor": number, "custom_id": json.loads(line)["custom_id"], "status": "succeeded", "output": "x"}
            for number, line in enumerate(Slow.bodies[-1].splitlines(), 1)
        ]
        self._answer(200, "".join(json.dumps(result) + "\n" for result in results).encode())

    def _answer(self, status: int, said: bytes) -> None:
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  (named so by the class)
        """Say nothing."""


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda path: path.write_text('{"query": "one"}\n{"query": "two"}\n{"query": "three"}\n'),
    "shrinks": lambda path: path.write_text('{"query": "one"}\n'),
    "is replaced": lambda path: (path.with_name("new").write_text("nonsense"), path.with_name("new").replace(path)),
    "is removed": lambda path: path.unlink(missing_ok=True),
}


@pytest.mark.parametrize("how", CHANGES)
async def test_a_file_that_changes_while_it_is_sent_is_sent_as_it_was(terminal: Terminal, how: str) -> None:
    asked = terminal.file("rows.jsonl", '{"query": "one"}\n{"query": "two"}\n')
    Slow.bodies, Slow.changes = [], [lambda: CHANGES[how](asked)]
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        Thread(target=slow.serve_forever, daemon=True).start()
        terminal.url = f"http://127.0.0.1:{slow.server_port}"
        ended = await terminal.run("submit", asked, "--agent", "echo")
        slow.shutdown()

    assert (ended.status, len(Slow.bodies)) == (0, 2), ended.told
    assert Slow.bodies[0] == Slow.bodies[1]
    assert [json.loads(line)["query"] for line in Slow.bodies[1].splitlines()] == ["one", "two"]
    assert "rows.jsonl has changed since it was read" in ended.told


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "one"}\n')
    looks = iter([path.stat(), None])

    def fstat(_: int) -> os.stat_result:
        if next(looks, None) is None:
            with path.open("a") as file:
                file.write('{"query": "half of a li')
        return path.stat()

    monkeypatch.setattr("agent_relay.client.input_source.os.fstat", fstat)
    with pytest.raises(Exception, match="changed while it was read"):
        Source.read(path, None)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (QUESTIONS.encode(), "UTF-8"),
        (b"\xef\xbb\xbf" + QUESTIONS.encode(), "UTF-8"),
        (QUESTIONS.encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + QUESTIONS.encode("utf-16-be"), "UTF-16"),
        (QUESTIONS.encode("utf-32"), "UTF-32"),
        (QUESTIONS.encode("cp1252"), "Windows-1252"),
        (QUESTIONS.replace("\n", "\r").encode("cp1252"), "Windows-1252"),
        (QUESTIONS.replace("\n", "\r\n").rstrip().encode(), "UTF-8"),
        (b"sep=;\r\n" + QUESTIONS.encode(), "UTF-8"),
        (b'"sep=;"\r\n' + QUESTIONS.encode("cp1252"), "Windows-1252"),
        (QUESTIONS.replace(";", "\t").encode("utf-16"), "UTF-16"),
        (QUESTIONS.replace(";", "|").encode(), "UTF-8"),
        (QUESTIONS.replace("Straße, bitte", '"Straße, bitte"').replace(";", ",").encode(), "UTF-8"),
        (QUESTIONS.replace("\n", ";;\n").encode(), "UTF-8"),
        (QUESTIONS.replace("\n2", "\n;;\n\n2").encode(), "UTF-8"),
    ],
)
def test_csv_is_read_as_spreadsheets_write_it(rows_of: Reading, content: bytes, encoding: str) -> None:
    rows = rows_of(content, "rows.csv")

    assert items(rows) == [
        {"custom_id": "1", "query": "Größe?", "metadata": {"ticket": "1", "team": "Süd"}},
        {"custom_id": "2", "query": "Straße, bitte", "metadata": {"ticket": "2", "team": "Nord"}},
    ]
    assert rows.source.encoding_name == encoding


def test_columns_of_one_name_are_all_kept(rows_of: Reading) -> None:
    rows = rows_of(b"id,note,question,note,\n7,a,Why?,b,c\n", "rows.csv", id_column="id")

    metadata = {"note": "a", "note (2)": "b", "column 5": "c"}
    assert items(rows) == [{"custom_id": "7", "query": "Why?", "metadata": metadata}]


def test_a_guess_can_be_overruled(rows_of: Reading) -> None:
    greek = "question#team\nΠώς;#a,b\n"
    rows = rows_of(greek.encode("iso8859-7"), "rows.csv", encoding="iso8859-7", delimiter="#")

    assert items(rows) == [{"custom_id": "1", "query": "Πώς;", "metadata": {"team": "a,b"}}]


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("rows.csv", "question\né, caf\xe9".encode() + b"\xe9\n", [], "is not text in UTF-8 from byte"),
        ("rows.csv", b"question\n\x81\n", [], "is not text in Windows-1252"),
        ("rows.csv", QUESTIONS.encode("utf-16-le"), [], "--encoding utf-16-le"),
        ("rows.csv", QUESTIONS.encode("utf-16") + b"a", [], "is not text in UTF-16"),
        ("rows.xlsx", b"PK\x03\x04\0\0\0", [], "holds NUL bytes"),
        ("rows.jsonl", b'{"query": "a"}\n' + b"\0" * 100, [], "holds NUL bytes"),
        ("rows.jsonl", b'\n [{"query": "a"}]', [], "is a JSON array"),
        ("rows.jsonl", b"", [], "holds no rows"),
        ("rows.jsonl", b" \r\n\r\n", [], "holds no rows"),
        ("rows.txt", b"question\nhello\n", [], "Columns of"),
        ("rows.csv", b'question\n"a\n', [], "a quote is opened there and never closed".capitalize()),
        ("rows.csv", b'question\n"a" b\n', [], "separated by commas: row 1"),
        ("rows.csv", b"question,b\n1,2,3\n", [], "row 1: 3 values for 2 columns"),
        ("rows.csv", b"question\n1\n", ["--delimiter", "ab"], "--delimiter must be one character"),
        ("rows.csv", b"question\n1\n", ["--delimiter", "\n"], "--delimiter must be one character"),
        ("rows.csv", b"question\n1\n", ["--encoding", "base64"], "is no encoding of text"),
        ("rows.csv", b"question\n1\n", ["--encoding", "klingon"], "is no encoding of text"),
    ],
)
async def test_what_cannot_be_read_is_said_in_a_sentence(
    terminal: Terminal, name: str, content: bytes, options: Sequence[str], said: str
) -> None:
    (terminal.folder / name).write_bytes(content)
    column = ["--column", "question"] if name == "rows.csv" else []
    ended = await terminal.run("submit", terminal.folder / name, "--agent", "echo", *column, *options)

    assert ended.status == 2
    assert said in ended.told
    assert len(ended.told.splitlines()) <= 2
    assert terminal.files() == [name]


@pytest.mark.parametrize("path", ["", "missing.jsonl", "/etc/passwd/x"])
async def test_a_file_that_is_none_is_named(terminal: Terminal, path: str) -> None:
    ended = await terminal.run("submit", terminal.folder / path, "--agent", "echo")

    assert ended.status == 2
    assert ended.told.count("\n") == 1
    assert "rows" in ended.told or str(terminal.folder / path) in ended.told


async def test_what_was_found_out_about_a_file_is_said_and_its_columns_kept(terminal: Terminal, client: Client) -> None:
    (terminal.folder / "export.txt").write_bytes(QUESTIONS.encode("cp1252"))
    asked = terminal.folder / "export.txt"
    ended = await terminal.run("submit", asked, "--agent", "echo", "--column", "question", "--id-column", "ticket")
    output = terminal.folder / "export.results.jsonl"

    assert ended.status == 0, ended.told
    assert "export.txt: CSV in Windows-1252, separated by semicolons." in ended.told
    assert outputs_of(output) == {"1": "You said: Größe?", "2": "You said: Straße, bitte"}
    run = await client.read(next(line["run_id"] for line in lines_of(output) if line["custom_id"] == "2"))
    assert run["metadata"] == {"team": "Nord"}


def test_a_very_long_line_is_a_row(rows_of: Reading) -> None:
    long = "x" * (5 << 20)

    assert items(rows_of(b'{"query": "%s"}' % long.encode(), "rows.jsonl"))[0]["query"] == long
    assert items(rows_of(b"question\n%s\n" % long.encode(), "rows.csv"))[0]["query"] == long


# What is written.


async def test_results_are_a_table_on_request(terminal: Terminal) -> None:
    content = "ticket;question;status\r\n9;=1+1;new\r\n8;Größe?;-5\r\n".encode("cp1252")
    asked = terminal.folder / "rows.csv"
    asked.write_bytes(content)
    table = terminal.folder / "rows.results.csv"
    submit = "submit", asked, "--agent", "form", "--column", "question", "--id-column", "ticket", "--format", "csv"
    first = await terminal.run(*submit)
    written = table.read_bytes()
    table.unlink()
    terminal.url = "http://127.0.0.1:1"
    again = await terminal.run(*submit)

    assert (first.status, first.answer) == (again.status, again.answer) == (0, f"{table}: 2 results, 2 succeeded\n")
    assert table.read_bytes() == written
    records = list(csv.DictReader(written.decode("utf-8-sig").splitlines(), delimiter=";"))
    assert [record["custom_id"] for record in records] == ["9", "8"]  # In the order of the rows.
    assert [record["query"] for record in records] == ["'=1+1", "Größe?"]
    assert [record["metadata.status"] for record in records] == ["new", "-5"]
    for record in records:
        assert {name: record[name] for name in FORM} == {"title": "A form", "pages": "12", "tags": '["one", "two"]'}
        assert (record["status"], record["error"]) == ("succeeded", "")


async def test_a_table_tells_of_failures_and_leaves_others_alone(terminal: Terminal) -> None:
    asked = terminal.file("rows.jsonl", '{"query": "good"}\n{"query": "0.0"}\n')
    table = terminal.folder / "out.csv"
    table.write_text("precious")
    submit = "submit", asked, "--agent", "slow", "--format", "csv", "--output", table
    refused = await terminal.run(*submit)
    kept = table.read_text()
    table.unlink()
    ended = await terminal.run(*submit)

    assert (refused.status, kept) == (2, "precious")
    assert "is there already" in refused.told
    assert ended.status == 1
    records = list(csv.DictReader(table.read_text().splitlines()))
    assert [record["status"] for record in records] == ["succeeded", "failed"]
    assert records[1]["error"].startswith("agent_error: ")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|'/c calc'!A0", "'=cmd|'/c calc'!A0"),
        ("+1 then", "'+1 then"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-2+3", "'-2+3"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("-5", "-5"),
        ("+49,5", "+49,5"),
        ("plain = text", "plain = text"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert harmless(text) == cell


@pytest.mark.parametrize("output", ["/dev/full", "/dev/null", "/dev/stdout", ""])
async def test_results_need_a_file(terminal: Terminal, client: Client, output: str) -> None:
    asked = terminal.file("rows.jsonl", '{"query": "one"}\n')
    ended = await terminal.run("submit", asked, "--agent", "echo", "--output", output or terminal.folder)

    assert ended.status == 2
    assert "is not a file" in ended.told
    assert await batches_of(client) == []


async def test_a_disk_that_is_full_can_be_gone_on_from(terminal: Terminal, client: Client) -> None:
    asked = terminal.file("rows.jsonl", "".join(f'{{"query": "row {n}"}}\n' for n in range(40)))
    submit = "submit", asked, "--agent", "echo"
    command = await terminal.begin(*submit)
    await asyncio.to_thread(_limit_files, command.process.pid, 3000)
    full = await command.ended()
    rest = await terminal.run(*submit)

    assert full.status == 2
    assert full.told.endswith("File too large\n")
    assert "Traceback" not in full.told
    assert rest.status == 0
    assert len(outputs_of(terminal.folder / "rows.results.jsonl")) == 40
    assert len(await batches_of(client)) == 1


def _limit_files(pid: int, size: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


async def test_a_folder_that_cannot_be_written_is_named(terminal: Terminal) -> None:
    asked = terminal.file("rows.jsonl", '{"query": "one"}\n')
    output = terminal.folder / "missing" / "out.jsonl"
    ended = await terminal.run("submit", asked, "--agent", "echo", "--output", output)

    assert (ended.status, ended.told) == (2, f"{output}: No such file or directory.\n")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("relay ask hello --agent echo > /dev/full", 2, "The answer cannot be written (No space left on device)."),
        ("relay ask hello --agent echo >&-", 2, "Standard output is closed"),
        ("relay agents > /dev/full", 2, "standard output: No space left on device."),
        ("(sleep 1; relay agents) | true", 141, ""),
        ("(sleep 1; relay ask hello --agent echo --json) 2>&1 | true", 141, ""),
    ],
)
async def test_an_answer_that_cannot_be_written_is_an_error(
    terminal: Terminal, line: str, status: int, said: str
) -> None:
    ended = await in_shell(terminal, line)

    assert ended.returncode == status
    assert said in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2> >(true)", "</dev/null", "<&-"])
async def test_an_answer_does_not_need_the_other_streams(terminal: Terminal, redirection: str) -> None:
    ended = await in_shell(terminal, f"relay ask hello --agent echo {redirection}")
    submitted = await in_shell(
        terminal, f"""echo '{{"query": "one"}}' > rows.jsonl; relay submit rows.jsonl --agent echo {redirection}"""
    )

    assert (ended.returncode, ended.stdout) == (0, "You said: hello\n")
    assert submitted.returncode == 0


# Environments.


@pytest.mark.parametrize(
    "environment",
    [
        {"ALL_PROXY": "socks://127.0.0.1:9"},
        {"HTTP_PROXY": "garbage://x", "http_proxy": "::::"},
        {"all_proxy": "http://[", "NO_PROXY": "[::1]:x,,*.,:/"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "xx_YY.no-such"},
        {"TERM": "dumb"},
        {"COLUMNS": "1", "LINES": "1"},
        {"COLUMNS": "0"},
        {"NO_COLOR": "1", "TERM": ""},
        {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
async def test_an_odd_environment_costs_no_answer(terminal: Terminal, environment: dict[str, str]) -> None:
    terminal.environment |= environment
    ended = await terminal.run("ask", "hello", "--agent", "echo")
    submitted = await terminal.run("submit", terminal.file("rows.jsonl", '{"query": "one"}'), "--agent", "echo")

    assert (ended.status, ended.answer, ended.told) == (0, "You said: hello\n", "")
    assert submitted.status == 0
    assert outputs_of(terminal.folder / "rows.results.jsonl") == {"1": "You said: one"}


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252:strict", "utf-8"])
@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_characters_that_an_encoding_lacks_are_escaped(
    terminal: Terminal, encoding: str, options: Sequence[str]
) -> None:
    terminal.environment |= {"PYTHONIOENCODING": encoding}
    query = "é 漢 \N{GRINNING FACE}"
    command = await terminal.begin("ask", query, "--agent", "echo", *options)
    answer, told = await command.process.communicate()
    text = answer.decode(encoding.partition(":")[0])

    assert command.process.returncode == 0, told
    said = json.loads(text)["output"] if options else json.loads(f'"{text.strip()}"')
    assert said == f"You said: {query}"
    assert (b"PYTHONIOENCODING" in told) == (encoding != "utf-8")


@pytest.mark.parametrize(
    ("environment", "url", "said"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "http://relay.test", "ALL_PROXY names a proxy that cannot be used"),
        ({"HTTP_PROXY": "garbage://x"}, "http://relay.test", "HTTP_PROXY names a proxy that cannot be used"),
        ({"https_proxy": "http://["}, "https://relay.test", "HTTPS_PROXY names a proxy that cannot be used"),
        ({"SSL_CERT_FILE": "/nonexistent"}, "https://127.0.0.1:1", "The certificates of SSL_CERT_FILE"),
        ({}, "127.0.0.1:8000", "The URL must look like"),
        ({}, "http://", "The URL must look like"),
    ],
)
async def test_an_environment_that_cannot_be_used_is_named(
    terminal: Terminal, environment: dict[str, str], url: str, said: str
) -> None:
    terminal.environment |= environment
    terminal.url = url
    ended = await terminal.run("ask", "hello", "--agent", "echo")

    assert (ended.status, ended.answer) == (2, "")
    assert said in ended.told
    assert ended.told.count("\n") == 1


async def test_a_query_that_is_not_text_is_refused(terminal: Terminal) -> None:
    ended = await in_shell(terminal, r"relay ask $'caf\xe9' --agent echo")

    assert ended.returncode == 2
    assert "The query is not text" in ended.stderr


async def test_netrc_is_not_read(terminal: Terminal, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    class Watching(Slow):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self._answer(200, b"[]")

    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    terminal.environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
    with ThreadingHTTPServer(("127.0.0.1", 0), Watching) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        terminal.url = f"http://127.0.0.1:{server.server_port}"
        ended = await terminal.run("agents")
        server.shutdown()

    assert ended.status == 0
    assert "authorization" not in seen[0]


NAMELESS = """
import os, pwd, runpy

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid, os.getuid, os.geteuid = getpwuid, lambda: 12345, lambda: 12345
runpy.run_module("agent_relay.client", run_name="__main__", alter_sys=True)
"""


async def test_a_user_without_a_name_or_a_home_is_served(terminal: Terminal) -> None:
    assert "HOME" not in terminal.surroundings()
    terminal.module = ("-c", NAMELESS)
    ended = await terminal.run("ask", "hello", "--agent", "echo")

    assert (ended.status, ended.answer) == (0, "You said: hello\n"), ended.told


# Addresses and keys.


async def test_a_wrong_key_says_where_it_is_set(terminal: Terminal) -> None:
    ended = await terminal.run("agents", "--key", "wrong")

    assert ended.status == 3
    assert "AGENT_RELAY_API_KEY" in ended.told


async def test_a_service_that_does_not_run_is_said_how_to_start(terminal: Terminal) -> None:
    terminal.url = "http://127.0.0.1:1"
    ended = await terminal.run("agents", "--patience", "0.1")

    assert ended.status == 3
    assert "`make run` starts it" in ended.told


class Elsewhere(Slow):
    """A web server that is not agent-relay."""

    def do_GET(self) -> None:
        """Redirect, or show a page."""
        if self.path.startswith("/moved"):
            self.send_response(301)
            self.send_header("Location", "https://elsewhere.example.com/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._answer(200 if self.path.startswith("/page") else 404, b"<html>")


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/moved", 2, "sends on to https://elsewhere.example.com/. Give the address of that."),
        ("/page", 2, "answers, but not as agent-relay does. Is the address right?"),
        ("/nothing", 3, "404 Not Found): this is not how agent-relay answers. Is the address right?"),
    ],
)
async def test_another_server_is_recognised(terminal: Terminal, path: str, status: int, said: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        terminal.url = f"http://127.0.0.1:{server.server_port}{path}"
        ended = await terminal.run("agents")
        server.shutdown()

    assert ended.status == status
    assert said in ended.told


@pytest.mark.parametrize("suffix", ["/", "//", "/api/v1", "/api/v1/"])
async def test_an_address_may_end_as_it_is_pasted(terminal: Terminal, suffix: str) -> None:
    terminal.url += suffix

    assert (await terminal.run("agents")).status == 0


async def test_a_certificate_of_ones_own_must_be_named(terminal: Terminal, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    class Listing(Slow):
        def do_GET(self) -> None:
            self._answer(200, b"[]")

    with ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        terminal.url = f"https://127.0.0.1:{server.server_port}"
        stranger = await terminal.run("agents")
        terminal.environment |= {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        known = await terminal.run("agents")
        server.shutdown()

    assert stranger.status == 2
    assert "a certificate that is not trusted" in stranger.told
    assert "SSL_CERT_FILE" in stranger.told
    assert known.status == 0


async def test_tls_with_a_server_that_has_none_is_said(terminal: Terminal) -> None:
    terminal.url = terminal.url.replace("http://", "https://")
    ended = await terminal.run("agents")

    assert ended.status == 2
    assert "does not speak TLS" in ended.told


# On a terminal.


def on_a_terminal(terminal: Terminal, *arguments: str, typed: Sequence[str] = (), **environment: str) -> str:
    """Run a command on a terminal that is being resized; returns all that the terminal was sent."""
    ours, theirs = pty.openpty()
    command = [sys.executable, *terminal.module, *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=terminal.surroundings() | {"TERM": "xterm", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    sizes = [(24, 80), (1, 1), (50, 200)]
    with FileIO(ours) as screen, suppress(OSError):  # An error, once nobody writes to it any more.
        while some := screen.read(1 << 16):
            shown += some
            if typed and shown.endswith(b"> "):
                os.write(ours, typed[0].encode())
                typed = typed[1:]
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", *sizes[0], 0, 0))
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGWINCH)
            sizes.append(sizes.pop(0))
    assert process.wait(60) == 0, shown.decode()
    return shown.decode()


HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b31m\x7f\x08\u202e"


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"COLUMNS": "1", "LINES": "1"}, {"NO_COLOR": "1"}])
async def test_a_terminal_obeys_no_answer(
    terminal: Terminal, options: Sequence[str], environment: dict[str, str]
) -> None:
    arguments = ("ask", f"red {HOSTILE} alert", "--agent", "echo", *options)
    shown = await asyncio.to_thread(on_a_terminal, terminal, *arguments, **environment)

    assert "alert" in shown
    for forbidden in ("\x1b]0;", "\x1b[31m", "\x9b", "\x07", "\x7f", "\u202e"):
        assert forbidden not in shown


async def test_threads_of_hostile_words_are_shown_harmlessly(terminal: Terminal, client: Client) -> None:
    thread_id = await client.thread("echo", note=HOSTILE)
    await client.ask(f"red {HOSTILE}", thread_id=thread_id)
    for arguments in (("threads",), ("threads", thread_id), ("threads", "--json")):
        shown = await asyncio.to_thread(on_a_terminal, terminal, *arguments)
        assert thread_id in shown or "You said" in shown
        assert not {"\x9b", "\x07", "\u202e"} & set(shown)
        assert "\x1b" not in shown


async def test_a_bar_moves_on_any_terminal(terminal: Terminal) -> None:
    for size in ("1", "80"):
        asked = terminal.file(f"{size}.jsonl", "".join(f'{{"query": "row {n}"}}\n' for n in range(30)))
        shown = await asyncio.to_thread(
            on_a_terminal, terminal, "submit", str(asked), "--agent", "echo", COLUMNS=size, LINES=size
        )
        assert "30 succeeded" in shown


# Conversations.


async def test_agents_are_listed(terminal: Terminal) -> None:
    listed = await terminal.run("agents")
    told = json.loads((await terminal.run("agents", "--json")).answer)

    assert any(line.startswith("echo ") and "Says the query back" in line for line in listed.answer.splitlines())
    assert len(told) == len(listed.answer.splitlines())


async def test_a_conversation_is_held_line_by_line(terminal: Terminal, client: Client) -> None:
    ended = await in_shell(terminal, r"printf 'one\n\n  two\nthree' | relay chat --agent echo")
    (thread,) = (await client.http.get("/threads")).json()["items"]
    listed = await terminal.run("threads")
    shown = await terminal.run("threads", thread["id"])
    more = await in_shell(terminal, f"echo four | relay chat --thread {thread['id']}")

    assert (ended.returncode, ended.stdout) == (0, "You said: one\nYou said: two\nYou said: three\n")
    assert f"chat --thread {thread['id']}" in ended.stderr
    assert listed.answer.startswith(thread["id"])
    assert shown.answer.splitlines()[:2] == ["user: one", "assistant: You said: one"]
    assert (more.returncode, more.stdout) == (0, "You said: four\n")
    assert len(await client.messages(thread["id"])) == 8


async def test_a_conversation_goes_on_after_a_failure(terminal: Terminal) -> None:
    ended = await in_shell(terminal, r"printf '0.0\n0.1 s\n' | relay chat --agent slow")
    unknown = await in_shell(terminal, "echo hello | relay chat --agent nobody")

    assert (ended.returncode, ended.stdout) == (1, "tick 1 tick 2 \n")
    assert "agent_error" in ended.stderr
    assert unknown.returncode == 3


async def test_a_conversation_on_a_terminal_prompts_and_ends_with_ctrl_d(terminal: Terminal) -> None:
    shown = await asyncio.to_thread(on_a_terminal, terminal, "chat", "--agent", "echo", typed=["hello\x7fp\n", "\x04"])

    assert "> " in shown
    assert "You said: hellp" in shown


async def test_ctrl_c_leaves_a_conversation_and_says_how_to_go_on(terminal: Terminal, client: Client) -> None:
    thread_id = await client.thread("slow")
    command = await terminal.begin("chat", "--thread", thread_id)
    ended = await command.ended()
    assert (ended.status, ended.answer) == (0, "")  # Without input there is nothing to ask.

    async def running() -> bool:
        return bool((await client.http.get("/runs", params={"status": "running"})).json()["items"])

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *terminal.module, "chat", "--thread", thread_id),
        cwd=ROOT,
        env=terminal.surroundings(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"30 s\n")
    await soon(running)
    await asyncio.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()

    assert process.returncode == 130
    assert b"agent-relay follow " in told


@pytest.mark.parametrize(("words", "said"), NO_NUMBERS)
def test_a_number_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.setenv("AGENT_RELAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AGENT_RELAY_API_KEY", "ar_x")
    monkeypatch.setenv("AGENT_RELAY_USER_ID", str(uuid4()))
    monkeypatch.setattr(sys, "argv", ["relay", *words.split()])
    try:
        status = main()
    except SystemExit as refused:
        status = refused.code

    assert status == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("module", ["argparse", "httpx", "rich.live", "agent_relay.client.submit"])
def test_ctrl_c_while_the_client_is_imported_ends_it_without_a_word(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_IMPORT.format(module=module))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run(
        [sys.executable, "-m", "agent_relay.client", "agents"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


async def test_a_long_list_of_threads_is_read_to_its_end(terminal: Terminal, client: Client) -> None:
    for _ in range(105):
        await client.thread("echo")
    few, many = await terminal.run("threads", "--limit", "3"), await terminal.run("threads", "--limit", "1000")

    assert len(few.answer.splitlines()) == 3
    assert len(set(many.answer.splitlines())) == 105
    assert httpx.URL(terminal.url).host == "127.0.0.1"
