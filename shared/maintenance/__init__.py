"""Repairs in the background: lost queue entries, runs of dead workers, deadlines, old rows."""
