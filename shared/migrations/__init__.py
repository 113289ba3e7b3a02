"""How the tables got their shape. `python -m shared.migrations` brings a database up to date."""
