"""The checks before a route runs: the caller's identity, a well-formed request, and the limits of one caller."""
