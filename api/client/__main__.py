"""`python -m api.client`: ask an agent, or submit a file of queries, from a command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import httpx

from api.client.ask import Answer, ask, follow
from api.client.connection import API, Caller, Connection
from api.client.errors import OutOfReach, Refused, Wrong
from api.client.rows import Rows, csv_rows, json_lines
from api.client.submit import Order, submit
from api.client.terminal import Bar, Screen, Scroll, printable, readable

URL, KEY, USER = "AGENT_RELAY_URL", "AGENT_RELAY_API_KEY", "AGENT_RELAY_USER_ID"
SUCCEEDED, NOT_ALL_SUCCEEDED, WRONG, NOT_SERVED, INTERRUPTED = 0, 1, 2, 3, 130
PATIENCE_SECONDS = 3600.0

ABOUT = f"""\
environment:
  {URL}      where the service is; --url
  {KEY}  your API key; --key
  {USER}  the user in whose name you call, a UUID; --user

exit status:
  0    succeeded; of submit: all rows
  1    failed or cancelled; of submit: some rows
  2    the command cannot be carried out as it was given, or a file not be read or written
  3    the service refused, or was out of reach for too long
  130  interrupted with Ctrl-C; what was accepted goes on

Commands wait out what passes: a lost connection, a restart of the service, "try again later".
"""

EXAMPLES = """\
examples:
  python -m api.client ask "What is my balance?" --agent bank_support
  python -m api.client submit rows.jsonl --agent bank_support
  python -m api.client submit rows.csv --column question --agent bank_support --output answers.jsonl
"""

SUBMIT = """\
Rows are JSON lines, {"custom_id": …, "query": …, "metadata": …}, or CSV with a header. A line without a custom_id
gets its number; so does a row of CSV without --id-column, the first one below the header being 1.

