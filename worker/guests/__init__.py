"""Keeps an agent's code apart from its process and from the runs of others."""
