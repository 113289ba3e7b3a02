"""Agents whose models live at the fake provider and misbehave as their names say."""

from pydantic_ai import Agent
from pydantic_ai.models.fallback import FallbackModel

from worker.agents.bank_support import WholeAnswer


def _on(model: str) -> Agent[object, WholeAnswer]:
    return Agent(f"openai-chat:{model}", output_type=WholeAnswer, defer_model_check=True)


http_429 = _on("http-429")
http_500 = _on("http-500")
hang = _on("hang")
hang_after_first = _on("hang-after-first")
cut = _on("cut")
cut_before_first = _on("cut-before-first")
flaky = _on("flaky-1")
invalid = _on("invalid")
eof = _on("eof")
eof_text = Agent("openai-chat:eof", defer_model_check=True)
falls_back = Agent(FallbackModel("openai-chat:http-500", "openai-chat:bank"), output_type=WholeAnswer)
