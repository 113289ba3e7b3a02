"""What is promised of options, broken one by one."""

from tests.mutations.mutation import Mutation

OPTIONS = "tests/acceptance/test_options.py::"

MUTATIONS = [
    Mutation(
        "a schedule whose runs have no options",
        "api/schedules/ticker.py",
        "            options=schedule.options,\n",
        "",
        OPTIONS + "test_a_schedule_has_options_for_its_runs",
    ),
    Mutation(
        "options that are not looked at",
        "api/options.py",
        "    check_value(options,",
        "    check_value({},",
        OPTIONS + "test_what_does_not_fit_the_schema_is_refused",
    ),
    Mutation(
        "options that are taken and mean nothing",
        "worker/catalog.py",
        'closed.setdefault("additionalProperties", False)',
        "pass",
        OPTIONS + "test_what_does_not_fit_the_schema_is_refused",
    ),
    Mutation(
        "options of an agent that has none",
        "api/options.py",
        "    if agent.options_schema is None:\n",
        "    if False:\n",
        OPTIONS + "test_an_agent_without_options_takes_none_and_options_are_an_object",
    ),
    Mutation(
        "a run whose thread chooses for it",
        "shared/runs/claim.py",
        "            || coalesce(run.options, '{}') AS options,\n",
        "            AS options,\n",
        OPTIONS + "test_a_thread_has_options_for_its_runs_and_a_run_chooses_otherwise",
    ),
    Mutation(
        "a batch that is retried without its options",
        "shared/batches/retry.py",
        "agent_type, metadata, options, batches.id,",
        "agent_type, metadata, NULL, batches.id,",
        OPTIONS + "test_a_batch_has_options_for_its_runs_also_retried",
    ),
]
