"""The protocols of other clients, a package each.

A protocol parses its requests into those of this service, and renders a run's events (`api/streaming/response.py`). No
protocol imports another one.
"""
