"""The worker claims runs, drives their agents and publishes what they say. It knows agents and no HTTP."""

from shared.versions import refuse_old_pydantic_ai

refuse_old_pydantic_ai()  # Before anything here imports it.
