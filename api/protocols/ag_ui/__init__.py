"""AG-UI, the Agent User Interaction Protocol 1.0: what its clients send and expect, over the runs of this service.

The client's thread is a thread, its run is a run, or what follows after answers. `docs/ag-ui.md` lists what is carried,
what is mapped and what is refused.
"""
