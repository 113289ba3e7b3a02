"""The bank of the sample agent: one table of customers beside the service's own. It knows no agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapped, mapped_column

from agent_relay.shared.database.tables import Base

SEEDED_CUSTOMER_ID = 123
"""The customer that the migration inserts, for threads that name none."""

_LARGEST_ID = (1 << 63) - 1


class BankCustomer(Base):
    """A customer and the money of their one account, in cents."""

    __tablename__ = "bank_customers"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    balance: Mapped[int] = mapped_column(BigInteger)
    """The booked balance."""
    pending: Mapped[int] = mapped_column(BigInteger)
    """Not booked yet: below zero for payments, above for income."""


@dataclass(frozen=True, kw_only=True)
class Customer:
    """A customer, with the fields that the agent uses."""

    id: int
    name: str


class Bank:
    """Reads customers and balances."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def customer(self, customer_id: int) -> Customer | None:
        """Find a customer; None if the bank has no such customer."""
        row = await self._read(customer_id, BankCustomer.id, BankCustomer.name)
        return None if row is None else Customer(id=row[0], name=row[1])

    async def balance(self, customer_id: int, include_pending: bool) -> int | None:  # noqa: FBT001  (the tool's own argument)
        """Read a balance in cents, with or without pending bookings; None if there is no such customer."""
        row = await self._read(customer_id, BankCustomer.balance, BankCustomer.pending)
        if row is None:
            return None
        booked, pending = row
        return booked + pending if include_pending else booked

    async def _read(self, customer_id: int, *columns: Any) -> tuple[Any, ...] | None:
        if not 0 < customer_id <= _LARGEST_ID:
            return None
        async with self._database.connect() as connection:
            row = (await connection.execute(select(*columns).where(BankCustomer.id == customer_id))).one_or_none()
            return None if row is None else tuple(row)


def dollars(cents: int) -> str:
    """Write an amount for people: `$1123.45`, `-$0.05`."""
    whole, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}${whole}.{rest:02}"
