"""Fixtures of the tests that open pages in a browser."""

from tests.support.pages import pages_api, window

__all__ = ["pages_api", "window"]
