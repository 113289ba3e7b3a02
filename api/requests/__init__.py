"""What is looked at before a route runs: who calls, whether the request is well-formed, and how much one may take."""
