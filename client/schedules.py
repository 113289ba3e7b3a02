"""`agent-relay schedules`: queries that the service asks again and again, at the times of a cron expression."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from agent_relay.client.connection import Connection
from agent_relay.client.terminal import complain, put, readable

ABOUT = """\
CRON is minute, hour, day of month, month and day of week, as crontab has them, or @hourly, @daily, @weekly, @monthly or
@yearly. It goes by --timezone, and by UTC without one. At each time the service asks QUERY: with --agent without a
memory, with --thread in that conversation.

  agent-relay schedules create "0 8 * * MON-FRI" "What is my balance?" --agent bank_support --timezone Europe/Berlin
  agent-relay schedules list
  agent-relay schedules pause 01a20406-…
"""
LONGEST_PAGE = 100
LONGEST_QUERY = 40
"""Characters of a query that a list shows."""

Add = Callable[[str, Callable[[argparse.Namespace, Connection], None], str], argparse.ArgumentParser]
"""Adds an action by its name, what it does and what that is in words."""


def add_actions(add: Add) -> None:
    """Say what can be done with schedules, and which arguments that takes."""
    added = add("list", _list, "list your schedules, the newest first")
    added.add_argument("--json", action="store_true", help="print all that is known of them, as JSON")

    added = add("create", _create, "have a query asked again and again")
    added.add_argument("cron", metavar="CRON", help='such as "0 8 * * MON-FRI" or @daily')
    added.add_argument("query", metavar="QUERY")
    target = added.add_mutually_exclusive_group(required=True)
    target.add_argument("--agent", metavar="NAME", help="ask this agent, each time without a memory")
    target.add_argument("--thread", metavar="ID", help="ask in this conversation")
    added.add_argument("--timezone", metavar="NAME", help="such as Europe/Berlin (default: UTC)")
    added.add_argument(
        "--strategy",
        choices=["enqueue", "reject", "interrupt", "rollback"],
        help="with --thread: what becomes of it while the conversation is busy",
    )
    added.add_argument("--options", metavar="JSON", type=json.loads, help="what you choose of the agent, as an object")
    added.add_argument("--webhook", metavar="URL", help="where the service posts how each run has ended")
    added.add_argument("--paused", action="store_true", help="ask nothing before it is resumed")
    added.add_argument("--json", action="store_true", help="print the schedule, as JSON")

    for name, act, about in (
        ("pause", _pause, "have a schedule ask nothing until it is resumed"),
        ("resume", _resume, "have a paused schedule ask again, from now on"),
        ("delete", _delete, "delete a schedule; the runs that it has made stay"),
    ):
        add(name, act, about).add_argument("schedule_id", metavar="ID")


def _list(options: argparse.Namespace, connection: Connection) -> None:
    schedules: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = connection.get("/schedules", limit=LONGEST_PAGE, **cursor)
        schedules += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    if options.json:
        put(json.dumps(schedules, ensure_ascii=False))
        return
    for schedule in schedules:
        _put(schedule)
    if not schedules:
        complain("There are none. agent-relay schedules create --help says how to make one.")


def _create(options: argparse.Namespace, connection: Connection) -> None:
    wishes = {
        "cron": options.cron,
        "query": options.query,
        "agent_type": options.agent,
        "thread_id": options.thread,
        "timezone": options.timezone,
        "multitask_strategy": options.strategy,
        "options": options.options,
        "webhook_url": options.webhook,
        "paused": options.paused,
    }
    body = {name: wish for name, wish in wishes.items() if wish is not None}
    schedule = connection.post("/schedules", body, key=f"schedule-{uuid4()}")
    if options.json:
        put(json.dumps(schedule, ensure_ascii=False))
    else:
        _put(schedule)


def _pause(options: argparse.Namespace, connection: Connection) -> None:
    _put(connection.patch(f"/schedules/{options.schedule_id}", {"paused": True}))


def _resume(options: argparse.Namespace, connection: Connection) -> None:
    _put(connection.patch(f"/schedules/{options.schedule_id}", {"paused": False}))


def _delete(options: argparse.Namespace, connection: Connection) -> None:
    connection.delete(f"/schedules/{options.schedule_id}")
    put("The schedule is deleted.")


def _put(schedule: dict[str, Any]) -> None:
    """Say what a schedule is and what became of it."""
    query = " ".join(schedule["query"].split())
    parts = [
        schedule["id"],
        "paused" if schedule["paused"] else f"next {schedule['next_at']}",
        f"{schedule['cron']} ({schedule['timezone']})",
        schedule["agent_type"],
        query if len(query) <= LONGEST_QUERY else f"{query[:LONGEST_QUERY]}…",
    ]
    if schedule["last_status"] is not None:
        parts.append(f"last run {schedule['last_run_id']} {schedule['last_status']}")
    if schedule["consecutive_failures"]:
        parts.append(f"failed {schedule['consecutive_failures']} times in a row")
    if schedule["last_error"] is not None:
        parts.append(f"{schedule['last_error']['code']}: {schedule['last_error']['message']}")
    line = "  ".join(parts)
    put(readable(line) if sys.stdout.isatty() else line)
