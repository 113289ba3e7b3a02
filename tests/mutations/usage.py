"""What is promised of usage and cost, broken one by one."""

from tests.mutations.mutation import Mutation

TESTS = "tests/acceptance/test_usage.py::"
ERASED = TESTS + "test_what_runs_used_is_summed_also_once_they_are_erased"

COUNTS = "tests/integration/shared/batches/test_counts.py::"

MUTATIONS = [
    Mutation(
        "the usage of a batch that is that of its last run",
        "shared/migrations/versions/0031_usage_of_batches.py",
        'return f"coalesce({of_batch} + {of_run}, {of_batch}, {of_run})"',
        'return f"coalesce({of_run}, {of_batch})"',
        COUNTS + "test_every_arrow_is_counted",
    ),
    Mutation(
        "an end that fails for what stands in its usage",
        "shared/migrations/versions/0031_usage_of_batches.py",
        """return f"CASE jsonb_typeof({usage} -> '{kind}') WHEN 'number' THEN ({usage} ->> '{kind}')::numeric END\"""",
        """return f"({usage} ->> '{kind}')::numeric\"""",
        COUNTS + "test_a_run_ends_and_is_counted_whatever_stands_in_its_usage",
    ),
    Mutation(
        "an attempt that has forgotten what the one before it cost",
        "worker/execution/attempt.py",
        "        cost=None if cost is None else Decimal(repr(cost)),\n",
        "        cost=None,\n",
        TESTS + "test_what_earlier_attempts_used_and_cost_counts",
    ),
    Mutation(
        "a run that may cost what it will",
        "worker/catalog.py",
        "cost_limit=Decimal(repr(settings.max_cost_usd)) if settings.max_cost_usd else None",
        "cost_limit=None",
        TESTS + "test_a_run_that_costs_too_much_fails",
    ),
    Mutation(
        "a cost of nothing where no price is known",
        "worker/execution/answer.py",
        "cost = float(used.cost) if isinstance(used.cost, Decimal) else math.nan",
        "cost = float(used.cost or 0)",
        TESTS + "test_what_has_no_price_costs_null",
    ),
    Mutation(
        "erased runs whose usage is lost",
        "api/routes/usage.py",
        "FROM past_usage WHERE tenant = :tenant AND",
        "FROM past_usage WHERE false AND",
        ERASED,
    ),
    Mutation(
        "the usage of erased runs shown to every tenant",
        "api/routes/usage.py",
        "FROM past_usage WHERE tenant = :tenant AND",
        "FROM past_usage WHERE",
        ERASED,
    ),
    Mutation(
        "runs of a day that are erased one after the other, the last of which counts",
        "shared/migrations/versions/0022_usage.py",
        'f"{name} = past.{name} + excluded.{name}"',
        'f"{name} = excluded.{name}"',
        ERASED,
    ),
    Mutation(
        "a tenant that spends without end",
        "shared/runs/spending.py",
        "float(spent) >= self._most",
        "float(spent) >= self._most * 1_000_000",
        "tests/acceptance/test_usage.py::test_a_tenant_that_has_spent_what_it_may_a_day_is_refused",
    ),
    Mutation(
        "a tenant that spends what it erases",
        "shared/runs/spending.py",
        "FROM past_usage WHERE tenant = :tenant AND day",
        "FROM past_usage WHERE false AND day",
        "tests/acceptance/test_usage.py::test_what_was_erased_today_stays_spent",
    ),
    Mutation(
        "a run that was accepted before and spends all the same",
        "worker/execution/job.py",
        "lambda: self._spending.check_of(self._database, claimed.tenant)",
        "lambda: asyncio.sleep(0)",
        "tests/acceptance/test_usage.py::test_what_was_accepted_before_fails_as_it_begins_and_costs_nothing",
    ),
]
