"""What the operations page shows: the figures of each minute, the service as it is now, and the story of one run."""
