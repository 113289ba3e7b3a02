"""Around the model: retries, timeouts, merged deltas, models that cannot stream, what a provider's error means."""
