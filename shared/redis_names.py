"""The names of all keys and channels in Redis. They begin with the same prefix, so that the server can be shared."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

PREFIX = "agent-relay:"


@dataclass(frozen=True, slots=True)
class Names:
    """The names under one prefix."""

    prefix: str = PREFIX

    @property
    def jobs(self) -> str:
        """The beginning of the keys of arq's jobs; the rest is the job's id."""
        return f"{self.prefix}arq:job:"

    @property
    def tries(self) -> str:
        """The beginning of the keys under which arq counts the tries of a job."""
        return f"{self.prefix}arq:retry:"

    @property
    def cancels(self) -> str:
        """The channel on which workers are notified of cancels and messages before their next heartbeat finds them."""
        return f"{self.prefix}cancels"

    def lane(self, pool: str, lane: str) -> str:
        """Name the sorted set of a lane."""
        return f"{self.prefix}lane:{pool}:{lane}"

    def turns(self, pool: str, lane: str) -> str:
        """Name the hash of a lane's tenants and their last turns."""
        return f"{self.lane(pool, lane)}:turns"

    def log(self, run_id: UUID) -> str:
        """Name the stream of a run, and the channel that announces its entries."""
        return f"{self.prefix}log:{run_id}"

    def batch(self, batch_id: UUID) -> str:
        """Name the channel on which changes of a batch are announced."""
        return f"{self.prefix}batch:{batch_id}"

    def thread(self, thread_id: UUID) -> str:
        """Name the channel on which it is announced that a thread has a new run."""
        return f"{self.prefix}thread:{thread_id}"

    def canary(self, hub_id: UUID) -> str:
        """Name the channel on which a hub listens to itself."""
        return f"{self.prefix}canary:{hub_id}"

    def sign_in_code(self, code_hash: str) -> str:
        """Name the key of a code that signs a browser in."""
        return f"{self.prefix}sign-in:{code_hash}"

    def probe(self, probe_id: UUID) -> str:
        """Name a key that is written only to see whether that works."""
        return f"{self.prefix}probe:{probe_id}"

    def wake(self, doorbell_id: UUID) -> str:
        """Name the key that ends a worker's pop."""
        return f"{self.prefix}wake:{doorbell_id}"


DEFAULT = Names()
