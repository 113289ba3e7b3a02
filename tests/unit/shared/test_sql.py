"""SQL is written in whole clauses: no piece opens a parenthesis that another one closes, and conditions have a name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = sorted(
    path
    for room in ("api", "shared", "worker")
    for path in (ROOT / room).rglob("*.py")
    if "migrations" not in path.parts  # They stay as they were when they ran.
)
KEYWORDS = ("SELECT ", "UPDATE ", "INSERT ", "DELETE ", "RETURNING ", "WHERE ", "SET ", " AS (")
NAMED = {
    "status IN ('queued', 'running', 'waiting')": "IS_UNFINISHED",
    "ring = ring + 1, rung_at = now()": "NEW_ENTRY",
    "AS earlier\n": "first_in_thread",
}
HOMES = ("shared/database/tables.py", "shared/runs/sql.py", "shared/runs/heartbeat.py")


def pieces(module: Path) -> list[tuple[str, str]]:
    """List the literals of a module that hold SQL, with file and line; what is put into one counts as nothing."""
    tree = ast.parse(module.read_text())
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                written = "".join(str(part.value) for part in values if isinstance(part, ast.Constant))
            case ast.Constant(value=str(value)) if node not in parts:
                written = value
            case _:
                continue
        if any(keyword in written for keyword in KEYWORDS):
            found.append((f"{module.relative_to(ROOT)}:{node.lineno}", written))
    return found


PIECES = [piece for module in MODULES for piece in pieces(module)]


def is_whole(piece: str) -> bool:
    """Tell whether each parenthesis that a piece opens is closed in it, and no other."""
    depth = 0
    for character in piece:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def test_no_piece_of_sql_leaves_a_parenthesis_to_another() -> None:
    assert [where for where, piece in PIECES if not is_whole(piece)] == []


def test_a_condition_that_has_a_name_is_written_once() -> None:
    elsewhere = [(where, piece) for where, piece in PIECES if not where.startswith(HOMES)]
    assert [(where, name) for where, piece in elsewhere for text, name in NAMED.items() if text in piece] == []


@pytest.mark.parametrize(
    ("piece", "whole"),
    [("SELECT (1)", True), ("SELECT 1)", False), ("WITH a AS (SELECT 1", False), ("), b AS (", False)],
)
def test_what_counts_as_whole(piece: str, whole: bool) -> None:
    assert is_whole(piece) is whole
