"""The worker claims runs, drives their agents and publishes their events. It knows agents and no HTTP."""
