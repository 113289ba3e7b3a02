"""The life of a run: accepted, claimed, ended, and how it goes back to wait. One guarded statement an arrow.

    accept ──▶ queued ──claim──▶ running ──finish──▶ succeeded | failed | cancelled
                 ▲  │               │
                 │  └─cancel, due──▶│──▶ cancelled | failed        (nobody holds it: whoever sees it ends it)
                 └──give back───────┤                              (its worker stops)
                 └──take back───────┘                              (its worker died; counts as a crash)

`attempt` is the fence: it is raised by every claim, and who finishes or gives back must name it. A statement that finds
no row has come too late, and writes nothing.
"""

from shared.runs.accept import Accepted, Query, Strategy, accept
from shared.runs.admission import Admission
from shared.runs.cancel import Cancellation, cancel
from shared.runs.claim import Claim, Exchange, claim, claim_many, earlier_exchanges, is_mine, is_suspect, set_aside
from shared.runs.finish import (
    Ending,
    ended_row,
    finish,
    finish_many,
    give_back,
    let_go,
    next_in_thread,
    next_in_threads,
)
from shared.runs.requeue import Requeued, dead_letters, requeue
from shared.runs.running import Quota

__all__ = [
    "Accepted",
    "Admission",
    "Cancellation",
    "Claim",
    "Ending",
    "Exchange",
    "Query",
    "Quota",
    "Requeued",
    "Strategy",
    "accept",
    "cancel",
    "claim",
    "claim_many",
    "dead_letters",
    "earlier_exchanges",
    "ended_row",
    "finish",
    "finish_many",
    "give_back",
    "is_mine",
    "is_suspect",
    "let_go",
    "next_in_thread",
    "next_in_threads",
    "requeue",
    "set_aside",
]
