"""The worker claims runs, drives their agents and publishes what they say. It knows agents and no HTTP."""
