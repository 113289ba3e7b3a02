"""The protocol of OpenAI's API under `/v1`: what its clients send and expect, over the runs of this service.

An agent is a model. A chat completion is a run without a thread, whose caller holds the conversation. A response is a
run, and a conversation a thread. `docs/openai.md` lists what is carried, what is mapped and what is refused.
"""
