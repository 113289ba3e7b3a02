"""`docs/life-of-a-run.md` shows every arrow there is: each statement that stores a run or changes its status."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.service import ROOT

ARROW = re.compile(
    r"INSERT INTO runs\b(?! SELECT \* FROM runs WHERE false)|COPY runs\b|UPDATE runs\b((?!\bWHERE\b).)*\bstatus = ",
    re.DOTALL,
)
MENTION = re.compile(r"\bruns\b")
SHOWN = re.compile(r"`([A-Z_]+)` in `([a-z_/]+\.py)`")


def arrows() -> Iterator[tuple[str, str]]:
    """Find the statements, each with its file."""
    for room in ("api", "shared", "worker"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if "migrations" in path.parts:
                continue  # They stay as they were when they ran.
            source = path.read_text()
            for node in ast.parse(source).body:
                if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                    continue
                name = node.targets[0].id
                if name.isupper() and MENTION.search(ast.unparse(node)) and ARROW.search(_statement(path, name)):
                    yield name, str(path.relative_to(ROOT))


def test_every_arrow_is_shown_and_none_that_is_not_there() -> None:
    table = (ROOT / "docs/life-of-a-run.md").read_text().split("## Arrows")[1].split("\n\n")[1]
    shown = {
        (name, file if file.startswith(("api/", "worker/")) else f"shared/{_room(file)}")
        for name, file in SHOWN.findall(table)
    }

    assert shown == set(arrows())


def _statement(path: Path, name: str) -> str:
    """Read a statement as it is once it has been put together."""
    module = importlib.import_module(".".join(("agent_relay", *path.relative_to(ROOT).with_suffix("").parts)))
    return str(getattr(module, name, ""))


def _room(file: str) -> str:
    """Say where a file is that the table names as briefly as it can."""
    return file if Path(file).parent.name else f"runs/{file}"
