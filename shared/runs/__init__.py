"""The life of a run: accepted, claimed, ended, and how it goes back to wait. One guarded statement an arrow.

    accept ──▶ queued ──claim──▶ running ──finish──▶ succeeded | failed | cancelled
                 ▲  │               │
                 ├──answer── waiting ◀──wait─────────(its tools asked for answers; cancel and expire end it, too)
                 │  │               │
                 │  └─cancel, due──▶│──▶ cancelled | failed        (nobody holds it: whoever sees it ends it)
                 └──give back───────┤                              (its worker stops)
                 └──take back───────┘                              (its worker died; counts as a crash)

A run that starts later is queued, but nobody may claim it before the sweeper has started it (`start.py`).

`attempt` is the fence: it is raised by every claim, and who finishes or gives back must name it. A statement that finds
no row has come too late, and writes nothing.
"""
