"""Rows as frozen dataclasses. The class writes the select list; the columns of a result are compared with it once.

A statement that selects something else fails where its result is read, and says which columns differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import CursorResult, Row, TextClause, text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")
Other = TypeVar("Other", bound="DataclassInstance")


class WrongColumns(Exception):
    """A statement selects other columns than the class has fields."""


@cache
def names_of(kind: type[DataclassInstance]) -> tuple[str, ...]:
    """Name the columns that a class is read from: its fields without a default, in their order."""
    return tuple(field.name for field in fields(kind) if field.default is MISSING)


def columns(kind: type[DataclassInstance], table: str = "", **computed: str) -> str:
    """Write the select list of a class: columns of a table, and for some fields another SQL expression."""
    prefix = f"{table}." if table else ""
    return ", ".join(
        f"{computed[name]} AS {name}" if name in computed else f"{prefix}{name}" for name in names_of(kind)
    )


def short(statement: str) -> TextClause:
    """Make a statement without its indentation: psycopg parses one of more than 4,096 characters at each execution."""
    return text("\n".join(line.strip() for line in statement.splitlines()))


def read(result: CursorResult[Any], kind: type[Kind]) -> list[Kind]:
    """Read all rows of a result.

    Raises:
        WrongColumns: they are not the fields of the class.
    """
    _demand(tuple(result.keys()), kind)
    return [kind(*row) for row in result]


def read_one(result: CursorResult[Any], kind: type[Kind]) -> Kind | None:
    """Read the only row of a result, if there is one; raises as `read` does."""
    rows = read(result, kind)
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} rows of {kind.__name__}, where at most one is expected")
    return rows[0] if rows else None


def read_pairs(result: CursorResult[Any], kind: type[Kind], other: type[Other]) -> list[tuple[Kind, Other | None]]:
    """Read rows that hold two classes, one after the other; the second is None where its first column is null.

    Raises:
        WrongColumns: the columns are not the fields of the two classes.
    """
    _demand(tuple(result.keys()), kind, other)
    first = len(names_of(kind))

    def pair(row: Row[Any]) -> tuple[Kind, Other | None]:
        rest = row[first:]
        return kind(*row[:first]), None if rest[0] is None else other(*rest)

    return [pair(row) for row in result]


@cache
def row_factory(kind: type[Kind]) -> Callable[[Any], Callable[[Sequence[Any]], Kind]]:
    """Make the row factory of a psycopg cursor that reads rows into a class; raises as `read` does."""

    def factory(cursor: Any) -> Callable[[Sequence[Any]], Kind]:
        result = cursor.pgresult
        if result is not None and result.nfields:
            found: tuple[bytes, ...] = tuple(map(result.fname, range(result.nfields)))
            if found != encoded:
                _demand(tuple(name.decode() for name in found), kind)
        return lambda values: kind(*values)

    encoded = tuple(name.encode() for name in names_of(kind))
    return factory


def _demand(found: tuple[str, ...], *kinds: type[DataclassInstance]) -> None:
    wanted = tuple(name for kind in kinds for name in names_of(kind))
    if found != wanted:
        names = " and ".join(kind.__name__ for kind in kinds)
        raise WrongColumns(f"{names} is read from {wanted}; the statement selects {found}")
