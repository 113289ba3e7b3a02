"""From the event log to a client's socket: subscriptions, the events of a followed run, formats, responses."""
