"""The API accepts queries and relays what becomes of them. It knows HTTP and no agent."""
