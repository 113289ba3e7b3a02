"""HTTP below the routes: connections and their time limits, headers, request ids, and the common checks."""
