"""From what the user wrote to what is served."""

from langchain_car_vllm.models.facts import ModelFacts, read_model_facts
from langchain_car_vllm.models.families import Family, family_facts
from langchain_car_vllm.models.ids import ModelId, nearest_ids, parse_model_id
from langchain_car_vllm.models.profile import model_profile
from langchain_car_vllm.models.snapshot import find_snapshot

__all__ = [
    "Family",
    "ModelFacts",
    "ModelId",
    "family_facts",
    "find_snapshot",
    "model_profile",
    "nearest_ids",
    "parse_model_id",
    "read_model_facts",
]
