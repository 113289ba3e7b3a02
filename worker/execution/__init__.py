"""One run from its claim to its end: the agent is driven, its partial outputs are published, its end is stored."""
