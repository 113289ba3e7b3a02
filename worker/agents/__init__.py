"""The agents that come with the service. Whoever has others names them in `AGENTS`, and nothing here is imported."""
