"""The API accepts queries and streams their events. It knows HTTP and no agent."""