Results are appended to the output as they come, a JSON line each, in the order of ending. Interrupt it however you
like: the same command goes on where it was, and does not submit twice. For that, it keeps a note in OUTPUT.batch.
"""


def _parser() -> argparse.ArgumentParser:
    caller = argparse.ArgumentParser(add_help=False)
    who = caller.add_argument_group("who calls whom, if the environment does not say it")
    who.add_argument("--url", default=os.environ.get(URL), help="such as http://127.0.0.1:8000")
    who.add_argument("--key", default=os.environ.get(KEY), help="better in the environment: options can be listed")
    who.add_argument("--user", default=os.environ.get(USER), help="a UUID")
    who.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help=f"how long to try while the service is out of reach (default: {PATIENCE_SECONDS:.0f})",
    )
    who.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="how long to try while the service is full and says: later (default: for as long as it says so)",
    )

    parser = argparse.ArgumentParser(
        prog="python -m api.client",
        description="Ask agents of an agent-relay service.",
        epilog=f"{EXAMPLES}\n{ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], about: str, more: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
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

    added = command("submit", _submit, "ask about each row of a file and write the answers to another", SUBMIT)
    added.add_argument("rows", type=Path, metavar="FILE", help="JSON lines, or CSV")
    added.add_argument("--agent", required=True, metavar="NAME", help="the agent to ask")
    added.add_argument(
        "--output", type=Path, metavar="FILE", help="where results go (default: beside FILE, *.results.jsonl)"
    )
    added.add_argument("--column", metavar="NAME", help="of CSV: the column of the queries")
    added.add_argument("--id-column", metavar="NAME", help="of CSV: the column of the custom_ids")
    added.add_argument("--max-running", type=int, metavar="N", help="so many rows at once at the most")
    added.add_argument("--deadline", type=float, metavar="SECONDS", help="rows that have not ended by then fail")
    added.add_argument("--webhook", metavar="URL", help="where the service posts that all rows have ended")

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
    if address.scheme not in {"http", "https"} or not address.host or address.query or address.fragment:
        raise Wrong("The URL must look like http://127.0.0.1:8000 or https://relay.example.com.")
    if not options.key.isascii() or not options.key.isprintable() or options.key != options.key.strip():
        raise Wrong("The API key holds characters that no key has.")
    try:
        user_id = UUID(options.user)
    except ValueError:
        raise Wrong("The user must be a UUID.") from None
    return Caller(options.url.rstrip("/").removesuffix(API), options.key, str(user_id))


def _ask(options: argparse.Namespace) -> int:
    target = {"agent_type": options.agent} if options.agent else {"thread_id": options.thread}
    return _show(options, lambda connection: ask(connection, options.query, target))


def _follow(options: argparse.Namespace) -> int:
    return _show(options, lambda _: options.run_id)


def _show(options: argparse.Namespace, run_id_of: Callable[[Connection], str]) -> int:
    """Show a run, then print it."""
    with Scroll() as scroll, _connection(options, scroll.tell) as connection:
        run_id = run_id_of(connection)
        answer = follow(connection, scroll, run_id)
        succeeded = answer.status == "succeeded"
        if succeeded:
            scroll.clear()
        run = connection.get(f"/runs/{run_id}") if options.json else None
    if not succeeded:
        sys.stderr.write(printable(f"The run {answer.status}. {answer.error}".strip()) + f" (run {run_id})\n")
    if run is not None:
        sys.stdout.write(json.dumps(run, ensure_ascii=False) + "\n")
    elif succeeded:
        sys.stdout.write(_printed(answer) + "\n")
    return SUCCEEDED if succeeded else NOT_ALL_SUCCEEDED


def _printed(answer: Answer) -> str:
    return printable(readable(answer.text)) if sys.stdout.isatty() else answer.text


def _submit(options: argparse.Namespace) -> int:
    caller = _caller(options)
    wishes = {
        "agent_type": options.agent,
        "max_running": options.max_running,
        "deadline_s": options.deadline,
        "webhook_url": options.webhook,
    }
    parameters = {name: str(wish) for name, wish in wishes.items() if wish is not None}
    output = options.output or options.rows.with_suffix(".results.jsonl")
    order = Order(_rows(options), parameters, caller.user_id, output)
    with Bar() as bar, _connection(options, bar.tell) as connection:
        tally = submit(connection, bar, order)
    said = ", ".join(f"{tally[status]:,} {status}" for status in ("succeeded", "failed", "cancelled") if tally[status])
    sys.stdout.write(f"{output}: {tally.total():,} results, {said}\n")
    return SUCCEEDED if tally["succeeded"] == tally.total() else NOT_ALL_SUCCEEDED


def _rows(options: argparse.Namespace) -> Rows:
    if options.column or options.id_column or options.rows.suffix.lower() == ".csv":
        return csv_rows(options.rows, options.column, options.id_column)
    return json_lines(options.rows)


def _cancel(options: argparse.Namespace) -> int:
    noun, known_as = ("run", options.run_id) if options.run_id else ("batch", options.batch_id)
    path = f"/runs/{known_as}/cancel" if options.run_id else f"/batches/{known_as}/cancel"
    with _connection(options, Screen().tell) as connection:
        status = connection.post(path)["status"]
    sys.stdout.write(f"The {noun} is {status}.\n")
    return SUCCEEDED


def _connection(options: argparse.Namespace, tell: Callable[[str], None]) -> Connection:
    return Connection(_caller(options), tell, patience_seconds=options.patience, wait_seconds=options.wait)


def main() -> int:
    """Carry a command out; returns the exit status."""
    options = _parser().parse_args()
    try:
        return options.run(options)
    except (Wrong, OSError) as wrong:
        status, said = WRONG, str(wrong)
    except (Refused, OutOfReach) as not_served:
        status, said = NOT_SERVED, str(not_served)
    except KeyboardInterrupt:
        return INTERRUPTED
    sys.stderr.write(printable(said) + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
