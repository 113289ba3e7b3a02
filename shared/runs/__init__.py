"""The life of a run: accepted, claimed, ended, and returned to the queue. One guarded statement for each arrow.

    accept ──▶ queued ──claim──▶ running ──finish──▶ succeeded | failed | cancelled
                 ▲  │               │
                 ├──answer── waiting ◀──wait─────────(its tools asked for answers; cancel and expire end it, too)
                 │  │               │
                 │  └─cancel, due──▶│──▶ cancelled | failed        (without a worker: any process ends it)
                 └──return to queue─┤                              (its worker stops)
                 └──recover─────────┘                              (its worker died; counts as a crash)

A run that starts later is queued, but cannot be claimed before the sweeper has started it (`start.py`).

`attempt` is the fence: each claim raises it, and a statement that finishes a run or returns it to the queue names it. A
statement that finds no row has come too late, and writes nothing.
"""
