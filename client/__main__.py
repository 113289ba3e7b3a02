"""`agent-relay ask`, `submit` and the other commands of callers, which `python -m agent_relay.client` is, too."""

from __future__ import annotations

from agent_relay.client.interrupts import INTERRUPTED, leave_at_once, raise_again

if __name__ == "__main__":
    leave_at_once()  # Before the imports that take long.

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from agent_relay.client.answers import ask_for, can_ask, given, open_requests, said
from agent_relay.client.ask import Answer, ask, follow
from agent_relay.client.chat import begin, chat, lines
from agent_relay.client.connection import API, Caller, Connection
from agent_relay.client.errors import OutOfReach, Refused, Wrong
from agent_relay.client.input_rows import Rows, csv_rows, json_lines, name_of_delimiter, said_delimiter
from agent_relay.client.input_source import Source
from agent_relay.client.schedules import ABOUT as SCHEDULES
from agent_relay.client.schedules import add_actions
from agent_relay.client.submit import Order, submit
from agent_relay.client.terminal import Bar, Screen, Scroll, complain, escape_what_cannot_be_written, put, readable

COMMAND = "agent-relay"
URL, KEY, USER = "AGENT_RELAY_URL", "AGENT_RELAY_API_KEY", "AGENT_RELAY_USER_ID"
SUCCEEDED, NOT_ALL_SUCCEEDED, WRONG, NOT_SERVED, UNREAD = 0, 1, 2, 3, 141
LOCAL = Path(".local/client.env")
"""What `agent-relay run` says of the service that it runs in this folder."""
PATIENCE_SECONDS = 3600.0
LARGEST_PORT = 65_535
LONGEST_PAGE = 100
"""Items that the service lists at once."""
_USER = re.compile(r"[!-~]([ -~]{0,126}[!-~])?", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_CSV_SUFFIXES, _JSON_SUFFIXES = {".csv", ".tsv", ".tab", ".psv"}, {".jsonl", ".ndjson", ".json"}

ABOUT = f"""\
environment:
  {URL}      where the service is; --url
  {KEY}  your API key; --key
  {USER}  the user in whose name you call, a UUID or a name; --user
Where `agent-relay run` runs in the same folder, all three are known.

exit status:
  0    succeeded; of submit: all rows
  1    failed or cancelled; of submit: some rows
  2    the command cannot be carried out as it was given, or a file not be read or written
  3    the service refused, or was out of reach for too long
  130  interrupted with Ctrl-C; what was accepted goes on
  141  nobody reads standard output any more, as in `… | head -1`; what was accepted goes on

Commands wait out what passes: a lost connection, a restart of the service, "try again later".
"""

EXAMPLES = """\
examples:
  agent-relay ask "What is my balance?" --agent bank_support
  agent-relay submit rows.jsonl --agent bank_support
  agent-relay submit rows.csv --column question --agent bank_support --format csv --output answers.csv
  agent-relay chat --agent bank_support
  agent-relay agents
"""

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,308})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[1-9][0-9]{0,17}")

SUBMIT = """\
Rows are JSON lines, {"custom_id": …, "query": …, "metadata": …}, or CSV with a header, whose other columns become the
metadata. A line without a custom_id gets its number; so does a row of CSV without --id-column, the first one below the
header being 1. FILE may be a pipe, or - for standard input. It is read once, before anything is sent. The delimiter of
CSV and the encoding are found out, and said.

Results are appended to the output as they come, a JSON line each, in the order of ending. Interrupt it however you
like: the same command goes on where it was, and does not submit twice. For that, it keeps a note in OUTPUT.batch.
With --format csv, they are written to OUTPUT as a table in the end, and kept in OUTPUT.jsonl until then.
"""


def _seconds(text: str) -> float:
    """Read a time, for `argparse`: as JSON writes numbers, not as Python reads them (`1_0`, ` 5`, `inf`)."""
    if not _DECIMAL.fullmatch(text) or math.isinf(seconds := float(text)):
        raise argparse.ArgumentTypeError(
            f"must be 0 seconds or more, not {text[:40]!r}: write plain digits, such as 2.5"
        )
    return seconds


def _count(text: str) -> int:
    """Read how many, for `argparse`."""
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text[:40]!r}: write plain digits, such as 20")
    return int(text)


