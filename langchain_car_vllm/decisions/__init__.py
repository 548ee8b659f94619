"""Typed questions, answered with the probabilities of a chat model."""

from langchain_car_vllm.decisions.model import UnlabelledAnswerWarning, VllmMlxDecisions

__all__ = ["UnlabelledAnswerWarning", "VllmMlxDecisions"]
