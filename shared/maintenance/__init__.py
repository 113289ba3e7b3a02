"""What is repaired in the background: lost queue entries, runs of dead workers, deadlines, old rows."""