def _said_by_the_environment() -> dict[str, str]:
    """Return the variables above; those that are not set, as `agent-relay run` wrote them down in this folder."""
    try:
        local = dict(line.split("=", 1) for line in LOCAL.read_text().splitlines())
    except (OSError, ValueError):
        local = {}
    return {**local, **{name: value for name in (URL, KEY, USER) if (value := os.environ.get(name))}}


def _parser() -> argparse.ArgumentParser:
    said = _said_by_the_environment()
    caller = argparse.ArgumentParser(add_help=False)
    who = caller.add_argument_group("who calls whom, if the environment does not say it")
    who.add_argument("--url", default=said.get(URL), help="such as http://127.0.0.1:8000")
    who.add_argument("--key", default=said.get(KEY), help="better in the environment: options can be listed")
    who.add_argument("--user", default=said.get(USER), help="a UUID, or any other text of 1 to 128 ASCII characters")
    who.add_argument(
        "--patience",
        type=_seconds,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help=f"how long to try while the service is out of reach (default: {PATIENCE_SECONDS:.0f})",
    )
    who.add_argument(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="how long to try while the service is full and says: later (default: for as long as it says so)",
    )

    parser = argparse.ArgumentParser(
        prog="agent-relay",
        description="Ask agents of an agent-relay service.",
        epilog=f"{EXAMPLES}\n{ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        about: str,
        more: str = "",
        among: Any = commands,
    ) -> argparse.ArgumentParser:
        added = among.add_parser(
            name,
            parents=[caller],
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"{more}\n{ABOUT}".lstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    added = command("ask", _ask, "ask one question and show the answer while it grows")
    added.add_argument("query")
    target = added.add_mutually_exclusive_group(required=True)
    target.add_argument("--agent", metavar="NAME", help="ask this agent, without a memory")
    target.add_argument("--thread", metavar="ID", help="go on with this conversation")
    added.add_argument("--json", action="store_true", help="print the whole run, as JSON")

    added = command("follow", _follow, "show the answer of a run that was asked before")
    added.add_argument("run_id", metavar="RUN")
    added.add_argument("--json", action="store_true", help="print the whole run, as JSON")

    _add_answers(command("answer", _answer, "answer what a run waits for; without options, the terminal asks"))
    _add_steering(command("steer", _steer, "tell a run something while it is under way"))

    about = "ask about each row of a file and write the answers to another"
    _add_rows(command("submit", _submit, about, SUBMIT))

    added = command("chat", _chat, "have a conversation, a line a query, until Ctrl-D")
    target = added.add_mutually_exclusive_group(required=True)
    target.add_argument("--agent", metavar="NAME", help="begin a conversation with this agent")
    target.add_argument("--thread", metavar="ID", help="go on with this conversation")

    added = command("agents", _agents, "list the agents that can be asked")
    added.add_argument("--json", action="store_true", help="print all that is known of them, as JSON")

    added = command("threads", _threads, "list your conversations, the newest first, or show one")
    added.add_argument("thread_id", nargs="?", metavar="ID", help="show the messages of this one")
    added.add_argument("--limit", type=_count, default=20, metavar="N", help="list so many at the most (default: 20)")
    added.add_argument("--json", action="store_true", help="print all that is known of them, as JSON")

    actions = _schedule_actions(commands)
    add_actions(lambda name, act, about: command(name, partial(_schedules, act), about, SCHEDULES, actions))

    added = command("cancel", _cancel, "cancel a run or a batch")
    which = added.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", dest="run_id", metavar="ID")
    which.add_argument("--batch", dest="batch_id", metavar="ID")
    return parser


def _caller(options: argparse.Namespace) -> Caller:
    """Read who calls.

    Raises:
        Wrong: it is not said, or makes no sense. The key is not repeated.
    """
    for value, option, name in ((options.url, "url", URL), (options.key, "key", KEY), (options.user, "user", USER)):
        if not value:
            raise Wrong(f"Set {name}, or give --{option}.")
    try:
        address = httpx.URL(options.url)
    except httpx.InvalidURL:
        address = httpx.URL()
    is_whole = address.scheme in {"http", "https"} and address.host and (address.port or 0) <= LARGEST_PORT
    if not is_whole or address.query or address.fragment:
        raise Wrong("The URL must look like http://127.0.0.1:8000 or https://relay.example.com.")
    if not options.key.isascii() or not options.key.isprintable() or options.key != options.key.strip():
        raise Wrong("The API key holds characters that no key has.")
    if not _USER.fullmatch(options.user):
        raise Wrong("The user must be a UUID, or 1 to 128 printable ASCII characters.")
    user = options.user.lower() if _UUID.fullmatch(options.user) else options.user
    return Caller(options.url.rstrip("/").removesuffix(API), options.key, user)


def _add_rows(added: argparse.ArgumentParser) -> None:
    added.add_argument("rows", type=Path, metavar="FILE", help="JSON lines or CSV; - is standard input")
    added.add_argument("--agent", required=True, metavar="NAME", help="the agent to ask")
    added.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where results go (default: beside FILE, *.results.jsonl; of a pipe: rows.results.jsonl)",
    )
    added.add_argument(
        "--format", choices=["jsonl", "csv"], default="jsonl", help="JSON lines, or a table (default: jsonl)"
    )
    added.add_argument("--column", metavar="NAME", help="of CSV: the column of the queries")
    added.add_argument("--id-column", metavar="NAME", help="of CSV: the column of the custom_ids")
    added.add_argument("--delimiter", metavar="CHARACTER", help="of CSV: what separates columns; also comma, tab, …")
    added.add_argument("--encoding", metavar="NAME", help="of FILE, such as windows-1252 or utf-16")
    added.add_argument("--max-running", type=_count, metavar="N", help="so many rows at once at the most")
    added.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="rows that have not ended by then fail")
    added.add_argument("--webhook", metavar="URL", help="where the service posts that all rows have ended")


