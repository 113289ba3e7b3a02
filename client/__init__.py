"""A command-line client. It is a user of the API like any other, and needs nothing of it: only httpx and rich."""
