"""How the tables got their shape. `agent-relay migrate` brings a database up to date."""