def _schedule_actions(commands: Any) -> Any:
    """Add the command whose actions these are."""
    about = "have queries asked again and again: list, create, pause, resume or delete schedules"
    schedules = commands.add_parser(
        "schedules",
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"{SCHEDULES}\n{ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return schedules.add_subparsers(required=True, metavar="action")


def _add_steering(added: argparse.ArgumentParser) -> None:
    added.add_argument("run_id", metavar="RUN")
    added.add_argument("text", metavar="TEXT", help="what its agent is to know, or to do")


def _add_answers(added: argparse.ArgumentParser) -> None:
    added.add_argument("run_id", metavar="RUN")
    added.add_argument("--approve", action="append", default=[], metavar="REQUEST", help="approve this call")
    added.add_argument("--deny", action="append", default=[], metavar="REQUEST", help="deny this call")
    added.add_argument("--message", metavar="TEXT", help="with --deny: a message to the agent")
    for option, form, about in (
        ("--result", "JSON", "the answer or result; what is no JSON is a text"),
        ("--error", "TEXT", "instead of a result: what went wrong"),
    ):
        added.add_argument(option, action="append", default=[], nargs=2, metavar=("REQUEST", form), help=about)


def _ask(options: argparse.Namespace) -> int:
    target = {"agent_type": options.agent} if options.agent else {"thread_id": options.thread}
    return _show(options, lambda connection: ask(connection, _text(options.query), target))


def _follow(options: argparse.Namespace) -> int:
    return _show(options, lambda _: options.run_id)


def _answer(options: argparse.Namespace) -> int:
    answers = given(options.approve, options.deny, options.message, options.result, options.error)
    with _connection(options, Screen().tell) as connection:
        path = f"/runs/{options.run_id}"
        if not answers:
            requests = open_requests(connection.get(path))
            if requests and not can_ask():
                raise Wrong("\n".join(["Say the answers as options: the run waits for", *map(said, requests)]))
            try:
                answers = ask_for(requests)
            except EOFError:
                raise Wrong("The input ended before everything was answered; nothing was sent.") from None
        run = connection.post(f"{path}/answers", {"answers": answers}) if answers else connection.get(path)
    left = len(open_requests(run))
    put(f"The run is {run['status']}." + (f" {left} requests are open." if left else ""))
    return SUCCEEDED


def _steer(options: argparse.Namespace) -> int:
    with _connection(options, Screen().tell) as connection:
        body = {"query": _text(options.text)}
        message = connection.post(f"/runs/{options.run_id}/messages", body, key=f"steer-{uuid4()}")
    if message["status"] == "queued":
        put(f"The run had ended: the message is a run of its own, {message['run_id']}.")
    else:
        put("The agent gets the message before its next request to the model.")
    return SUCCEEDED


def _text(query: str) -> str:
    """Check that a query is text.

    Raises:
        Wrong: the command line, or the input, was in another encoding than this process expects.
    """
    try:
        query.encode()
    except UnicodeEncodeError:
        raise Wrong(
            "The query is not text in the encoding of this terminal. LC_ALL=C.UTF-8 makes that UTF-8."
        ) from None
    return query


def _show(options: argparse.Namespace, run_id_of: Callable[[Connection], str]) -> int:
    """Show a run, then print it."""
    with Scroll() as scroll, _connection(options, scroll.tell) as connection:
        run_id = run_id_of(connection)
        answer = _watched(connection, scroll, run_id)
        run = connection.get(f"/runs/{run_id}") if options.json else None
    if run is not None:
        _put(json.dumps(run, ensure_ascii=False), run_id)
    elif answer.status == "succeeded":
        _put(_printed(answer), run_id)
    return SUCCEEDED if answer.status == "succeeded" else NOT_ALL_SUCCEEDED


def _watched(connection: Connection, scroll: Scroll, run_id: str) -> Answer:
    """Show an answer while it grows, and why there is none."""
    answer = follow(connection, scroll, run_id)
    if answer.status == "succeeded":
        scroll.clear()
    else:
        scroll.tell(f"The run {answer.status}. {answer.error}".strip() + f" (run {run_id})")
    return answer


def _put(text: str, run_id: str) -> None:
    """Print an answer; where that cannot be, it is not lost.

    Raises:
        Wrong: standard output takes nothing.
        BrokenPipeError: nobody reads it.
    """
    try:
        put(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Wrong(f"The answer cannot be written ({error.strerror}). It is kept: {COMMAND} follow {run_id}") from None


def _printed(answer: Answer) -> str:
    return readable(answer.text) if sys.stdout.isatty() else answer.text


def _chat(options: argparse.Namespace) -> int:
    def answer_to(query: str) -> Answer:
        with Scroll() as scroll:
            connection.tell = scroll.tell
            run_id = ask(connection, _text(query), {"thread_id": thread_id})
            answer = _watched(connection, scroll, run_id)
        if answer.status == "succeeded":
            _put(_printed(answer), run_id)
        return answer

    with _connection(options, Screen().tell) as connection:
        thread_id: str = options.thread or begin(connection, options.agent)
        if options.agent:
            complain(f"To go on with this conversation later: {COMMAND} chat --thread {thread_id}")
        return SUCCEEDED if chat(lines(), answer_to) else NOT_ALL_SUCCEEDED


def _agents(options: argparse.Namespace) -> int:
    with _connection(options, Screen().tell) as connection:
        agents: list[dict[str, Any]] = connection.get("/agents")
    if options.json:
        put(json.dumps(agents, ensure_ascii=False))
        return SUCCEEDED
    width = max((len(agent["agent_type"]) for agent in agents), default=0)
    for agent in agents:
        about = " ".join((agent.get("description") or "").split())
        missing = "" if agent.get("served", True) else "(no worker serves it now) "
        put(f"{agent['agent_type']:{width}}  {missing}{about}".rstrip())
    if not agents:
        complain("No agent is known. Once a worker that serves one has started, it is.")
    return SUCCEEDED


def _threads(options: argparse.Namespace) -> int:
    with _connection(options, Screen().tell) as connection:
        if options.thread_id:
            _put_thread(connection.get(f"/threads/{options.thread_id}"), as_json=options.json)
        else:
            _put_threads(_newest_threads(connection, options.limit), as_json=options.json)
    return SUCCEEDED


def _newest_threads(connection: Connection, most: int) -> list[dict[str, Any]]:
    threads: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while len(threads) < most:
        page = connection.get("/threads", limit=min(most - len(threads), LONGEST_PAGE), **cursor)
        threads += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    return threads


def _put_threads(threads: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        put(json.dumps(threads, ensure_ascii=False))
        return
    for thread in threads:
        metadata = json.dumps(thread["metadata"], ensure_ascii=False) if thread["metadata"] else ""
        put(f"{thread['id']}  {thread['updated_at']}  {thread['agent_type']}  {metadata}".rstrip())
    if not threads:
        complain(f"There are none. {COMMAND} chat --agent NAME begins one.")


def _put_thread(thread: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        put(json.dumps(thread, ensure_ascii=False))
        return
    for message in thread["messages"]:
        text = readable(message["content"]) if sys.stdout.isatty() else message["content"]
        put(f"{message['role']}: {text}")


def _submit(options: argparse.Namespace) -> int:
    caller = _caller(options)
    wishes = {
        "agent_type": options.agent,
        "max_running": options.max_running,
        "deadline_s": options.deadline,
        "webhook_url": options.webhook,
    }
    parameters = {name: str(wish) for name, wish in wishes.items() if wish is not None}
    with closing(Source.read(options.rows, options.encoding)) as source:
        rows = _rows(options, source)
        target = options.output or _beside(source, options.format)
        is_table = options.format == "csv"
        output = target.with_name(f"{target.name}.jsonl") if is_table else target
        order = Order(rows, parameters, caller.user_id, output, target if is_table else None)
        with Bar() as bar, _connection(options, bar.tell) as connection:
            tally = submit(connection, bar, order)
    said = ", ".join(f"{tally[status]:,} {status}" for status in ("succeeded", "failed", "cancelled") if tally[status])
    put(f"{target}: {tally.total():,} results, {said}")
    return SUCCEEDED if tally["succeeded"] == tally.total() else NOT_ALL_SUCCEEDED


def _beside(source: Source, form: str) -> Path:
    """Say where results go if that is not said: beside a file, and of a pipe, here."""
    return (source.path if source.is_lasting else Path("rows")).with_suffix(f".results.{form}")


def _rows(options: argparse.Namespace, source: Source) -> Rows:
    """Read rows as CSV or JSON lines, and say what was found out about them."""
    suffix = options.rows.suffix.lower()
    says_csv = options.column or options.id_column or options.delimiter or suffix in _CSV_SUFFIXES
    if says_csv or (suffix not in _JSON_SUFFIXES and source.first_character() not in {"", "{", "["}):
        delimiter = None if options.delimiter is None else said_delimiter(options.delimiter)
        rows = csv_rows(source, options.column, options.id_column, delimiter)
        if options.delimiter is None or options.encoding is None:
            complain(f"{source.name}: CSV in {source.encoding_name}, separated by {name_of_delimiter(rows.delimiter)}.")
        return rows
    if options.encoding is None and source.encoding_name != "UTF-8":
        complain(f"{source.name}: JSON lines in {source.encoding_name}.")
    return json_lines(source)


def _schedules(act: Callable[[argparse.Namespace, Connection], None], options: argparse.Namespace) -> int:
    _text(getattr(options, "query", ""))
    with _connection(options, Screen().tell) as connection:
        act(options, connection)
    return SUCCEEDED


def _cancel(options: argparse.Namespace) -> int:
    noun, known_as = ("run", options.run_id) if options.run_id else ("batch", options.batch_id)
    path = f"/runs/{known_as}/cancel" if options.run_id else f"/batches/{known_as}/cancel"
    with _connection(options, Screen().tell) as connection:
        status = connection.post(path)["status"]
    put(f"The {noun} is {status}.")
    return SUCCEEDED


def _connection(options: argparse.Namespace, tell: Callable[[str], None]) -> Connection:
    return Connection(_caller(options), tell, patience_seconds=options.patience, wait_seconds=options.wait)


def main(words: Sequence[str] | None = None) -> int:
    """Carry a command out; `words` are those of the command line. Returns the exit status."""
    escape_what_cannot_be_written()
    options = _parser().parse_args(words)
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  (it is, where it was closed)
        complain("Standard output is closed, and the answer would go there.")
        return WRONG
    try:
        raise_again()
        return options.run(options)
    except BrokenPipeError:
        return UNREAD
    except (Wrong, OSError) as wrong:
        status, said = WRONG, _sentence(wrong)
    except (Refused, OutOfReach) as not_served:
        status, said = NOT_SERVED, str(not_served)
        if isinstance(not_served, Refused) and not_served.status == HTTPStatus.UNAUTHORIZED:
            said += f"\n  Set {KEY}, or --key, to a key of this service."
    except KeyboardInterrupt:
        return INTERRUPTED
    complain(said)
    return status


def _sentence(error: Exception) -> str:
    """Say what is wrong; of a file, which."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}."
    return str(error)


if __name__ == "__main__":
    raise SystemExit(main())
