"""Which runs this worker takes, and when: the consumer of the queue and its slots."""
