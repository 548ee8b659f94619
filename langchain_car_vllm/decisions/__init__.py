"""Typed questions, answered with the probabilities of a chat model."""

from langchain_car_vllm.decisions.model import VllmMlxDecisions

__all__ = ["VllmMlxDecisions"]
