"""Data of the operations page: the figures of each minute, the service as it is now, and the timeline of one run."""
