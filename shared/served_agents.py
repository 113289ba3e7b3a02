"""Which agents are served: the lease of a worker vouches for the agents that the worker registered with it.

Refusals look at the workers that were not declared dead, and not at leases: an outage of the database ends all leases,
but no worker is declared dead over it.
"""

from __future__ import annotations

_WORKERS = """
    SELECT FROM workers JOIN agents AS served_agent USING (pool)
    WHERE served_agent.agent_type = {agent_type}
      AND (workers.agents IS NULL OR served_agent.agent_type = ANY(workers.agents))
"""


def served(agent_type: str) -> str:
    """Return the SQL for whether a living worker takes runs of an agent, which an expression names."""
    workers = _WORKERS.format(agent_type=agent_type)
    return f"EXISTS ({workers} AND ended_at IS NULL AND lease_until > now() AND NOT draining)"


def not_served_for_long(agent_type: str) -> str:
    """Return the SQL for whether no worker has served a known agent for `:unserved_seconds`; 0 is for ever."""
    workers = _WORKERS.format(agent_type=agent_type)
    long_ago = "now() - make_interval(secs => CAST(:unserved_seconds AS float))"
    return f"""(
        CAST(:unserved_seconds AS float) > 0
        AND EXISTS (SELECT FROM agents AS known WHERE known.agent_type = {agent_type} AND registered_at < {long_ago})
        AND NOT EXISTS ({workers} AND (ended_at IS NULL OR ended_at > {long_ago}))
    )"""
