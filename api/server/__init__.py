"""HTTP below the routes: connections and their time limits, headers, request ids, what every request passes."""
