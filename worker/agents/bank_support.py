"""The sample agent: first-level support of a bank, with an answer that validates from its first character on.

It names no model: `MODEL` brings one, else a script answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config
from pydantic_ai import Agent, ModelRetry, RunContext
from typing_extensions import TypedDict

from agent_relay.worker.agents.bank import SEEDED_CUSTOMER_ID, Bank, Customer, dollars
from agent_relay.worker.agents.bank_script import scripted
from agent_relay.worker.catalog import RunScope, ServedAgent

_DESCRIPTION = "Support of a small bank: balances, lost or stolen cards, and what to do next."

_Advice = Annotated[str, Field(description="Advice for the customer")]
_BlockCard = Annotated[bool, Field(description="Whether to block the customer's card")]
_RiskLevel = Annotated[int, Field(ge=0, le=10, description="Risk level of the query")]
_FollowUp = Annotated[list[str], Field(description="What the bank's staff do next, one action an item")]


def _require_all(schema: dict[str, Any]) -> None:
    """Tell models and callers that a whole answer has every field."""
    schema["required"] = list(schema["properties"])


@with_config(ConfigDict(title="SupportAnswer", json_schema_extra=_require_all))
class SupportAnswer(TypedDict, total=False):
    """The answer to the customer, and the bank's actions."""

    # No field is required here, so that an answer validates while it is written; see `WholeAnswer`.
    support_advice: _Advice
    block_card: _BlockCard
    risk_level: _RiskLevel
    follow_up_actions: _FollowUp


class WholeAnswer(BaseModel):
    """The fields of a whole answer."""

    support_advice: _Advice = Field(min_length=1)
    block_card: _BlockCard
    risk_level: _RiskLevel
    follow_up_actions: _FollowUp


@dataclass(frozen=True, kw_only=True)
class SupportDependencies:
    """The customer who asks, and the bank."""

    customer: Customer | None
    """None if the thread names a customer that the bank does not have."""
    bank: Bank


async def dependencies(scope: RunScope) -> SupportDependencies:
    """Find the customer: `customer_id` of the thread's metadata, else the seeded one."""
    bank = Bank(scope.database)
    customer_id = scope.thread_metadata.get("customer_id", SEEDED_CUSTOMER_ID)
    # A thread with a wrong customer gets an unknown one, never the seeded one.
    is_id = isinstance(customer_id, int) and not isinstance(customer_id, bool)
    return SupportDependencies(customer=await bank.customer(customer_id) if is_id else None, bank=bank)


agent = Agent(
    deps_type=SupportDependencies,
    output_type=SupportAnswer,
    name="bank_support",
    description=_DESCRIPTION,
    instructions=(
        "You are a support agent in our bank. Help the customer and judge the risk of their query. "
        "Take balances from the tool, never from memory, and say in your advice what it returned."
    ),
    retries={"output": 2},
)


@agent.instructions
def introduce_customer(ctx: RunContext[SupportDependencies]) -> str:
    """Name the customer."""
    customer = ctx.deps.customer
    if customer is None:
        return (
            "The bank does not know this customer. Disclose nothing about accounts and ask them to identify themselves."
        )
    return f"The customer's name is {customer.name!r}."


@agent.tool
async def customer_balance(ctx: RunContext[SupportDependencies], include_pending: bool) -> str:  # noqa: FBT001  (the model names it)
    """Return the balance of the customer's account.

    Args:
        ctx: The run.
        include_pending: Whether to count transactions that are not booked yet.
    """
    customer, bank = ctx.deps.customer, ctx.deps.bank
    cents = None if customer is None else await bank.balance(customer.id, include_pending)
    return "The bank does not know this customer." if cents is None else dollars(cents)


@agent.output_validator
def demand_every_field(ctx: RunContext[SupportDependencies], answer: SupportAnswer) -> SupportAnswer:
    """Refuse a final answer that lacks a field; while it is written it may."""
    if not ctx.partial_output:
        try:
            WholeAnswer.model_validate(answer, strict=True)
        except ValidationError as invalid:
            wrong = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in invalid.errors()]
            raise ModelRetry(f"The answer is not whole. {'; '.join(wrong)}.") from None
    return answer


served = ServedAgent(
    agent=agent,
    dependencies=dependencies,
    script=scripted,
    examples=["What is my balance?", "I lost my card!"],
)
