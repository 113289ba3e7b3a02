"""Batches: many stateless runs that are accepted together, watched as one, and end one by one.

    accept ──▶ in_progress ──the last run ends──▶ completed
                   │
                   └─cancel──▶ cancelling ──the last run ends──▶ cancelled

A batch's runs live as any run does (`shared/runs`). When a statement ends one, a trigger counts it in the batch's
row and gives it the next place in `batch_results`, at the commit, under the row's lock: so counts are exact, and a
reader that has seen a place has seen all before it.
"""
