"""The pages that people open in a browser, and how they sign in. Their source is in `web/`."""
