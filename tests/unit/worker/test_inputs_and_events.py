"""`docs/agents.md` says of each input and event of the pydantic-ai that is installed how it works here."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, messages

from agent_relay.worker.execution import answer

DOCS = Path(__file__).parents[3] / "docs" / "agents.md"


def table(heading: str) -> dict[str, str]:
    """Read the table under a heading: what each name of its first column is said to be."""
    section = re.split(r"^#+ ", DOCS.read_text().split(f"### {heading}\n")[1], flags=re.MULTILINE)[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    named = [(name, said.strip()) for names, said in rows for name in re.findall("`([^`]+)`", names)]
    assert len(named) == len(dict(named)), "a name stands there twice"
    return dict(named)


def classes(union: Any) -> Iterator[type]:
    """List the classes of a union, however deep it is annotated."""
    arguments = typing.get_args(union)
    if isinstance(union, type):
        yield union
    for argument in arguments:
        yield from classes(argument)


def given() -> set[str]:
    """Name the inputs that the worker gives."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(answer)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "agent.iter"
    ]
    return {"user_prompt", *(str(keyword.arg) for keyword in call.keywords)}


def test_every_input_of_a_run_is_in_the_table_and_those_that_are_given_say_so() -> None:
    inputs = table("Inputs of `Agent.iter`")

    assert set(inputs) == set(inspect.signature(Agent.iter).parameters) - {"self"}
    assert {name for name, said in inputs.items() if said.startswith("given:")} == given()


@pytest.mark.parametrize(
    ("heading", "union", "tag"),
    [
        ("Events", messages.AgentStreamEvent, "event_kind"),
        ("Parts of a response", messages.ModelResponsePart, "part_kind"),
    ],
)
def test_every_kind_is_in_the_table(heading: str, union: Any, tag: str) -> None:
    assert set(table(heading)) == {getattr(kind, tag) for kind in classes(union) if hasattr(kind, tag)}
