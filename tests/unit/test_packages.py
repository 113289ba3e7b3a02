"""A name of a package means one thing: `shared.runs.claim` is a module, and no function hides it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "client", "embedded", "shared", "worker")
PACKAGES = sorted(found.parent for room in ROOMS for found in (ROOT / room).rglob("__init__.py"))


def defined(module: Path) -> set[str]:
    """List the names that a module binds at its top level."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        match node:
            case ast.ImportFrom() | ast.Import():
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case _:
                pass
    return names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_a_package_hides_none_of_its_modules(package: Path) -> None:
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert defined(package / "__init__.py") & modules == set()
