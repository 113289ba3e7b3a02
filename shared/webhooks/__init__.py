"""Webhooks: HTTP requests to a caller's server when a run or a batch has ended.

        the end ────trigger──▶ pending ──claim──▶ (a worker posts it) ──settle──▶ delivered | failed | disabled
       (one transaction)          ▲                     │
                                  └─ it fails, or the ──┘
                                     worker dies: again, later

A delivery is one event for one URL. Its id is the `webhook-id` of every attempt, so that a receiver can recognise a
repetition. `attempts` is the fence: each claim raises it, and the statement that settles a delivery names it.
"""

from agent_relay.shared.webhooks.addresses import Resolver, Target, read_url
from agent_relay.shared.webhooks.message import Message, message_of
from agent_relay.shared.webhooks.outbox import (
    Delivery,
    DeliveryRow,
    DeliveryStatus,
    claim,
    receiver_of,
    redeliver,
    settle,
)
from agent_relay.shared.webhooks.secret import Secret, current_secret, rotate_secret

__all__ = [
    "Delivery",
    "DeliveryRow",
    "DeliveryStatus",
    "Message",
    "Resolver",
    "Secret",
    "Target",
    "claim",
    "current_secret",
    "message_of",
    "read_url",
    "receiver_of",
    "redeliver",
    "rotate_secret",
    "settle",
]
